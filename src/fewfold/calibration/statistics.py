"""What calibration learns about a model: moments of inputs, metrics on outputs, counts of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewfold.surgery.targets import Target


@dataclass
class Moments:
    """Sums over rows ``x`` (one a token that is not padding), in float64.

    :param count: rows seen.
    :param total: ``Σ x``, ``(width,)``.
    :param product: ``Σ x xᵀ``, ``(width, width)``.
    """

    count: int
    total: Tensor
    product: Tensor

    @classmethod
    def zeros(cls, width: int) -> Moments:
        """Nothing seen yet."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Count in ``(tokens, width)`` rows: products in fp32, sums in fp64."""
        rows = rows.detach().float()
        self.count += rows.shape[0]
        self.total += rows.sum(0).double().cpu()
        self.product += (rows.t() @ rows).double().cpu()

    @property
    def mean(self) -> Tensor:
        """``E[x]``."""
        return self.total / max(self.count, 1)

    @property
    def second(self) -> Tensor:
        """``E[x xᵀ]``."""
        return self.product / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """``E[(x − E x)(x − E x)ᵀ]``."""
        return self.second - torch.outer(self.mean, self.mean)


@dataclass
class Drift:
    """Sums over pairs of rows: what a target reads in the dense model, and what it reads once the part before it
    is compressed. float64.

    :param count: pairs seen.
    :param dense_total: ``Σ x``, ``(width,)``.
    :param total: ``Σ x'``, ``(width,)``.
    :param product: ``Σ x' x'ᵀ``, ``(width, width)``.
    :param cross: ``Σ x x'ᵀ``, ``(width, width)``.
    """

    count: int
    dense_total: Tensor
    total: Tensor
    product: Tensor
    cross: Tensor

    @classmethod
    def zeros(cls, width: int) -> Drift:
        """Nothing seen yet."""
        square = (width, width)
        return cls(
            0,
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(square, dtype=torch.float64),
            torch.zeros(square, dtype=torch.float64),
        )

    def add(self, dense_rows: Tensor, rows: Tensor) -> None:
        """Count in ``(tokens, width)`` pairs: products in fp32, sums in fp64."""
        dense_rows, rows = dense_rows.float(), rows.float()
        self.count += rows.shape[0]
        self.dense_total += dense_rows.sum(0).double().cpu()
        self.total += rows.sum(0).double().cpu()
        self.product += (rows.t() @ rows).double().cpu()
        self.cross += (dense_rows.t() @ rows).double().cpu()


@dataclass
class Statistics:
    """The statistics of one model on one calibration text.

    Errors that are computed from them share a unit: the expected squared change of the model's final output, as
    its gradients see it, where ``gradients`` are there; else shares of each target's own output energy.

    :param inputs: moments of the inputs, by the first of the modules that share an input.
    :param leader: by module: which entry of ``inputs`` is its.
    :param gradients: by module: moments of the gradients at its output (empty if not asked for).
    :param token_counts: by embedding module: how often each row was looked up, ``(vocab,)``.
    :param drift: by module: dense inputs against those that the compressed part before it gives (only while a
        model is fitted target by target).
    :param texts: how many calibration texts (or batches) were read.
    :param tokens: how many tokens, padding left out.
    """

    inputs: dict[str, Moments] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, Moments] = field(default_factory=dict)
    token_counts: dict[str, Tensor] = field(default_factory=dict)
    drift: dict[str, Drift] = field(default_factory=dict)
    texts: int = 0
    tokens: int = 0

    def input_moments(self, target: Target) -> Moments | None:
        """Moments of what a linear target is multiplied with, or None if it was never run."""
        moments = self.inputs.get(self.leader.get(target.module, ""))
        return moments if moments is not None and moments.count else None

    def output_metric(self, target: Target) -> Tensor | None:
        """``E[g gᵀ]`` of the gradients at a target's output, ``(rows, rows)``; ``(dim, dim)`` for a table."""
        moments = self.gradients.get(target.module)
        if moments is None or not moments.count:
            return None
        metric = moments.second
        if target.part is not None:
            rows = slice(target.part.start, target.part.stop)
            metric = metric[rows, rows]
        return metric

    def counts(self, target: Target) -> Tensor | None:
        """How often each row of a table was looked up, ``(vocab,)``, or None if unknown."""
        return self.token_counts.get(target.module)


NO_STATISTICS = Statistics()
