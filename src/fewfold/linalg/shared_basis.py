"""One basis for several weights, coefficients of their own: ``W_l ~ A_l @ B`` or ``W_l ~ B^T @ A_l``.

The first form shares the side of the inputs, as Wang et al., Basis Sharing: Cross-Layer Parameter Sharing for Large
Language Model Compression (ICLR 2025, section 3); for a single weight it is the whitened SVD of SVD-LLM. The second is
its mirror image, for weights that write to a common space. The shared side is seen through one metric, pooled over the
weights; the private sides each through their own, which costs the optimum nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewfold.linalg.low_rank import TIE_BREAK, LowRankSpectrum, calibrated_spectrum, checked_matrix
from fewfold.linalg.spectra import cholesky_factor, damped

Side = Literal["in", "out"]

OUTPUT_DAMPING = 0.01  # share of an output metric's mean eigenvalue that is added to its diagonal
REFIT_DAMPING = 1e-3  # pull of coefficients towards what they were, as a share of the mean energy that they meet


@dataclass(frozen=True)
class BasisSpectrum:
    """The bases of every rank.

    :param side: which side the basis is on.
    :param spectrum: of the stack of weights, seen through the private sides' metrics.
    :param roots: Cholesky factors of these, one a weight, or None for the identity.
    :param sizes: rows of the stack that belong to each weight.
    """

    side: Side
    spectrum: LowRankSpectrum
    roots: Sequence[Tensor | None]
    sizes: Sequence[int]

    def errors(self) -> Tensor:
        """Squared error of all weights together against rank, ``(full rank + 1,)``; in the pooled metric."""
        return self.spectrum.errors()

    def truncate(self, rank: int) -> tuple[Tensor, list[Tensor]]:
        """The best basis of a rank, ``(rank, width)``, and the coefficients.

        :return: float64; coefficients ``(out, rank)`` a weight, on the outputs' side ``(rank, in)``.
        :raises ValueError: if the rank lies outside its range.
        """
        factors = self.spectrum.truncate(rank)
        coefficients = []
        for root, seen in zip(self.roots, factors.up.split(list(self.sizes)), strict=True):
            own = seen if root is None else torch.linalg.solve_triangular(root.t(), seen, upper=True)
            coefficients.append(own if self.side == "in" else own.t())
        return factors.down, coefficients


def shared_basis(
    weights: Sequence[Tensor],
    moments: Sequence[Tensor] | None = None,
    metrics: Sequence[Tensor] | None = None,
    side: Side = "in",
) -> BasisSpectrum:
    """Decompose weights that share a basis on one side.

    Minimises ``sum_l tr(M_l (W_l - W'_l) C_l (W_l - W'_l)^T)`` with the mean of all ``C_l`` in place of each where the
    basis is on the inputs' side, and the mean of all ``M_l`` where it is on the outputs'.

    :param weights: ``(out, in)`` each; ``in`` is common where the basis is on the inputs' side, else ``out`` is.
    :param moments: ``(in, in)`` each, second moments of the inputs; the identity if absent.
    :param metrics: ``(out, out)`` each, such as second moments of the outputs' gradients; the identity if absent.
    :raises ValueError: if shapes disagree or a number is not finite.
    """
    for name, found in (("moments", moments), ("metrics", metrics)):
        if not weights or (found is not None and len(found) != len(weights)):
            raise ValueError(f"{len(weights)} weights and {len(found or ())} {name}: one each, and at least one weight")
    checked = [
        checked_matrix(weight, None if moments is None else moments[n], None if metrics is None else metrics[n])
        for n, weight in enumerate(weights)
    ]
    inputs = None if moments is None else [damped(moment, TIE_BREAK) for moment in moments]
    outputs = None if metrics is None else [damped(metric, OUTPUT_DAMPING) for metric in metrics]
    if side == "out":
        checked, inputs, outputs = [weight.t() for weight in checked], outputs, inputs
    for number, weight in enumerate(checked):
        if weight.shape[1] != checked[0].shape[1]:
            raise ValueError(
                f"weight {number} has {weight.shape[1]} {'in' if side == 'in' else 'out'}puts, the first "
                f"{checked[0].shape[1]}: weights with a common basis have equally many"
            )
    roots = [None if outputs is None else cholesky_factor(outputs[number]) for number in range(len(checked))]
    seen = [weight if root is None else root.t() @ weight for weight, root in zip(checked, roots, strict=True)]
    pooled = None if inputs is None else sum(inputs[1:], inputs[0]) / len(inputs)
    return BasisSpectrum(side, calibrated_spectrum(torch.cat(seen), pooled), roots, [len(part) for part in seen])


def refitted(
    weight: Tensor,
    basis: Tensor,
    coefficients: Tensor,
    metric: Tensor | None,
    side: Side = "in",
    damping: float = REFIT_DAMPING,
) -> Tensor:
    """The coefficients that suit a basis best, as one weight's own metric sees it: ``W C B^T (B C B^T)^-1``.

    Pulled towards what they were where the basis carries little energy.

    :param weight: ``(out, in)``, what is wanted.
    :param basis: ``(rank, in)``, or ``(rank, out)`` on the outputs' side.
    :param coefficients: ``(out, rank)`` as they were, or ``(rank, in)``.
    :param metric: ``(in, in)`` moment of this weight's inputs, or ``(out, out)`` metric of its outputs; the identity if
        absent.
    :return: float64, as ``coefficients``.
    """
    if side == "out":
        return refitted(weight.t(), basis, coefficients.t(), metric, "in", damping).t()
    basis, coefficients = basis.double(), coefficients.double()
    seen = basis if metric is None else basis @ metric.double()
    inner = seen @ basis.t()
    strength = damping * float(inner.diagonal().mean())
    if strength <= 0:
        return coefficients
    inner = (inner + inner.t()) / 2 + strength * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    right = weight.double() @ seen.t() + strength * coefficients
    return torch.cholesky_solve(right.t(), cholesky_factor(inner)).t()


def published_rank(keep: float, width: int, private: int) -> int:
    """The rank at which ``keep`` of the numbers are left: ``floor(keep · width · private / (width + private))``.

    :param keep: fraction that is kept, above 0 and at most 1.
    :param width: of the basis.
    :param private: the weights' other sides, summed: ``n · d_out`` for ``n`` equal weights.
    """
    return int(keep * width * private / (width + private))
