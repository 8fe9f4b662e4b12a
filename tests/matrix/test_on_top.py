"""What works on top of every method: the cells of the table that ``benchmarks/works_on_top.py`` draws."""

from itertools import product

import pytest
from cases import METHODS, spread
from on_top import CHECKS, FAMILIES, ONE_FAMILY, SLOW

NEEDED = {"torchao int8 on top": "torchao", "LoRA on top": "peft", "ONNX Runtime": "onnxruntime"}


ROWS = [
    *spread([check for check in CHECKS if check not in SLOW], list(METHODS), FAMILIES),
    *(pytest.param(*row, marks=pytest.mark.full) for row in product(SLOW, METHODS, FAMILIES)),
]


@pytest.mark.parametrize(("check", "method", "name"), ROWS)
def test_it_works_on_top(check, method, name):
    if check in ONE_FAMILY and name != FAMILIES[0]:
        pytest.skip("this one has a model of its own")
    pytest.importorskip(NEEDED.get(check, "torch"))
    CHECKS[check](name, method)
