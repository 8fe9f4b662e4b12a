import pytest
from pydantic import ValidationError

from fewfold import Budget, BudgetError
from fewfold.recipe import as_budgets


@pytest.mark.parametrize(
    ("quantity", "text", "amount", "part"),
    [
        ("parameters", "5M", 5e6, None),
        ("parameters", 1234, 1234, None),
        ("parameters", "2.5M of linears", 2.5e6, "linears"),
        ("bytes", "20MB", 20e6, None),
        ("parameters", "1_000_000.5", 1000000.5, None),
        ("bytes", "1.5MiB", 1.5 * 2**20, None),
        ("macs", "3G", 3e9, None),
    ],
)
def test_absolute_amounts(quantity, text, amount, part):
    limit = Budget(**{quantity: text}).limit
    assert (limit.amount, limit.part, limit.fraction) == (amount, part, False)


def test_fractions_name_their_part():
    limit = Budget(parameters="1/4 of encoder.layer.*").limit
    assert (limit.amount, limit.part, limit.fraction) == (0.25, "encoder.layer.*", True)


def test_latency_names_its_shape_and_threads():
    limit = Budget(latency="2.5ms at 1x16 with 2 threads").limit
    assert (limit.amount, limit.batch, limit.length, limit.threads) == (2.5, 1, 16, 2)
    assert Budget(latency="1s at 8x128").limit.amount == 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": "1/4"}, "bare ratio"),
        ({"parameters": "4/1 of linears"}, "between 0 and 1"),
        ({"parameters": "many"}, "cannot be read"),
        ({"parameters": "5MB"}, "cannot be read"),
        ({"parameters": "1.2.3M"}, "cannot be read"),
        ({"bytes": "0"}, "more than nothing"),
        ({"latency": "2.5ms"}, "1x16"),
        ({"latency": "1/2 at 1x16"}, "absolute"),
        ({}, "exactly one"),
        ({"parameters": "5M", "bytes": "5MB"}, "exactly one"),
        ({"params": "5M"}, "params"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValidationError, match=message):
        Budget(**fields)


def test_command_line_form():
    budgets = as_budgets(["parameters=1/4 of linears", {"bytes": "1/10 of embeddings"}])
    assert [budget.text for budget in budgets] == ["parameters=1/4 of linears", "bytes=1/10 of embeddings"]
    with pytest.raises(BudgetError, match="does not say of what"):
        as_budgets("1/4 of linears")
    with pytest.raises(BudgetError, match="bare ratio"):
        as_budgets("parameters=1/4")
