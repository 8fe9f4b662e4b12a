"""Fitting codes and codebooks, and what every size costs and loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.errors import CalibrationError, RecipeError
from fewfold.linalg.gather_sum import chain_is_cheaper
from fewfold.linalg.spectra import damped
from fewfold.linalg.subvectors import LEAST_DAMPING, fit_codes
from fewfold.methods.base import Cost, Method, MethodConfig, Unit
from fewfold.methods.energy import output_energy
from fewfold.methods.subvector_codes.build import build_coded
from fewfold.methods.subvector_codes.config import SubvectorCodes
from fewfold.methods.subvector_codes.sizes import (
    FEW_WORDS,
    MANY_WORDS,
    TABLE_WIDTHS,
    distortion,
    linear_sizes,
    settings,
    settings_bytes,
    settings_numbers,
    stages_of,
    table_sizes,
    widths_of_rank,
)
from fewfold.methods.subvector_codes.table import ShortRows, fit_table, short_rows, table_errors, table_settings
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.stored.stages import StageSpec
from fewfold.surgery.targets import Target

OUTPUT_POWER = 0.5  # rows weigh what the output sees of them to this power: the whole metric trusts gradients too far
SIZE_POWER = 0.5  # sizes are chosen by counts to half the power that words are: rare words carry much of a meaning
RIDGE = 0.1  # pull of a fit in sequence towards the dense weight, as a share of the mean input energy


class SubvectorCodesMethod(Method):
    """``W ≈ diag(scales) · codebook[codes]``; a table: ``(codebook[codes]) · up + mean``."""

    name = "subvector_codes"
    config = SubvectorCodes
    sized_by = "width"

    def takes(self, config: MethodConfig, targets: Sequence[Target]) -> list[Target]:
        """All of them.

        :raises RecipeError: if what is only for linear maps is set, and there are only tables.
        """
        fields = type(config).model_fields
        idle = [name for name in ("rounds", "sweeps") if getattr(config, name) != fields[name].default]
        if idle and targets and all(target.kind == "embedding" for target in targets):
            given = ", ".join(f"{name}={getattr(config, name)}" for name in idle)
            raise RecipeError(
                f"SubvectorCodes({given}): {targets[0].name} is a table, and rounds and sweeps are for linear maps. "
                "Leave them out"
            )
        return list(targets)

    def check(self, unit: Unit) -> None:
        """Sub-vectors and short rows must fit into the rows."""
        (target,) = unit.targets
        config = _config(unit)
        if config.width is not None and config.width > target.columns:
            raise RecipeError(
                f"SubvectorCodes(width={config.width}): {target.name} has rows of {target.columns}; "
                f"sub-vectors have 1…{target.columns} numbers"
            )
        if target.kind == "linear" and (config.rank is not None or config.frequent is not None):
            raise RecipeError(
                f"SubvectorCodes(rank={config.rank}, frequent={config.frequent}): {target.name} is a linear map; short "
                "rows and frequent rows are a table's. Give tables a config of their own: targets='embeddings'"
            )
        if target.kind == "embedding" and config.stages != 1:
            raise RecipeError(
                f"SubvectorCodes(stages={config.stages}): {target.name} is a table, whose rows have one stage (the "
                "frequent ones a further one). Give tables a config of their own: targets='embeddings'"
            )
        if config.rank is not None and config.rank > target.columns:
            raise RecipeError(
                f"SubvectorCodes(rank={config.rank}): {target.name} has rows of {target.columns}; the rank must be "
                f"1…{target.columns}"
            )
        if config.rank is not None and config.width is not None and config.rank % config.width:
            raise RecipeError(
                f"SubvectorCodes(rank={config.rank}, width={config.width}): {target.name} takes whole sub-vectors; "
                f"make the rank a multiple of {config.width}"
            )
        if config.rank is not None and config.width is None and not widths_of_rank(config.rank):
            raise RecipeError(
                f"SubvectorCodes(rank={config.rank}): {target.name} takes whole sub-vectors, and none of the "
                f"widths that a budget tries divides the rank ({', '.join(map(str, TABLE_WIDTHS))}); make it a "
                "multiple of one, or give the width"
            )
        if config.frequent is not None and config.frequent > target.rows:
            raise RecipeError(
                f"SubvectorCodes(frequent={config.frequent}): {target.name} has {target.rows} rows; give fewer"
            )

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """As the config's weighting says."""
        weighting = _config(unit).weighting
        if weighting == "none":
            return "nothing"
        return "inputs" if weighting == "inputs" else "inputs and gradients"

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's width, if it has one."""
        (target,) = unit.targets
        config = _config(unit)
        if config.width is None:
            return None
        if target.kind == "embedding":
            rank = config.rank or target.columns // config.width * config.width
            frequent = (config.frequent, max(1, config.width // 2)) if config.frequent else None
            return table_settings(config.width, _words(config), rank, frequent, *_form(unit), _map_dtype(config))
        shared, scales = _form(unit)
        return settings([StageSpec(config.width, _words(config), shared)] * config.stages, scales)

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Widths and numbers of words (a table's: widths and ranks) in rising bytes, none that another one beats."""
        (target,) = unit.targets
        config, (shared, scales) = _config(unit), _form(unit)
        if target.kind == "embedding":
            forms = [(_words(config), shared)]
            if config.words is None and config.codebooks == "auto":
                forms += [(words, True) for words in MANY_WORDS]
            found = [
                size
                for words, one_book in forms
                for size in table_sizes(
                    target.rows,
                    target.columns,
                    words,
                    config.frequent,
                    one_book,
                    scales,
                    _map_dtype(config),
                    config.rank,
                )
            ]
        else:
            found = linear_sizes(target.columns, shared, config.stages, scales, config.words)
        costs = [self.cost(unit, one).bytes for one in found]
        order = sorted(range(len(found)), key=lambda index: costs[index])
        return [found[index] for index in order if costs[index] < 4 * target.numel] or [found[order[0]]]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """Codes count in bytes only; numbers are those of codebooks, scales and a table's map."""
        (target,) = unit.targets
        numbers = settings_numbers(target.rows, target.columns, settings)
        size = settings_bytes(target.rows, target.columns, settings, unit.config.stored, element_size)
        if target.kind == "embedding":
            latents = settings["rank"] * target.columns
            head = latents + target.columns * bool(settings.get("mean_row"))
            head += sum(settings["rank"] * stage.words for stage in stages_of(settings))
            return Cost(numbers, size, latents + target.heads * min(head, target.numel))
        products = sum(target.columns * stage.words for stage in stages_of(settings))
        gathers = sum(target.rows * stage.positions(target.columns) for stage in stages_of(settings))
        chained = chain_is_cheaper(1, target.numel, products, gathers, kept=True)
        return Cost(numbers, size, products if chained else target.numel)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """What sub-vectors of normal numbers would lose, with the weight's energy and its inputs' metric."""
        (target,) = unit.targets
        weight = weights[target.name]
        if target.kind == "embedding":
            return table_errors(_short(unit, target, weight, statistics, SIZE_POWER), sizes)
        unit_error = _linear_unit(unit, target, weight, statistics)
        found = []
        for size in sizes:
            share = 1.0
            for stage in stages_of(size):
                share *= distortion(stage.width, stage.words)
            found.append(unit_error * share)
        return found

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """Codes, codebooks and scales."""
        (target,) = unit.targets
        config, weight = _config(unit), weights[target.name]
        if target.kind == "embedding":
            short = _short(unit, target, weight, statistics)
            return {target.name: fit_table(weight, short, settings, _book_dtype(unit))}
        moment, metric = _metrics(unit, target, statistics)
        drift = statistics.drift.get(target.module) if config.weighting != "none" else None
        if drift is not None and drift.count:
            weight, moment = _drifted(weight, drift.product / drift.count, drift.cross / drift.count)
        importance = None if metric is None else metric.diagonal().clamp_min(0).pow(OUTPUT_POWER)
        coded = fit_codes(
            weight, stages_of(settings), moment, importance, settings["scales"], config.damping, config.rounds,
            config.sweeps, _book_dtype(unit),
        )  # fmt: skip
        return {target.name: coded.tensors("coded.")}

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """Empty codes and codebooks of the recorded sizes."""
        return build_coded(target, settings, stored, store)


def _config(unit: Unit) -> SubvectorCodes:
    assert isinstance(unit.config, SubvectorCodes)
    return unit.config


def _words(config: SubvectorCodes) -> int:
    return config.words or FEW_WORDS


def _book_dtype(unit: Unit) -> torch.dtype:
    """The grid that words are rounded to while codes can still follow; integer forms are rounded at the end."""
    return unit.config.stored.cast or torch.float32


def _map_dtype(config: SubvectorCodes) -> str:
    return config.map_dtype or ("int8" if config.stored_dtype == "fp16" else config.stored_dtype)


def _form(unit: Unit) -> tuple[bool, bool]:
    """Whether one codebook serves all positions, and whether rows have factors."""
    config, table = _config(unit), unit.targets[0].kind == "embedding"
    shared = not table if config.codebooks == "auto" else config.codebooks == "matrix"
    return shared, not table if config.scales is None else config.scales


def _short(unit: Unit, target: Target, weight: Tensor, statistics: Statistics, power: float = 1.0) -> ShortRows:
    """:param power: of the counts, beside the config's."""
    config = _config(unit)
    counts = None if config.weighting == "none" else statistics.counts(target)
    if counts is None and config.weighting in ("inputs", "inputs_and_outputs"):
        raise CalibrationError(f"{target.name} was never looked up during calibration; pass texts")
    metric = statistics.output_metric(target) if config.weighting in ("auto", "inputs_and_outputs") else None
    return short_rows(weight, counts, metric, power * config.count_power)


def _metrics(unit: Unit, target: Target, statistics: Statistics) -> tuple[Tensor | None, Tensor | None]:
    """The second moment of a linear map's inputs, and the metric at its output.

    The plain second moment: texts of other lengths have other mean inputs, so an error on the mean must not be left to
    a bias.
    """
    weighting = _config(unit).weighting
    moments = None if weighting == "none" else statistics.input_moments(target)
    if weighting in ("inputs", "inputs_and_outputs") and moments is None:
        raise CalibrationError(f"{target.name} saw no calibration input; pass calibration texts that reach it")
    metric = statistics.output_metric(target) if weighting in ("auto", "inputs_and_outputs") else None
    if weighting == "inputs_and_outputs" and metric is None:
        raise CalibrationError(f"{target.name} has no output gradients: the model's output does not depend on it")
    return (None if moments is None else moments.second), metric


def _drifted(weight: Tensor, moment: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """The weight that best gives the dense outputs on the inputs of the compressed part, and their second moment."""
    strength = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    wanted = weight.double() @ (cross + strength)
    return torch.linalg.solve(moment + strength, wanted.T).T, moment


def _linear_unit(unit: Unit, target: Target, weight: Tensor, statistics: Statistics) -> float:
    """The error that a distortion of 1 would make, with each column's error moved onto the columns after it."""
    moment, metric = _metrics(unit, target, statistics)
    energy = weight.double().square().mean(1)
    worth = output_energy(target, weight, statistics) if metric is None else 1.0
    if moment is None:
        return worth * float(energy.sum()) * target.columns / max(float(weight.double().square().sum()), 1e-30)
    kept = damped(moment, max(_config(unit).damping, LEAST_DAMPING))
    spread = torch.linalg.cholesky(torch.linalg.inv(kept), upper=True)
    passed_on = float(spread.diagonal().pow(-2).sum())
    if metric is not None:
        return float(metric.diagonal().clamp_min(0) @ energy) * passed_on
    output = ((weight.double() @ moment) * weight.double()).sum().clamp_min(1e-30)
    return worth * float(energy.sum()) * passed_on / float(output)
