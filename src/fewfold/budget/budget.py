"""Budgets: how many parameters, bytes, multiply-accumulates or milliseconds a model, or a part of it, may cost."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fewfold.errors import BudgetError

Quantity = Literal["parameters", "bytes", "macs", "latency"]
QUANTITIES: tuple[Quantity, ...] = ("parameters", "bytes", "macs", "latency")

_UNITS: dict[str, dict[str, float]] = {
    "parameters": {"": 1, "K": 10**3, "M": 10**6, "B": 10**9},
    "macs": {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9},
    "bytes": {
        "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
        "K": 10**3, "M": 10**6, "G": 10**9,
    },
    "latency": {"MS": 1.0, "S": 1e3, "US": 1e-3},
}  # fmt: skip
_EXAMPLES = {
    "parameters": "'5M', '1/4 of linears' or '1/4 of encoder.layer.*'",
    "macs": "'3M', '1/4 of linears'",
    "bytes": "'20MB', '1/10 of embeddings'",
    "latency": "'2.5ms at 1x16' (batch x length), optionally 'with 2 threads'",
}


class Budget(BaseModel):
    """What a model, or the part of it that follows ``of``, may cost. Give exactly one quantity.

    An absolute amount without ``of`` is the whole model's: all unique parameters, the tensors of the weight file (its
    header, a fraction of a percent, apart), the linear maps' multiply-accumulates a token, or one forward pass. A
    fraction's denominator is the dense weights that the recipe replaces and its part names (no biases, no norms):
    ``1/4 of linears``, ``1/10 of embeddings``, ``1/4 of all``, ``1/4 of encoder.layer.*``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: str | int | None = Field(None, description="unique parameters: " + _EXAMPLES["parameters"])
    bytes: str | int | None = Field(None, description="bytes on disk: " + _EXAMPLES["bytes"])
    macs: str | int | None = Field(None, description="multiply-accumulates a token: " + _EXAMPLES["macs"])
    latency: str | None = Field(None, description="time of a forward pass: " + _EXAMPLES["latency"])

    @model_validator(mode="after")
    def _one_quantity(self) -> Budget:
        given = [name for name in QUANTITIES if getattr(self, name) is not None]
        if len(given) != 1:
            raise BudgetError(
                f"a budget needs exactly one of parameters, bytes, macs and latency; got {given or 'none'}"
            )
        self.limit  # noqa: B018  (parse now, so that a mistake shows where it was made)
        return self

    @property
    def quantity(self) -> Quantity:
        """Which of the four is limited."""
        return next(name for name in QUANTITIES if getattr(self, name) is not None)

    @property
    def limit(self) -> Limit:
        """The parsed amount."""
        return parse_limit(self.quantity, getattr(self, self.quantity))

    @property
    def text(self) -> str:
        """As asked for: ``parameters=1/4 of linears``."""
        return f"{self.quantity}={getattr(self, self.quantity)}"

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """A budget from ``'parameters=1/4 of linears'`` (the command line's form), a dict or a Budget."""
        if isinstance(text, Budget):
            return text
        if isinstance(text, dict):
            return cls(**text)
        quantity, equals, amount = str(text).partition("=")
        if not equals or quantity.strip() not in QUANTITIES:
            raise BudgetError(
                f"budget {text!r} does not say of what: write {' or '.join(f'{name}=…' for name in QUANTITIES)}, "
                f"for example 'parameters=1/4 of linears'"
            )
        return cls(**{quantity.strip(): amount.strip()})


class Limit(BaseModel):
    """A parsed amount.

    :param amount: absolute amount (parameters, bytes, MACs or milliseconds), or the fraction.
    :param fraction: whether ``amount`` is a fraction of the dense weights of ``part``.
    :param part: pattern of the targets it covers, or None for the whole model.
    :param batch: latency only: sequences of a forward pass.
    :param length: latency only: tokens of a sequence.
    :param threads: latency only: CPU threads, None for torch's present setting.
    """

    model_config = ConfigDict(frozen=True)

    amount: float
    fraction: bool = False
    part: str | None = None
    batch: int = 1
    length: int = 16
    threads: int | None = None


_FRACTION = re.compile(r"^\s*(\d+)\s*/\s*(\d+(?:\.\d+)?)\s*$")
_AMOUNT = re.compile(r"^\s*(\d+(?:_\d+)*(?:\.\d+)?)\s*([A-Za-z]*)\s*$")
_LATENCY = re.compile(
    r"^(?P<amount>.+?)\s+at\s+(?P<batch>\d+)\s*[x×]\s*(?P<length>\d+)(?:\s+with\s+(?P<threads>\d+)\s+threads?)?$"
)


def parse_limit(quantity: Quantity, value: str | int) -> Limit:
    """Parse an amount such as ``5M``, ``20MB``, ``1/4 of linears`` or ``2.5ms at 1x16``.

    :raises BudgetError: naming the value and the forms that are understood.
    """
    wrong = BudgetError(f"budget {quantity}={value!r} cannot be read; write {_EXAMPLES[quantity]}")
    text = str(value).strip()
    timing: dict[str, Any] = {}
    if quantity == "latency":
        match = _LATENCY.match(text)
        if match is None:
            raise wrong
        timing = {key: int(match[key]) for key in ("batch", "length") if match[key]}
        timing["threads"] = int(match["threads"]) if match["threads"] else None
        text = match["amount"]
    amount_text, _, part = text.partition(" of ")
    part_pattern = part.strip() or None
    match = _FRACTION.match(amount_text)
    if match:
        if part_pattern is None or quantity == "latency":
            raise BudgetError(
                f"budget {quantity}={value!r} is a bare ratio: say of what, for example '{text} of linears'"
                if quantity != "latency"
                else f"budget latency={value!r}: a time is absolute; write {_EXAMPLES['latency']}"
            )
        fraction = float(Fraction(match[1]) / Fraction(match[2])) if float(match[2]) else 0.0
        if not 0 < fraction <= 1:
            raise BudgetError(f"budget {quantity}={value!r} must lie between 0 and 1, as '1/4 of {part_pattern}'")
        return Limit(amount=fraction, fraction=True, part=part_pattern)
    match = _AMOUNT.match(amount_text)
    if match is None or match[2].upper() not in _UNITS[quantity]:
        raise wrong
    amount = float(match[1].replace("_", "")) * _UNITS[quantity][match[2].upper()]
    if amount <= 0:
        raise BudgetError(f"budget {quantity}={value!r} must be more than nothing; write {_EXAMPLES[quantity]}")
    return Limit(amount=amount, part=part_pattern, **timing)
