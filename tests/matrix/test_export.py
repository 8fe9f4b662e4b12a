"""Promise 6: torch.export and ONNX agree with eager, and a tied head keeps its table once."""

import numpy as np
import pytest
import torch
from cases import METHODS, copied, spread
from tiny_models import inputs, outputs

import fewfold
from fewfold.measure.parameters import unique_parameters
from fewfold.stored.codes import CodedMatrix

EXPORTED = ["bert_mlm", "gpt2_lm", "vit_cls"]


def _arguments(model, name):
    values = inputs(name)
    if name == "gpt2_lm":
        model.config.use_cache = False
    model.config.return_dict = True
    return values


@pytest.mark.parametrize(("name", "method", "form"), spread(EXPORTED, list(METHODS), ["chained", "rebuilt"]))
def test_torch_export_agrees_with_eager(name, method, form):
    model = copied(name, method, "fp32")
    fewfold.set_form(model, form)
    values = _arguments(model, name)
    expected = outputs(model, name)
    with torch.no_grad():
        program = torch.export.export(model, (), values, strict=False)
        result = program.module()(**values)
    torch.testing.assert_close(result.logits, expected, rtol=1e-4, atol=1e-5)
    held = {tensor.data_ptr(): tensor for tensor in program.state_dict.values() if tensor.numel()}
    numbers = sum(tensor.numel() for tensor in held.values() if tensor.is_floating_point())
    assert numbers == unique_parameters(model)
    assert sum(tensor.numel() for tensor in held.values()) == numbers + _codes(model)


def _codes(model):
    """Integers that point into codebooks."""
    return sum(b.numel() for m in model.modules() if isinstance(m, CodedMatrix) for b in m.buffers())


class _Logits(torch.nn.Module):
    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        return self.model(**dict(zip(self.names, values, strict=True))).logits


@pytest.mark.full
@pytest.mark.parametrize(("name", "method"), spread(EXPORTED, list(METHODS)))
def test_onnx_runtime_agrees_with_eager(name, method, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = copied(name, method, "fp32")
    values = _arguments(model, name)
    expected = outputs(model, name)
    wrapped = _Logits(model, tuple(values)).eval()
    with torch.no_grad():
        program = torch.onnx.export(
            wrapped, tuple(values.values()), dynamo=True, verbose=False, input_names=list(values), optimize=False
        )
    file = tmp_path / "model.onnx"
    program.save(str(file))
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (result,) = session.run(None, {key: values[key].numpy() for key in names})
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-3, atol=1e-4)
    graph = onnx.load(str(file)).graph
    sizes = [int(np.prod(entry.dims)) for entry in graph.initializer]
    # unoptimised, as folding copies transposed tables this tiny; masks and positions may be added as constants
    assert sum(sizes) < sum(p.numel() for p in model.parameters()) + _codes(model) + 200
