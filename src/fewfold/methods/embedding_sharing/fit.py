"""The method: one unit a table, nothing to choose, and nothing to fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.errors import FewfoldWarning, RecipeError, TargetError
from fewfold.methods.base import Cost, Method, MethodConfig, Records, Unit
from fewfold.methods.embedding_sharing.config import EmbeddingSharing
from fewfold.methods.embedding_sharing.modules import CarvedLinear, CarvedTable, store_of
from fewfold.methods.embedding_sharing.operators import CarvedOperator
from fewfold.methods.embedding_sharing.plan import Sharing, by_table, lay_out, shared_level
from fewfold.methods.embedding_sharing.slots import Slot
from fewfold.methods.embedding_sharing.store import CarvingStore, balanced_std
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.surgery.replace import weight_trains
from fewfold.surgery.targets import Target


class EmbeddingSharingMethod(Method):
    """Weights out of the token table."""

    name = "embedding_sharing"
    config = EmbeddingSharing
    kinds = ("linear", "embedding", "conv", "recurrent")

    def units_in(self, model: nn.Module, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """One for each table; its width is that of its own weights, of a model of two stacks perhaps another."""
        assert isinstance(config, EmbeddingSharing)
        return [
            Unit(self.name, config, (table, *carved), lay_out(config, model, table, carved))
            for table, carved in by_table(config, model, targets)
        ]

    def check(self, unit: Unit) -> None:
        """The layout was checked when it was made."""

    def check_model(self, unit: Unit, model: nn.Module, fit: bool) -> None:
        """Refuse to lose weights that were learned."""
        config = _config(unit)
        if fit:
            raise RecipeError(
                f"EmbeddingSharing cannot keep the weights of {unit.targets[1].name} and the others: carved weights "
                "are trained from scratch. Pass fit=False"
            )
        source = getattr(getattr(model, "config", None), "_name_or_path", "")
        if source and not config.from_scratch:
            raise RecipeError(
                f"this {type(model).__name__} came from {source!r}, and EmbeddingSharing would lose its weights, as "
                f"that of {unit.targets[1].name}. Pass EmbeddingSharing(from_scratch=True) if they are to be lost, or "
                "if only the config came from there"
            )
        for target in unit.targets:
            if isinstance(model.get_submodule(target.module), Assembled):
                raise TargetError(f"{target.name} is compressed already: take a plain model")
        table, *others = (model.get_submodule(target.module) for target in unit.targets)
        if not weight_trains(table) and any(weight_trains(other) for other in others):
            warnings.warn(
                f"{unit.targets[0].name} is frozen, and {unit.targets[1].name} and the others are carved out of it: "
                "its fresh numbers are trained, and freezing them would freeze those weights too",
                FewfoldWarning,
                stacklevel=4,
            )

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The columns of the expansion, as the layout has them."""
        return {"columns": _layout(unit).columns}

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """One."""
        return [{"columns": _layout(unit).columns}]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """The table, its expansion and the map to rows; a token multiplies with every carved weight."""
        config, table, columns = _config(unit), unit.targets[0], settings["columns"]
        width = config.factor_size or table.columns
        extra, macs = 0, 0
        if config.factor_size is not None:
            macs = width * table.columns
            extra = macs + table.columns + (2 * (width + table.columns) if config.factor_norms else 0)
            extra += width * table.columns if config.head == "factored" else 0
        bias = columns if config.expansion_bias else 0
        stored = unit.config.stored
        size = stored.matrix_bytes(table.rows, width, element_size) + (extra + bias) * element_size
        size += stored.matrix_bytes(columns, width, element_size) if columns else 0
        head = table.rows * width + macs if config.head == "factored" else table.numel
        macs += table.heads * head + sum(target.numel for target in unit.targets[1:])
        return Cost((table.rows + columns) * width + bias + extra, size, macs)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """0: nothing is fitted."""
        return [0.0] * len(sizes)

    def records(self, unit: Unit, settings: Mapping[str, Any]) -> Records:
        """The store's slots; by target, which of them it uses."""
        config, layout, table = _config(unit), _layout(unit), unit.targets[0]
        store = {
            "rows": table.rows,
            "width": config.factor_size or table.columns,
            "vocab_rows": table.rows,
            "columns": layout.columns,
            "bias": config.expansion_bias,
            "padding_idx": table.padding_idx,
            "order": config.order,
            "slots": [[name, list(slot.shape), slot.offset, slot.columns] for name, slot in layout.slots.items()],
        }
        factor = config.factor_size is not None
        targets: dict[str, Mapping[str, Any]] = {
            table.name: {"factor": factor, "norms": factor and config.factor_norms, "head": config.head}
        }
        for target in unit.targets[1:]:
            used = layout.used[target.name]
            if target.kind == "linear":
                targets[target.name] = {"slot": used["weight"]}
            else:
                targets[target.name] = {"kind": target.operator, "arguments": dict(target.arguments), "slots": used}
        return Records(targets, store)

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """Refused."""
        raise RecipeError("EmbeddingSharing has no fit: pass fit=False")

    def build_store(self, settings: Mapping[str, Any], stored: StoredDtype) -> Store:
        """Table and expansion, normal with standard deviation 0.02."""
        known = {"rows", "width", "vocab_rows", "columns", "bias", "padding_idx", "order", "slots"}
        if set(settings) != known:
            raise ValueError(f"its settings must be {', '.join(sorted(known))}")
        slots = {name: Slot(tuple(shape), offset, columns) for name, shape, offset, columns in settings["slots"]}
        store = CarvingStore(
            settings["rows"], settings["width"], settings["vocab_rows"], slots, settings["columns"], settings["bias"],
            settings["padding_idx"], stored,
        )  # fmt: skip
        store.reset_parameters()
        return store

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """The table, a linear map, or a convolution or recurrent layer."""
        owner = store_of(store)
        if target.kind == "embedding":
            return CarvedTable(
                target.rows, target.columns, owner, target.padding_idx, target.scale, settings["factor"],
                settings["norms"], settings["head"],
            )  # fmt: skip
        if target.kind == "linear":
            return CarvedLinear(target.columns, target.rows, target.bias, owner, settings["slot"])
        return CarvedOperator(target.rows, settings["kind"], settings["arguments"], settings["slots"], owner)

    def keeps_biases(self, unit: Unit) -> bool:
        """Unless the config draws them."""
        return _config(unit).bias_init == "model"

    def modules(self, unit: Unit, settings: Mapping[str, Any], store_name: str = "store") -> dict[str, Assembled]:
        """As every method's, begun as the config says."""
        modules, config = super().modules(unit, settings, store_name), _config(unit)
        table = modules[unit.targets[0].name]
        assert isinstance(table, CarvedTable)
        std, width = config.init_std, _layout(unit).width
        if std is None:
            stored = config.factor_size or unit.targets[0].columns
            std = balanced_std(width, stored) if config.expansion else (3 * width) ** -0.5
        table.store.reset_parameters(std, _fan_in(unit) if config.init == "scaled" else None)
        table.reset_parameters(std)
        if config.bias_init == "normal":
            _draw_biases(unit, modules)
        return modules


@torch.no_grad()
def _draw_biases(unit: Unit, modules: Mapping[str, Assembled]) -> None:
    """Normal biases of variance 1: the same numbers for a role in every layer, as copies of one layer have them."""
    drawn: dict[tuple[str, str, torch.Size], Tensor] = {}
    for target in unit.targets[1:]:
        for name, bias in modules[target.name].named_parameters():
            if bias.is_meta:
                continue
            level = shared_level(name, "all") if target.kind == "recurrent" else name
            role = (_layout(unit).roles[target.name], level, bias.shape)
            if role not in drawn:
                drawn[role] = torch.randn_like(bias)
            bias.copy_(drawn[role])


def _config(unit: Unit) -> EmbeddingSharing:
    assert isinstance(unit.config, EmbeddingSharing)
    return unit.config


def _layout(unit: Unit) -> Sharing:
    assert isinstance(unit.layout, Sharing)
    return unit.layout


def _fan_in(unit: Unit) -> dict[str, int]:
    """Inputs that a number of each slot's weight is summed with."""
    found = {}
    for target in unit.targets[1:]:
        for weight, slot in _layout(unit).used[target.name].items():
            found[slot] = target.columns if target.kind != "recurrent" else target.shapes[weight][1]
    return found
