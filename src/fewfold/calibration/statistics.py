"""What calibration learns about a model: moments of inputs, metrics on outputs, counts of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewfold.surgery.targets import Target

FLUSH_ROWS = 4096  # rows that are summed in fp32 before they enter the fp64 sum


class ProductSum:
    """``Σ left rightᵀ`` over rows: products and short sums in fp32, the long sum in fp64.

    :param left: width of the left rows.
    :param right: width of the right rows.
    """

    def __init__(self, left: int, right: int) -> None:
        self._sum = torch.zeros(left, right, dtype=torch.float64)
        self._short: Tensor | None = None
        self._rows = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Count in pairs of rows, ``(rows, left)`` and ``(rows, right)``, fp32."""
        if self._short is None:
            self._short = left.t() @ right
        else:
            self._short.addmm_(left.t(), right)
        self._rows += left.shape[0]
        if self._rows >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._short is not None:
            self._sum += self._short.cpu()
            self._short, self._rows = None, 0

    @property
    def value(self) -> Tensor:
        """The sum, ``(left, right)`` float64."""
        self._flush()
        return self._sum


class Moments:
    """Sums over rows ``x`` (one a token that is not padding), in float64.

    :param width: numbers of a row.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self._product = ProductSum(width, width)

    @classmethod
    def of(cls, count: int, total: Tensor, product: Tensor) -> Moments:
        """Moments with these sums: rows, ``Σ x`` and ``Σ x xᵀ``."""
        moments = cls(total.shape[0])
        moments.count, moments.total = count, total
        moments._product._sum = product
        return moments

    def add(self, rows: Tensor) -> None:
        """Count in ``(tokens, width)`` rows."""
        rows = rows.detach().float()
        self.count += rows.shape[0]
        self.total += rows.sum(0).double().cpu()
        self._product.add(rows, rows)

    @property
    def product(self) -> Tensor:
        """``Σ x xᵀ``, ``(width, width)``."""
        return self._product.value

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


class Drift:
    """Sums over pairs of rows: ``x``, what a target reads in the dense model, and ``x'``, what it reads once the
    part before it is compressed.

    :param width: numbers of a row.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.dense_total = torch.zeros(width, dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self._product = ProductSum(width, width)
        self._cross = ProductSum(width, width)

    def add(self, dense_rows: Tensor, rows: Tensor) -> None:
        """Count in ``(tokens, width)`` pairs."""
        dense_rows, rows = dense_rows.float(), rows.float()
        self.count += rows.shape[0]
        self.dense_total += dense_rows.sum(0).double().cpu()
        self.total += rows.sum(0).double().cpu()
        self._product.add(rows, rows)
        self._cross.add(dense_rows, rows)

    @property
    def product(self) -> Tensor:
        """``Σ x' x'ᵀ``, ``(width, width)`` float64."""
        return self._product.value

    @property
    def cross(self) -> Tensor:
        """``Σ x x'ᵀ``, ``(width, width)`` float64."""
        return self._cross.value


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
            metric = target.part.take(target.part.take(metric, 0), 1)
        return metric

    def counts(self, target: Target) -> Tensor | None:
        """How often each row of a table was looked up, ``(vocab,)``, or None if unknown."""
        return self.token_counts.get(target.module)


NO_STATISTICS = Statistics()
