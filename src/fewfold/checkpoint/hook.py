"""The transformers hook: after ``import fewfold``, plain ``AutoModel.from_pretrained`` rebuilds compressed models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer

from fewfold.checkpoint.config import FewfoldConfig
from fewfold.checkpoint.rebuild import apply_structure
from fewfold.errors import CheckpointError
from fewfold.stored import unpack
from fewfold.surgery.replace import Replaced


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

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        structure = apply_structure(model, self.quantization_config.structure)
        self.quantization_config = FewfoldConfig(structure)
        check_files(model, kwargs.get("checkpoint_files") or ())
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        unpack(model)
        forget_quantizer(model)
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Stored tensors keep the dtype that their module gives them."""
        return dtype

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


def check_files(model: nn.Module, files: Iterable[str]) -> None:
    """Compare the names and shapes in the weight files with what the replaced modules need, before loading.

    :raises CheckpointError: naming the damaged file, or the tensor that is missing or has another shape.
    """
    found: dict[str, tuple[int, ...]] = {}
    files = [str(file) for file in files if str(file).endswith(".safetensors")]
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                found.update({name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{Path(file).name} is damaged or cut short ({error}); copy or download the checkpoint again"
            ) from error
    if not files:
        return
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, tensor in _stored_tensors(model):
        names = (name, prefix + name, name.removeprefix(prefix))
        shape = next((found[candidate] for candidate in names if candidate in found), None)
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


def _stored_tensors(model: nn.Module) -> Iterable[tuple[str, Any]]:
    state = model.state_dict()
    roots = [name for name, module in model.named_modules() if isinstance(module, Replaced)]
    for root in roots:
        for name, tensor in state.items():
            if name.startswith(f"{root}.") and not name.endswith(".bias"):
                yield name, tensor


def install() -> None:
    """Register with transformers; doing it twice is harmless."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    if "fewfold" not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config("fewfold")(FewfoldConfig)
    if "fewfold" not in AUTO_QUANTIZER_MAPPING:
        register_quantizer("fewfold")(FewfoldQuantizer)
