"""Fitting shared bases, and what every rank costs and loses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Drift, Statistics
from fewfold.errors import CalibrationError, RecipeError
from fewfold.linalg.low_rank import LowRankFactors
from fewfold.linalg.regression import ridge_solution
from fewfold.linalg.round_factors import balance
from fewfold.linalg.shared_basis import BasisSpectrum, published_rank, refitted, shared_basis
from fewfold.methods.base import STORE, Cost, Method, MethodConfig, Records, Unit
from fewfold.methods.energy import output_energy
from fewfold.methods.factors import matrix_of
from fewfold.methods.shared_basis.config import SharedBasis
from fewfold.methods.shared_basis.layout import BasisLayout, basis_groups
from fewfold.methods.shared_basis.modules import BasisLinear, BasisStore, make_basis_linear
from fewfold.methods.shared_basis.rounding import is_coarse, kept, met_by_coefficients
from fewfold.store import Store
from fewfold.stored import StoredDtype, StoredLinear
from fewfold.surgery.roles import family_of
from fewfold.surgery.targets import Target

RIDGE = 0.01  # pull of a fit in sequence towards the dense weight, as a share of the mean input energy


class SharedBasisMethod(Method):
    """``W_l ≈ A_l · B`` within a group."""

    name = "shared_basis"
    config = SharedBasis

    def units(self, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """One unit a group of weights with a common basis."""
        assert isinstance(config, SharedBasis)
        table = next((target for target in targets if target.kind != "linear"), None)
        if table is not None:
            raise RecipeError(
                f"SharedBasis(targets={config.targets!r}): {table.name} is a table, and a basis is shared by linear "
                "maps. Use targets='linears', and another method for the embeddings"
            )
        return [Unit(self.name, config, members, layout) for members, layout in basis_groups(config, targets)]

    def check(self, unit: Unit) -> None:
        """The rank must fit the group."""
        rank, layout = _config(unit).rank, _layout(unit)
        if rank is not None and rank > layout.full:
            more = f" and {len(unit.targets) - 1} more" if len(unit.targets) > 1 else ""
            raise RecipeError(
                f"SharedBasis(rank={rank}): {unit.name}{more} have {layout.width} numbers on the side that they share "
                f"and {layout.private} on the others; the rank must be 1…{layout.full}"
            )

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """As the config's weighting says."""
        weighting = _config(unit).weighting
        if weighting == "none":
            return "nothing"
        return "inputs" if weighting == "inputs" else "inputs and gradients"

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's rank, or that of the fraction it keeps."""
        config, layout = _config(unit), _layout(unit)
        if config.keep is not None:
            return {"rank": max(1, published_rank(config.keep, layout.width, layout.private))}
        return None if config.rank is None else {"rank": config.rank}

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Every rank below break-even, in steps of ``multiple_of``."""
        step, layout = _config(unit).multiple_of, _layout(unit)
        last = min((unit.dense_parameters - 1) // layout.numbers(1), layout.full)
        return [{"rank": rank} for rank in range(step, last + 1, step)] or [{"rank": max(1, last)}]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """The basis once, coefficients a weight; a token reads once for all that read the same."""
        rank, layout, stored = settings["rank"], _layout(unit), unit.config.stored
        size, macs = stored.matrix_bytes(rank, layout.width, element_size), 0
        readers = Counter(family_of(target) for target in unit.targets)
        for target in unit.targets:
            if layout.side == "in":
                size += stored.matrix_bytes(target.rows, rank, element_size)
                chain = -(-rank * layout.width // readers[family_of(target)]) + rank * target.rows
            else:
                size += stored.matrix_bytes(rank, target.columns, element_size)
                chain = rank * (target.rows + target.columns)
            macs += min(chain, target.numel)
        return Cost(layout.numbers(rank), size, macs)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """The discarded part of the stack's spectrum at every rank."""
        spectrum, scale = _spectrum(unit, weights, statistics)
        errors = spectrum.errors()
        return [float(errors[size["rank"]]) * scale for size in sizes]

    def records(self, unit: Unit, settings: Mapping[str, Any]) -> Records:
        """Rank and side of every target, and the store's width."""
        layout = _layout(unit)
        own = {"rank": settings["rank"], "side": layout.side}
        return Records({target.name: own for target in unit.targets}, {**own, "width": layout.width})

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """The best basis of the group, every weight's coefficients for it, and biases that take up mean errors."""
        layout, stored = _layout(unit), unit.config.stored
        wanted, moments, metrics = _wanted(unit, weights, statistics)
        basis, coefficients = _balanced(shared_basis(wanted, moments, metrics, layout.side), settings["rank"])
        pooled = sum(moments[1:], moments[0]) / len(moments) if moments is not None and layout.side == "in" else None
        tensors, basis = kept(basis, pooled, stored)
        fitted = {STORE: {f"basis.{name}": tensor for name, tensor in tensors.items()}}
        own = moments if layout.side == "in" else metrics
        anew = is_coarse(stored) or (_config(unit).refit and len(unit.targets) > 1)
        for number, target in enumerate(unit.targets):
            found, moment = coefficients[number], None if moments is None else moments[number]
            if own is not None and anew:
                found = refitted(wanted[number], basis, found, own[number], layout.side)
            tensors, found = kept(found, met_by_coefficients(basis, moment, layout.side), stored)
            fitted[target.name] = {f"coefficients.{name}": tensor for name, tensor in tensors.items()}
            if target.bias and moments is not None:
                dense = found @ basis if layout.side == "in" else basis.t() @ found
                mean, dense_mean = _means(target, statistics)
                fitted[target.name]["bias_shift"] = weights[target.name].double() @ dense_mean - dense @ mean
        return fitted

    def refits(self, unit: Unit) -> bool:
        """Groups of several are fitted before the pass through the layers, their coefficients again in it."""
        return _config(unit).refit and _config(unit).weighting != "none" and len(unit.targets) > 1

    @torch.no_grad()
    def refit(
        self,
        unit: Unit,
        target: Target,
        module: Assembled,
        weight: Tensor,
        bias: Tensor | None,
        statistics: Statistics,
    ) -> None:
        """Coefficients for what comes in by now: the best map without limits, seen through the basis."""
        assert isinstance(module, BasisLinear)
        leaf, side, basis = module.coefficients, module.store.side, module.store().double().cpu()
        metric = statistics.output_metric(target) if _config(unit).weighting != "inputs" else None
        wanted, moment = _on_present_inputs(target, weight, statistics.drift[target.module])
        found = refitted(wanted, basis, matrix_of(leaf).cpu(), moment if side == "in" else metric, side)
        tensors, found = kept(found, met_by_coefficients(basis, moment, side), unit.config.stored)
        if "codes" in tensors and isinstance(leaf, StoredLinear):
            leaf.set_grid_(tensors["codes"], tensors["scales"])
        else:
            matrix_of(leaf).copy_(found)
            if isinstance(leaf, StoredLinear):
                leaf.round_()
        if module.bias is not None and bias is not None:
            mean, dense_mean = _means(target, statistics)
            found = module.assembled_weight().double().cpu()
            module.bias.copy_(bias.double().cpu() + weight.double() @ dense_mean - found @ mean)

    def build_store(self, settings: Mapping[str, Any], stored: StoredDtype) -> BasisStore:
        """An empty basis of the recorded size."""
        if set(settings) != {"rank", "side", "width"} or settings["side"] not in ("in", "out"):
            raise ValueError("a basis has the settings rank, side ('in' or 'out') and width")
        if not 1 <= settings["rank"] <= settings["width"]:
            raise ValueError(f"a basis of width {settings['width']} takes a rank of 1…{settings['width']}")
        return BasisStore(settings["width"], settings["rank"], settings["side"], stored)

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """Empty coefficients that point at the basis of ``store``."""
        if not isinstance(store, BasisStore):
            raise ValueError("the store that holds its basis is missing")
        width = target.columns if store.side == "in" else target.rows
        if dict(settings) != {"rank": store.rank, "side": store.side} or width != store.width:
            raise ValueError(f"its basis is {store.rank}×{store.width} on side {store.side!r}, {width} are needed")
        return make_basis_linear(target, store, stored, family_of(target))


def _config(unit: Unit) -> SharedBasis:
    assert isinstance(unit.config, SharedBasis)
    return unit.config


def _layout(unit: Unit) -> BasisLayout:
    assert isinstance(unit.layout, BasisLayout)
    return unit.layout


def _seen(unit: Unit, statistics: Statistics) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Input moments and output metrics of all members, each None where the fit does not use them.

    :raises CalibrationError: if the weighting asks for statistics that are not there.
    """
    weighting = _config(unit).weighting
    if weighting == "none":
        return None, None
    moments, metrics = [], []
    for target in unit.targets:
        found = statistics.input_moments(target)
        metric = statistics.output_metric(target) if weighting != "inputs" else None
        if found is None and weighting != "auto":
            raise CalibrationError(f"{target.name} saw no calibration input; pass calibration texts that reach it")
        if metric is None and weighting == "inputs_and_outputs":
            raise CalibrationError(f"{target.name} has no output gradients: the model's output does not depend on it")
        if found is not None:
            moments.append(found.covariance if target.bias else found.second)
        if metric is not None:
            metrics.append(metric)
    known = len(moments) == len(unit.targets)
    return moments if known else None, metrics if known and len(metrics) == len(moments) else None


def _spectrum(unit: Unit, weights: Mapping[str, Tensor], statistics: Statistics) -> tuple[BasisSpectrum, float]:
    """The group's decomposition, and what makes its errors comparable with other units'."""
    wanted, moments, metrics = _wanted(unit, weights, statistics)
    spectrum = shared_basis(wanted, moments, metrics, _layout(unit).side)
    if metrics is not None:
        return spectrum, 1.0
    worth = sum(output_energy(target, weights[target.name], statistics) for target in unit.targets)
    return spectrum, worth / max(float(spectrum.spectrum.gains.sum()), torch.finfo(torch.float64).tiny)


def _wanted(
    unit: Unit, weights: Mapping[str, Tensor], statistics: Statistics
) -> tuple[list[Tensor], list[Tensor] | None, list[Tensor] | None]:
    """The maps that are wanted, their input moments and output metrics; in sequence, those for the present inputs."""
    moments, metrics = _seen(unit, statistics)
    wanted = [weights[target.name].double() for target in unit.targets]
    for number, target in enumerate(unit.targets):
        drift = statistics.drift.get(target.module)
        if moments is not None and drift is not None and drift.count:
            wanted[number], moments[number] = _on_present_inputs(target, wanted[number], drift)
    return wanted, moments, metrics


def _on_present_inputs(target: Target, weight: Tensor, drift: Drift) -> tuple[Tensor, Tensor]:
    """The map that best gives the dense outputs on what comes in by now, and the moment of that."""
    moment, cross = drift.product / drift.count, drift.cross / drift.count
    if target.bias:  # the bias takes up the means
        mean, dense_mean = drift.total / drift.count, drift.dense_total / drift.count
        moment, cross = moment - torch.outer(mean, mean), cross - torch.outer(dense_mean, mean)
    return ridge_solution(moment, weight.double() @ cross, weight, RIDGE)


def _means(target: Target, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Mean of the present inputs and of the dense ones."""
    drift = statistics.drift.get(target.module)
    if drift is not None and drift.count:
        return drift.total / drift.count, drift.dense_total / drift.count
    moments = statistics.input_moments(target)
    assert moments is not None
    return moments.mean, moments.mean


def _balanced(spectrum: BasisSpectrum, rank: int) -> tuple[Tensor, list[Tensor]]:
    """Basis and coefficients of a rank, their norms balanced over the whole stack."""
    basis, coefficients = spectrum.truncate(rank)
    rows = [own if spectrum.side == "in" else own.t() for own in coefficients]
    stack = balance(LowRankFactors(torch.cat(rows), basis))
    parts = stack.up.split([len(part) for part in rows])
    return stack.down, [part if spectrum.side == "in" else part.t() for part in parts]
