"""Fitting tensor trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewfold.calibration.statistics import Statistics
from fewfold.errors import RecipeError
from fewfold.linalg.tensor_train import balanced_factors, tensor_train, train_ranks
from fewfold.methods.base import STORE, Cost, Unit
from fewfold.methods.energy import output_energy
from fewfold.methods.shared_factors.modules import mix_form
from fewfold.methods.slices.layout import Group, oriented
from fewfold.methods.slices.method import SliceMethod, groups_of
from fewfold.methods.slices.metrics import slices_of
from fewfold.methods.tensor_train.config import TensorTrain
from fewfold.methods.tensor_train.modules import TrainStore
from fewfold.stored import StoredDtype

SIZES = 12  # ranks that a budget chooses from


class TensorTrainMethod(SliceMethod):
    """Trains of cores."""

    name = "tensor_train"
    config = TensorTrain

    def check(self, unit: Unit) -> None:
        """Slices must split into the factors asked for, and the rank must mean something."""
        config, (group,) = _config(unit), groups_of(unit)
        rows, columns = _factors(group, config)
        if config.cores > 2 and (1 in rows or 1 in columns):
            raise RecipeError(
                f"TensorTrain(cores={config.cores}): {group.targets[0].name} has slices of "
                f"{group.shape[0]}×{group.shape[1]}, which do not split into {config.cores} factors; use cores=2"
            )
        full = max(train_ranks(rows, columns, 10**9, group.count))
        if config.rank is not None and config.rank > full:
            raise RecipeError(
                f"TensorTrain(rank={config.rank}): the slices of {group.targets[0].name} split into {rows} × "
                f"{columns}; the rank must be 1…{full}"
            )
        if config.bank is not None and config.bank > group.count:
            raise RecipeError(
                f"TensorTrain(bank={config.bank}): {group.targets[0].name} and the others of its shape have "
                f"{group.count} slices; the bank must be 1…{group.count}"
            )

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's rank, if it has one."""
        config = _config(unit)
        return None if config.rank is None else _settings(config.rank, config.bank)

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Ranks in equal steps of cost."""
        config, (group,) = _config(unit), groups_of(unit)
        full = max(train_ranks(*_factors(group, config), 10**9, group.count))
        low, high = 0, full
        while low < high:  # the last rank that is cheaper than the dense weights
            middle = (low + high + 1) // 2
            cheaper = self.cost(unit, _settings(middle, config.bank)).parameters < unit.dense_parameters
            low, high = (middle, high) if cheaper else (low, middle - 1)
        last = max(low, 1)
        ranks = sorted({max(1, round(last * step / SIZES)) for step in range(1, SIZES + 1)})
        return [_settings(rank, config.bank) for rank in ranks]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """Counted from the store's tensors."""
        stored = unit.config.stored
        with torch.device("meta"):
            modules = self.modules(unit, settings)
            store = next(iter(modules.values())).store
        assert isinstance(store, TrainStore)
        shapes = [(leaf.out_features, leaf.in_features, stored) for leaf in (store.heads, *store.cores)]  # type: ignore[union-attr]
        if store.mix is not None:
            shapes.append((store.mix.out_features, store.mix.in_features, mix_form(stored)))
        macs = sum(min(module.chain_macs(), module.dense_macs()) for module in modules.values())
        return Cost(
            sum(rows * columns for rows, columns, _ in shapes),
            sum(form.matrix_bytes(rows, columns, element_size) for rows, columns, form in shapes),
            macs,
        )

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """The squared relative error of the fit itself, size by size, of what the targets' outputs are worth."""
        config, (group,) = _config(unit), groups_of(unit)
        rows, columns = _factors(group, config)
        slices = slices_of(group.targets, oriented(group, self.rows(unit, weights, statistics)), weights)
        energy = sum(output_energy(target, weights[target.name], statistics) for target in group.targets)
        return [
            tensor_train(slices, rows, columns, size["rank"], size.get("bank")).error ** 2 * energy for size in sizes
        ]

    def store_settings(self, unit: Unit, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Factors of rows and columns, rank, number of slices and of heads."""
        (group,) = groups_of(unit)
        rows, columns = _factors(group, _config(unit))
        return {
            "bank": group.name, "rows": rows, "columns": columns, "rank": settings["rank"], "slices": group.count,
            "size": settings.get("bank"),
        }  # fmt: skip

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """TT-SVD of the stack."""
        (group,) = groups_of(unit)
        shape = self.store_settings(unit, settings)
        slices = slices_of(group.targets, oriented(group, settings["rows"]), weights)
        train = tensor_train(slices, shape["rows"], shape["columns"], shape["rank"], shape["size"])
        tensors = {"heads.weight": train.heads.flatten(1)}
        if train.mix is not None:
            tensors["mix.weight"] = train.mix
        for place, core in enumerate(train.cores):
            tensors[f"cores.{place}.weight"] = core.flatten(1)
        return {STORE: tensors, **{target.name: {} for target in group.targets}}

    def build_store(self, settings: Mapping[str, Any], stored: StoredDtype) -> TrainStore:
        """An empty store of the recorded sizes."""
        if set(settings) != {"bank", "rows", "columns", "rank", "slices", "size"}:
            raise ValueError("a store of trains has the settings bank, rows, columns, rank, slices and size")
        if settings["size"] is not None and not 1 <= settings["size"] <= settings["slices"]:
            raise ValueError(f"{settings['slices']} slices cannot have {settings['size']} first cores")
        return TrainStore(**settings, stored=stored)


def _config(unit: Unit) -> TensorTrain:
    assert isinstance(unit.config, TensorTrain)
    return unit.config


def _settings(rank: int, bank: int | None) -> dict[str, Any]:
    return {"rank": rank} if bank is None else {"rank": rank, "bank": bank}


def _factors(group: Group, config: TensorTrain) -> tuple[list[int], list[int]]:
    rows, columns = (balanced_factors(width, config.cores) for width in group.shape)
    return rows, columns
