"""Fitting latents and decoder to a token table, and what every rank costs and loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.errors import CalibrationError, RecipeError
from fewfold.linalg.direction import direction_spectrum, direction_subspace
from fewfold.linalg.low_rank import LowRankFactors
from fewfold.linalg.round_factors import balance
from fewfold.linalg.tables import smoothed_counts
from fewfold.methods.base import Cost, Method, MethodConfig, Unit
from fewfold.methods.embedding_autoencoder.config import EmbeddingAutoencoder
from fewfold.methods.embedding_autoencoder.modules import AutoencoderEmbedding
from fewfold.methods.embedding_autoencoder.training import train
from fewfold.methods.low_rank.fit import table_cost
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.surgery.targets import Target

SMALLEST_ELU = 1e-3  # an ELU's values lie above -1: what lies lower is asked to be this much above it


class EmbeddingAutoencoderMethod(Method):
    """``table ≈ activation(latents · decoderᵀ + b)``."""

    name = "embedding_autoencoder"
    config = EmbeddingAutoencoder

    def units(self, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """Every table stands alone."""
        linear = next((target for target in targets if target.kind != "embedding"), None)
        if linear is not None:
            raise RecipeError(
                f"EmbeddingAutoencoder(targets={config.targets!r}): {linear.name} is no table; the rows of a token "
                "table are encoded. Use targets='embeddings', and another method for linear maps"
            )
        return super().units(config, targets, width)

    def check(self, unit: Unit) -> None:
        """The rank must fit the table."""
        (target,) = unit.targets
        rank, full = _config(unit).rank, min(target.rows, target.columns)
        if rank is not None and rank > full:
            raise RecipeError(
                f"EmbeddingAutoencoder(rank={rank}): {target.name} is {target.rows}×{target.columns}; the rank must "
                f"be 1…{full}"
            )

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """Token counts, if rows weigh by them."""
        config = _config(unit)
        weighs = config.weighting == "counts" or (config.weighting == "auto" and config.solver == "subspace")
        return "inputs" if weighs else "nothing"

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's rank, if it has one."""
        rank = _config(unit).rank
        return None if rank is None else _settings(unit, rank)

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Every rank below break-even, in steps of ``multiple_of``."""
        (target,) = unit.targets
        step, extra = _config(unit).multiple_of, target.columns if _config(unit).mean_row else 0
        last = min((target.numel - extra - 1) // (target.rows + target.columns), target.rows, target.columns)
        ranks = list(range(step, last + 1, step)) or [max(1, last)]
        return [_settings(unit, rank) for rank in ranks]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """``rank · (vocab + dim)`` numbers and ``dim`` for the bias; a token multiplies ``rank · dim``."""
        (target,) = unit.targets
        chained = settings.get("activation", "linear") == "linear"
        return table_cost(target, settings["rank"], settings["mean_row"], unit.config.stored, element_size, chained)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """The squared error of the directions at every rank, where the search for the subspace starts.

        With gradients of the model's output at hand it is brought to their unit by the energy of the table in them.
        """
        (target,) = unit.targets
        table, row_weights = weights[target.name], _row_weights(unit, target, statistics)
        errors = direction_spectrum(table, row_weights, _config(unit).mean_row).errors()
        scale = _output_energy(table, row_weights, statistics.output_metric(target))
        return [float(errors[size["rank"]]) * scale for size in sizes]

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """Latents and decoder of one rank."""
        (target,) = unit.targets
        table, row_weights = weights[target.name], _row_weights(unit, target, statistics)
        config = _config(unit)
        if config.solver == "published":
            trained = train(table, settings["rank"], config, row_weights, target.name).autoencoder
            tensors = {"latents.weight": trained.encode(table.float()), "up.weight": trained.tensors["decoder"]}
            bias = trained.tensors.get("decoder_bias")
        else:
            table = _before(table, config)
            found = direction_subspace(table, settings["rank"], row_weights, mean_row=config.mean_row)
            factors = balance(LowRankFactors(found.encode(table), found.basis.T))
            tensors = {"latents.weight": factors.up, "up.weight": factors.down.T}
            bias = found.mean_row
        if bias is not None:
            tensors["up.bias"] = bias
        return {target.name: tensors}

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """Empty latents and decoder of the recorded rank."""
        rank, full = settings.get("rank"), min(target.rows, target.columns)
        activation = settings.get("activation", "linear")
        if target.kind != "embedding" or not set(settings) <= {"rank", "mean_row", "activation"}:
            raise ValueError("its settings are the rank, mean_row and activation of a table")
        if not isinstance(rank, int) or not 1 <= rank <= full:
            raise ValueError(f"a {target.rows}×{target.columns} table takes a rank of 1…{full}")
        if activation not in ("linear", "elu"):
            raise ValueError(f"activation={activation!r}: linear and elu are known")
        return AutoencoderEmbedding(
            target.rows, target.columns, rank, target.padding_idx, target.scale, stored,
            bool(settings.get("mean_row", True)), activation,
        )  # fmt: skip


def _config(unit: Unit) -> EmbeddingAutoencoder:
    assert isinstance(unit.config, EmbeddingAutoencoder)
    return unit.config


def _settings(unit: Unit, rank: int) -> dict[str, Any]:
    settings = {"rank": rank, "mean_row": _config(unit).mean_row}
    activation = _config(unit).decoder_activation
    return settings if activation == "linear" else {**settings, "activation": activation}


def _row_weights(unit: Unit, target: Target, statistics: Statistics) -> Tensor | None:
    """Smoothed counts to the config's power, ``(vocab,)``, or None where all rows weigh alike."""
    config = _config(unit)
    if EmbeddingAutoencoderMethod().calibrates(unit) == "nothing":
        return None
    counts = statistics.counts(target)
    if counts is None and config.weighting == "counts":
        raise CalibrationError(f"{target.name} was never looked up during calibration; pass texts")
    return None if counts is None else smoothed_counts(counts).pow(config.count_power)


def _before(table: Tensor, config: EmbeddingAutoencoder) -> Tensor:
    """What the decoder has to give before its activation: the table, or its image under the inverse of the ELU."""
    if config.decoder_activation == "linear":
        return table
    return torch.where(table > 0, table, torch.log1p(table.clamp_min(SMALLEST_ELU - 1)))


def _output_energy(table: Tensor, row_weights: Tensor | None, metric: Tensor | None) -> float:
    """``Σ f_i e_iᵀ M e_i`` with weights of sum 1; 1 without a metric."""
    if metric is None:
        return 1.0
    energies = torch.cat([((part.double() @ metric) * part).sum(1) for part in table.split(4096)])
    if row_weights is None:
        return float(energies.mean())
    return float(row_weights.to(energies) @ energies / row_weights.sum())
