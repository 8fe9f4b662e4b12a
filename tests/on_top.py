"""What works on top of a compressed model: one check a column, the same for the tests and for the table in docs.

A check returns nothing, or a few words on how well it went; it fails by an AssertionError, and what is refused raises
one of fewfold's own errors with the reason.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cases import METHODS, copied, saved
from tiny_models import auto_class, inputs, outputs
from transformers import BertConfig, BertModel

import fewfold
from fewfold.export.onnx import export_onnx
from fewfold.export.standalone import export_standalone
from fewfold.measure.inputs import dummy_inputs
from fewfold.measure.parameters import stored_bytes
from fewfold.stored.codes import CodedMatrix

FAMILIES = ("bert_mlm", "gpt2_lm")
OVERHEAD = 1.05


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _logits(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(name)).logits


def reload(name: str, method: str) -> None:
    """Plain ``AutoModel.from_pretrained`` after ``import fewfold``."""
    folder, expected = saved(name, method, "int8")
    _close(outputs(auto_class(name).from_pretrained(folder), name), expected)


def compiled(name: str, method: str) -> None:
    """torch.compile of the whole model without a break (``fullgraph``; backend aot_eager)."""
    model = copied(name, method, "fp32")
    expected = outputs(model, name)
    torch._dynamo.reset()
    _close(_logits(torch.compile(model, fullgraph=True, backend="aot_eager"), name), expected)


def exported(name: str, method: str) -> None:
    """torch.export."""
    model = copied(name, method, "fp32")
    expected = outputs(model, name)
    model.config.use_cache = False
    with torch.no_grad():
        program = torch.export.export(model, (), inputs(name), strict=False)
        _close(program.module()(**inputs(name)).logits, expected)


def onnx_runtime(name: str, method: str) -> None:
    """ONNX with free batch and length, equal in ONNX Runtime at three sizes."""
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(copied(name, method, "fp32"), Path(folder) / "model.onnx")
    assert report.difference < 1e-3 * report.largest


@cache
def _medium() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=3000, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=64, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # zeros and ones would be shortened
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


_MEDIUM: dict[str, dict[str, Any]] = {
    "low_rank": {"rank": 64},
    "shared_factors": {"rank": 128},
    "shared_basis": {"rank": 96},
    "tucker": {"rank": 128, "bank": 4},
    "tensor_train": {"rank": 64},
    "shared_layers": {"delta_rank": 16},
    "embedding_autoencoder": {"rank": 64},
    "subvector_codes": {"width": 4, "words": 256},
    "embedding_sharing": {"factor_size": 64},
    "dense": {},
}


def _medium_compressed(method: str, stored: str) -> Any:
    """Compressed without a fit: sizes are what counts."""
    case = METHODS[method]
    targets = ["all"] if case.tables and case.linears else ["embeddings"] if case.tables else ["linears"]
    extra = {"weighting": "none"} if "weighting" in case.config.model_fields else {}
    config = case.config(targets=targets, stored_dtype=stored, **extra, **_MEDIUM[method])
    model = fewfold.compress(copy.deepcopy(_medium()), config, fit=False).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, CodedMatrix):  # fresh codes are all alike, and would stand in a file once
            shapes = [module.codes(index).shape for index in range(len(module.stages))]
            draw = zip(module.stages, shapes, strict=True)
            module.set_codes_([torch.randint(stage.words, shape, generator=generator) for stage, shape in draw])
    return model


def onnx_bytes(name: str, method: str) -> str:
    """The ONNX file over the stored tensors (int8), on a BERT of 2.4 million numbers."""
    model = _medium_compressed(method, "int8")
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(model, Path(folder) / "model.onnx")
    assert report.overhead <= OVERHEAD, f"{report.bytes:,} bytes for {report.unique_bytes:,}: {report.overhead:.3f}×"
    return f"{report.overhead:.3f}×"


def int8(name: str, method: str) -> str:
    """torchao's int8 weight-only quantization of every linear map, factor and codebook, on the same BERT in fp32.

    The cell is bytes afterwards over bytes before. torchao has no int8 form of matrices with a single column.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = _medium_compressed(method, "fp32")
    values = dummy_inputs(model, 2, 16)
    with torch.no_grad():
        before, expected = stored_bytes(model), model(**values).last_hidden_state
        quantize_(model, Int8WeightOnlyConfig())
        difference = float((model(**values).last_hidden_state - expected).abs().max())
    assert 0 < difference < 0.1 * float(expected.abs().max())
    assert stored_bytes(model) < before
    return f"{stored_bytes(model) / before:.2f}×"


def lora(name: str, method: str) -> None:
    """PEFT LoRA on "all-linear": it changes outputs, trains alone, and unloads without a trace."""
    import peft

    model = copied(name, method, "fp32")
    expected = outputs(model, name)
    config = peft.LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules="all-linear")
    adapted = peft.get_peft_model(model, config).eval()
    assert float((_logits(adapted, name) - expected).abs().max()) > 1e-3
    adapted(**inputs(name)).logits.sum().backward()
    reached = {key for key, one in adapted.named_parameters() if one.grad is not None}
    assert reached
    assert all("lora_" in key for key in reached)
    _close(_logits(adapted.unload(), name), expected)


def standalone(name: str, method: str) -> None:
    """A checkpoint that needs no fewfold, loaded by its own code."""
    model = copied(name, method, "int8")
    expected = outputs(model, name)
    with tempfile.TemporaryDirectory() as folder:
        path = export_standalone(model, Path(folder) / f"{name}_{method}")
        loaded = auto_class(name).from_pretrained(path, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers.")
    _close(outputs(loaded, name), expected)


def densify(name: str, method: str) -> None:
    """A plain model again."""
    model = copied(name, method, "fp32")
    expected = outputs(model, name)
    plain = fewfold.densify(model)
    assert not any(type(module).__module__.startswith("fewfold.") for module in plain.modules())
    _close(outputs(plain, name), expected)


CHECKS: dict[str, Callable[[str, str], str | None]] = {
    "AutoModel reload": reload,
    "torch.compile fullgraph": compiled,
    "torch.export": exported,
    "ONNX Runtime": onnx_runtime,
    f"ONNX bytes ≤ {OVERHEAD} × unique": onnx_bytes,
    "torchao int8 on top": int8,
    "LoRA on top": lora,
    "stand-alone": standalone,
    "densify": densify,
}
# these take ten seconds each; the tests of exports and of execution do as much in an ordinary run
SLOW = [name for name in CHECKS if name.startswith(("ONNX", "torch.compile"))]
ONE_FAMILY = {f"ONNX bytes ≤ {OVERHEAD} × unique", "torchao int8 on top"}  # on a model of their own
