"""What works on top of every method: the cells of the table that ``benchmarks/works_on_top.py`` draws."""

import pytest
from cases import METHODS, spread
from on_top import CHECKS, FAMILIES, ONE_FAMILY

NEEDED = {"torchao int8 on top": "torchao", "LoRA on top": "peft", "ONNX Runtime": "onnxruntime"}


@pytest.mark.parametrize(("check", "method", "name"), spread(list(CHECKS), list(METHODS), FAMILIES))
def test_it_works_on_top(check, method, name):
    if check in ONE_FAMILY and name != FAMILIES[0]:
        pytest.skip("this one has a model of its own")
    pytest.importorskip(NEEDED.get(check, "torch"))
    CHECKS[check](name, method)
