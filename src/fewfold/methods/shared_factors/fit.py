"""Fitting shared factors, with a core a slice or a bank of cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.errors import RecipeError
from fewfold.linalg.low_rank import corrected_bias
from fewfold.linalg.tucker import Stack, decompose
from fewfold.methods.base import STORE, Cost, MethodConfig, Unit
from fewfold.methods.energy import output_energy
from fewfold.methods.shared_factors.config import FactoredConfig, SharedFactors
from fewfold.methods.shared_factors.modules import FactorStore, mix_form
from fewfold.methods.shared_factors.refit import refit
from fewfold.methods.shared_factors.sizes import energy_kept
from fewfold.methods.slices.layout import Group, join_slices, oriented
from fewfold.methods.slices.method import SliceMethod, groups_of
from fewfold.methods.slices.metrics import Weighing, side_metrics, weigh
from fewfold.methods.slices.modules import SlicedLinear
from fewfold.stored import StoredDtype
from fewfold.surgery.roles import family_of
from fewfold.surgery.targets import Target


class FactoredMethod(SliceMethod):
    """``W_i ≈ U · core_i · V``; subclasses say where the cores come from."""

    mixes = False  # whether cores are mixed from a bank

    def units(self, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """One unit a group; all groups together where they share the residual side."""
        units = super().units(config, targets, width)
        assert isinstance(config, FactoredConfig)
        if not config.coupled or len(units) < 2:
            return units
        return [
            Unit(
                self.name,
                config,
                tuple(target for unit in units for target in unit.targets),
                tuple(group for unit in units for group in groups_of(unit)),
            )
        ]

    def check(self, unit: Unit) -> None:
        """Ranks must fit the slices, a bank their number."""
        config = _config(unit)
        name = type(config).__name__
        for group in groups_of(unit):
            # one rank for both sides is cut to what the narrower holds; two must fit
            widths = group.shape if isinstance(config.rank, tuple) else (max(group.shape),) * 2
            for rank, width in zip(_pair(config.rank), widths, strict=True):
                if rank is not None and rank > width and not config.coupled:
                    raise RecipeError(
                        f"{name}(rank={config.rank}): the slices of {_names(group)} are "
                        f"{group.shape[0]}×{group.shape[1]}; the rank must be 1…{width}"
                    )
            size = self.bank_size(config)
            if size is not None and size > group.count:
                raise RecipeError(
                    f"{name}(bank={size}): {_names(group)} have {group.count} slices; the bank must be 1…{group.count}"
                )

    def bank_size(self, config: FactoredConfig) -> int | None:
        """Cores in the bank that the config fixes, if any."""
        return None

    def bank_sizes(self, count: int) -> list[int | None]:
        """The choices that a budget has for ``count`` slices; None keeps a core a slice."""
        return [None]

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's ranks, if it has them."""
        config = _config(unit)
        return None if config.rank is None else _settings(config.rank, self.bank_size(config))

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Every rank (and bank size) that costs less than the dense weights."""
        config, groups = _config(unit), groups_of(unit)
        widest = max(max(group.shape) for group in groups)
        fixed_bank = self.bank_size(config)
        banks = [fixed_bank] if fixed_bank is not None else self.bank_sizes(min(group.count for group in groups))
        step = (
            max(config.multiple_of, config.multiple_of * round(widest / 48 / config.multiple_of) or 1)
            if len(banks) > 1
            else config.multiple_of
        )
        found: list[Mapping[str, Any]] = [
            _settings(rank, bank) for bank in banks for rank in [*range(step, widest, step), widest]
        ]
        found = [size for size in found if self.cost(unit, size).parameters < unit.dense_parameters]
        found = found or [_settings(1, 1 if fixed_bank is None and self.bank_sizes(1) != [None] else fixed_bank)]
        return sorted(found, key=lambda size: self.cost(unit, size).parameters)

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """Counted from the store's tensors; a token's work with ``x · U`` shared by those who read the same."""
        stored, shape = unit.config.stored, self.store_settings(unit, settings)
        matrices = [(rank, width, stored) for rank, width in shape["factors"].values()]
        macs = 0
        for group in groups_of(unit):
            bank = shape["banks"][group.name]
            left, right = shape["factors"][bank["left"]][0], shape["factors"][bank["right"]][0]
            matrices.append(((bank["size"] or bank["slices"]) * left, right, stored))
            if bank["size"] is not None:
                matrices.append((bank["slices"], bank["size"], mix_form(stored)))
            macs += _group_macs(group, settings, left, right)
        numbers = sum(rows * columns for rows, columns, _ in matrices)
        size = sum(form.matrix_bytes(rows, columns, element_size) for rows, columns, form in matrices)
        return Cost(numbers, size, macs)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """What the HOSVD at full size does not keep at every size, of what the targets' outputs are worth."""
        rows = self.rows(unit, weights, statistics)
        errors = [0.0] * len(sizes)
        for group, weighed in zip(groups_of(unit), _weighed(unit, rows, weights, statistics), strict=True):
            pairs = [_ranks(group, settings) for settings in sizes]
            wanted = [(settings.get("bank"), *pair) for settings, pair in zip(sizes, pairs, strict=True)]
            total, kept = energy_kept(weighed, wanted)
            energy = sum(output_energy(target, weights[target.name], statistics) for target in group.targets)
            for number, value in enumerate(kept):
                errors[number] += max(total - value, 0.0) / max(total, 1e-30) * energy
        return errors

    def store_settings(self, unit: Unit, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Factors by name as ``[rank, width]``, and banks."""
        coupled = _config(unit).coupled and len(groups_of(unit)) > 1
        factors: dict[str, list[int]] = {}
        banks: dict[str, dict[str, Any]] = {}
        for group in groups_of(unit):
            ranks = _ranks(group, settings)
            names = (f"left_{group.name}", f"right_{group.shape[1]}") if coupled else ("left", "right")
            for name, rank, width in zip(names, ranks, group.shape, strict=True):
                factors[name] = [rank, width]
            banks[group.name] = {
                "left": names[0], "right": names[1], "slices": group.count, "size": settings.get("bank"),
            }  # fmt: skip
        return {"factors": factors, "banks": banks}

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """HOOI in the metrics of the shared sides; biases take up mean errors where the inputs are known."""
        config, groups = _config(unit), groups_of(unit)
        shape = self.store_settings(unit, settings)
        cuts = {group.name: oriented(group, settings["rows"]) for group in groups}
        seen = _weighed(unit, settings["rows"], weights, statistics)
        stacks = [
            Stack([one.seen(n) for n in range(len(one))], bank["left"], bank["right"], bank["size"])
            for one, bank in zip(seen, (shape["banks"][group.name] for group in groups), strict=True)
        ]
        found = decompose(stacks, {name: rank for name, (rank, _) in shape["factors"].items()}, sweeps=config.sweeps)
        tensors: dict[str, Tensor] = {}
        turns: dict[str, Tensor] = {}
        for stack, one in zip(stacks, seen, strict=True):
            for name, metric in ((stack.left, one.left), (stack.right, one.right)):
                if name not in turns:
                    factor = found.factors[name]
                    if metric is not None:
                        factor = torch.linalg.solve_triangular(metric.t(), factor, upper=True)
                    orthonormal, turns[name] = torch.linalg.qr(factor)
                    tensors[f"factors.{name}.weight"] = orthonormal.t()
        for number, (group, stack, one) in enumerate(zip(groups, stacks, seen, strict=True)):
            cores, mix = found.cores[number].double(), found.mixes[number]
            scales = torch.tensor(one.scales, dtype=torch.float64)
            if mix is None:
                cores = cores / scales[:, None, None]
            else:
                tensors[f"mixes.{group.name}.weight"], cores = _settled(mix / scales[:, None], cores)
            cores = turns[stack.left] @ cores @ turns[stack.right].t()
            tensors[f"cores.{group.name}.weight"] = cores.flatten(0, 1)
        fitted: dict[str, dict[str, Tensor]] = {STORE: tensors}
        for number, group in enumerate(groups):
            fitted.update(_biases(group, cuts[group.name], tensors, stacks[number], weights, statistics, config))
        return fitted

    def refits(self, unit: Unit) -> bool:
        """Cores that are a target's own are; a mix is too narrow for that: refitted alone it does harm."""
        return _config(unit).weighting != "none" and not self.mixes

    def refit(
        self,
        unit: Unit,
        target: Target,
        module: Assembled,
        weight: Tensor,
        bias: Tensor | None,
        statistics: Statistics,
    ) -> None:
        """See :func:`fewfold.methods.shared_factors.refit.refit`."""
        assert isinstance(module, SlicedLinear)
        drift = statistics.drift[target.module]
        metric = statistics.output_metric(target) if _config(unit).weighting != "inputs" else None
        shift = refit(module, weight, drift, metric)
        if shift is not None and module.bias is not None and bias is not None:
            with torch.no_grad():
                module.bias.copy_(bias.double().cpu() + shift)

    def build_store(self, settings: Mapping[str, Any], stored: StoredDtype) -> FactorStore:
        """An empty store of the recorded sizes."""
        if set(settings) != {"factors", "banks"}:
            raise ValueError("a store of factors has the settings factors and banks")
        factors = {name: (int(rank), int(width)) for name, (rank, width) in settings["factors"].items()}
        for name, (rank, width) in factors.items():
            if not 1 <= rank <= width:
                raise ValueError(f"factor {name} of width {width} takes a rank of 1…{width}, not {rank}")
        for name, bank in settings["banks"].items():
            if set(bank) != {"left", "right", "slices", "size"} or not {bank["left"], bank["right"]} <= set(factors):
                raise ValueError(f"bank {name} has the settings left, right (names of factors), slices and size")
            if bank["slices"] < 1 or (bank["size"] is not None and not 1 <= bank["size"] <= bank["slices"]):
                raise ValueError(f"bank {name} of {bank['slices']} slices cannot have {bank['size']} cores")
        return FactorStore(factors, settings["banks"], stored)


class SharedFactorsMethod(FactoredMethod):
    """A core a slice."""

    name = "shared_factors"
    config = SharedFactors


def _weighed(
    unit: Unit, rows: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
) -> list[Weighing]:
    """The slices of every group as the fit sees them; coupled groups see one metric on the side that they share."""
    config, groups = _config(unit), groups_of(unit)
    cuts = [oriented(group, rows) for group in groups]
    shared: dict[int, list[Tensor | None]] = {}
    if config.coupled and len(groups) > 1:
        for group, cut in zip(groups, cuts, strict=True):
            _, columns = side_metrics(group.targets, cut, statistics, config.weighting)
            shared.setdefault(group.shape[1], []).extend(columns)
    return [
        weigh(
            group.targets, cut, weights, statistics, config.weighting, config.normalise, shared.get(group.shape[1])
        )
        for group, cut in zip(groups, cuts, strict=True)
    ]  # fmt: skip


def _config(unit: Unit) -> FactoredConfig:
    assert isinstance(unit.config, FactoredConfig)
    return unit.config


def _names(group: Group) -> str:
    more = len(group.targets) - 1
    return group.targets[0].name + (f" and {more} more" if more else "")


def _pair(rank: int | tuple[int, int] | None) -> tuple[int | None, int | None]:
    return rank if isinstance(rank, tuple) else (rank, rank)


def _settings(rank: int | tuple[int, int], bank: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"rank": list(rank) if isinstance(rank, tuple) else rank}
    return settings if bank is None else {**settings, "bank": bank}


def _ranks(group: Group, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Ranks of the rows' and the columns' factor; a rank for all groups is cut to what a side holds."""
    rank = settings["rank"]
    left, right = rank if isinstance(rank, list | tuple) else (rank, rank)
    return min(left, group.shape[0]), min(right, group.shape[1])


def _group_macs(group: Group, settings: Mapping[str, Any], left: int, right: int) -> int:
    """Multiply-accumulates of a token through all of a group's targets, each in its cheaper form."""
    cuts = oriented(group, settings.get("rows", {}))
    readers: dict[str, int] = {}
    for target in group.targets:
        readers[family_of(target)] = readers.get(family_of(target), 0) + 1
    total = 0
    for target in group.targets:
        cut = cuts[target.name]
        reading, writing = (left, right) if cut.rows == "in" else (right, left)
        read = -(-reading * target.columns // readers[family_of(target)])
        chained = reading * writing * cut.tiles + writing * target.rows
        folded = chained if cut.tiled == "in" else reading * target.rows
        total += min(read + min(chained, folded), target.numel)
    return total


def _settled(mix: Tensor, cores: Tensor) -> tuple[Tensor, Tensor]:
    """A mix whose columns have norm one, the rest in the cores."""
    norms = mix.norm(dim=0).clamp_min(1e-30)
    return mix / norms, cores * norms[:, None, None]


def _biases(
    group: Group,
    cuts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    stack: Stack,
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    config: FactoredConfig,
) -> dict[str, dict[str, Tensor]]:
    """What each target's bias takes up of the mean error."""
    left, right = tensors[f"factors.{stack.left}.weight"], tensors[f"factors.{stack.right}.weight"]
    cores = tensors[f"cores.{group.name}.weight"].unflatten(0, (-1, len(left)))
    mix, first = tensors.get(f"mixes.{group.name}.weight"), group.first_slices()
    found: dict[str, dict[str, Tensor]] = {}
    for target in group.targets:
        moments = statistics.input_moments(target) if config.weighting != "none" else None
        found[target.name] = {}
        if moments is None or not target.bias:
            continue
        chosen = slice(first[target.name], first[target.name] + cuts[target.name].tiles)
        own = cores[chosen] if mix is None else torch.tensordot(mix[chosen], cores, dims=1)
        approximation = join_slices(left.t() @ own @ right, cuts[target.name])
        found[target.name]["bias_shift"] = corrected_bias(weights[target.name], approximation, moments.mean)
    return found
