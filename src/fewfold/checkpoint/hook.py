"""The transformers hook: after ``import fewfold``, plain ``AutoModel.from_pretrained`` rebuilds compressed models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer

from fewfold.assembled import Assembled
from fewfold.checkpoint.config import FewfoldConfig
from fewfold.checkpoint.rebuild import apply_structure
from fewfold.checkpoint.resize import install_resizing
from fewfold.errors import CheckpointError
from fewfold.store import Store
from fewfold.stored import unpack
from fewfold.stored.kept import Kept
from fewfold.surgery.replace import Replaced
from fewfold.surgery.ties import TiedHead


class FewfoldQuantizer(HfQuantizer):
    """Rebuilds the structure on the empty model before its weights are loaded."""

    requires_calibration = False
    quantization_config: FewfoldConfig

    def __init__(self, quantization_config: FewfoldConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            raise CheckpointError(
                "quantization_config= cannot compress a dense model while loading: load it, then call "
                "fewfold.compress(model, …)"
            )
        super().__init__(quantization_config, **kwargs)
        self.fresh_heads: list[TiedHead] = []  # around the body of a checkpoint that had no head

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        shapes = shapes_in(kwargs.get("checkpoint_files") or ())
        structure = apply_structure(model, self.quantization_config.structure, _renamed(model, shapes))
        self.quantization_config = FewfoldConfig(structure)
        if shapes:
            found = _renamed(model, shapes)
            check_shapes(model, found)
            tied = model.all_tied_weights_keys or {}
            known = {*found, *tied, *tied.values()}
            self.fresh_heads = [
                module
                for name, module in model.named_modules()
                if isinstance(module, TiedHead) and f"{name}.bias" not in known
            ]
            new = {name for name, tensor in _stored_tensors(model) if tensor.numel() == 0 and name not in found}
            if new:
                ignored = model._keys_to_ignore_on_load_missing or ()
                model._keys_to_ignore_on_load_missing = {*ignored, *(f"^{re.escape(name)}$" for name in new)}
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for head in self.fresh_heads:
            if head.bias is not None:
                nn.init.zeros_(head.bias)  # transformers knows how to begin its own Linear only
        settle(model)
        unpack(model)
        forget_quantizer(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Compressed models save like any other."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Stored tensors train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Training needs no adapter."""
        return True

    @property
    def is_compileable(self) -> bool:
        """torch.compile works."""
        return True


def forget_quantizer(model: nn.Module) -> None:
    """Make a reloaded model like a freshly compressed one: only its config says that it is compressed."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
                module.__dict__.pop(attribute, None)
            module.config.__dict__.pop("_is_quantized", None)


def settle(model: nn.Module) -> None:
    """Undo what the load may have cast: a stored leaf's products run in the dtype of the weight it stands for."""
    for module in model.modules():
        if isinstance(module, Assembled):
            for leaf in (leaf for held in module.leaves() for leaf in held.modules()):
                if isinstance(leaf, Kept):
                    leaf.settle_(module.weight.dtype)


def shapes_in(files: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in safetensors files (others are left out).

    :raises CheckpointError: naming a damaged file.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in (str(file) for file in files if str(file).endswith(".safetensors")):
        try:
            with safe_open(file, framework="pt") as handle:
                found.update({name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{Path(file).name} is damaged or cut short ({error}); copy or download the checkpoint again"
            ) from error
    return found


def check_shapes(model: nn.Module, found: dict[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes in the weight files with what the replaced modules need, before loading.

    :param found: shapes by the names that tensors have in ``model``.
    :raises CheckpointError: naming the tensor that is missing or has another shape.
    """
    for name, tensor in _stored_tensors(model):
        shape = found.get(name)
        if shape is None and tensor.numel() == 0:
            continue  # the placeholder of a head that the checkpoint's model did not have
        if shape is None:
            raise CheckpointError(
                f"the checkpoint holds no tensor {name}, which the structure in config.json needs: weight file and "
                "config.json do not belong together"
            )
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"the checkpoint's {name} has shape {shape}, the structure in config.json needs "
                f"{tuple(tensor.shape)}: weight file and config.json do not belong together"
            )


def _renamed(model: Any, found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Tensors of a file under the names that they have in ``model``, as transformers' own loading maps them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), getattr(model, "base_model_prefix", "")
    names: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state:
            renamed, _ = rename_source_key(name, [], [], prefix, state)
        names[renamed] = shape
    return names


def _stored_tensors(model: nn.Module) -> Iterable[tuple[str, Any]]:
    state = model.state_dict()
    roots = [name for name, module in model.named_modules() if isinstance(module, (*Replaced, Store))]
    for root in roots:
        for name, tensor in state.items():
            if name.startswith(f"{root}.") and not name.endswith(".bias"):
                yield name, tensor


def install() -> None:
    """Register with transformers and serve its resizing; doing it twice is harmless."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    if "fewfold" not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config("fewfold")(FewfoldConfig)
    if "fewfold" not in AUTO_QUANTIZER_MAPPING:
        register_quantizer("fewfold")(FewfoldQuantizer)
    install_resizing()
