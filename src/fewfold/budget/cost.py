"""What units cost in a budget's unit: counted for parameters, bytes and MACs, measured for milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fewfold.budget.budget import Limit, Quantity
from fewfold.budget.timing import TimingTable
from fewfold.measure.parameters import stored_bytes
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.summary import stored_numbers
from fewfold.surgery.targets import find_targets


class CostModel:
    """Costs of one model's units."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
        self.element_size = first.element_size() if first is not None else 4
        self.timing: TimingTable | None = None

    def use(self, limit: Limit) -> None:
        """Prepare for a budget (a latency budget names batch, length and threads)."""
        self.limit = limit

    def _timing(self) -> TimingTable:
        if self.timing is None or self.timing.limit != self.limit:
            self.timing = TimingTable(self.model, self.limit)
        return self.timing

    def dense(self, quantity: Quantity, unit: Unit) -> float:
        """Cost of a unit's dense weights."""
        if quantity == "latency":
            return sum(self._timing().dense(target) for target in unit.targets)
        if quantity == "macs":
            return sum(target.dense_macs for target in unit.targets)
        return unit.dense_parameters * (self.element_size if quantity == "bytes" else 1)

    def choice(self, quantity: Quantity, unit: Unit, settings: Mapping[str, Any] | None) -> float:
        """Cost of a unit at some settings (None: left dense)."""
        return self.curve(quantity, unit, [settings])[0]

    def curve(self, quantity: Quantity, unit: Unit, sizes: Sequence[Mapping[str, Any] | None]) -> list[float]:
        """Cost of a unit at each of ``sizes`` (None: left dense)."""
        if quantity == "latency":
            return self._timing().curve(unit, sizes)
        method = method_named(unit.method)
        return [
            self.dense(quantity, unit)
            if settings is None
            else float(getattr(method.cost(unit, settings, self.element_size), quantity))
            for settings in sizes
        ]

    def rest(self, quantity: Quantity, units: Sequence[Unit]) -> float:
        """Cost of everything in the model that no unit replaces."""
        if quantity == "latency":
            return self._timing().rest(units)
        replaced = sum(self.dense(quantity, unit) for unit in units)
        if quantity == "parameters":
            return stored_numbers(self.model) - replaced
        if quantity == "bytes":
            return stored_bytes(self.model) - replaced
        return sum(target.dense_macs for target in find_targets(self.model)) - replaced
