"""An output layer whose table is built from shared sub-vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.errors import ModelError
from fewfold.linalg.gather_sum import chain_is_cheaper, chain_trains_cheaper
from fewfold.models.slim.embedding import SlimEmbedding, _words, ready, slim_matrix
from fewfold.models.slim.sizes import SlimCodes
from fewfold.stored.codes import CodedMatrix


class SlimSoftmax(nn.Module):
    """``logits = h · Eᵀ + b`` with a table E of shared sub-vectors, which need not be built.

    Every sub-vector's product with its part of ``h`` is computed once; a word's logit is the sum of K look-ups
    (Li et al., AAAI 2018). Large batches build E instead where that is cheaper. Losses that do not even hold
    all logits at once are in ``fewfold.models.slim_lm.loss``.

    :param codes: the shape, pool ``positions``; or a ``SlimEmbedding`` whose table is used (tied).
    :param bias: whether every word has a bias.
    :param std: standard deviation of fresh sub-vectors.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codes: SlimCodes | dict[str, Any] | SlimEmbedding,
        bias: bool = True,
        std: float = 0.05,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._tied: tuple[SlimEmbedding, ...] = ()
        if isinstance(codes, SlimEmbedding):
            if (codes.num_embeddings, codes.embedding_dim) != (out_features, in_features):
                raise ModelError(
                    f"SlimSoftmax of {out_features}×{in_features} cannot use a table of "
                    f"{codes.num_embeddings}×{codes.embedding_dim}; give both the same sizes"
                )
            self._tied, self.codes = (codes,), codes.codes  # in a tuple: the embedding registers the table
        else:
            given = codes if isinstance(codes, SlimCodes) else SlimCodes.from_dict(codes, out_features, in_features)
            self.codes = given
        if self.codes.pool != "positions":
            raise ModelError(
                "SlimSoftmax needs a pool for every position (pool='positions'): a free pool would multiply every "
                "sub-vector with every part of the input"
            )
        if not self._tied:
            self.coded = slim_matrix(out_features, in_features, self.codes, std)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    @property
    def is_tied(self) -> bool:
        """Whether the table is an embedding's."""
        return bool(self._tied)

    @property
    def matrix(self) -> CodedMatrix:
        """The coded table, this layer's own or the embedding's that it is tied to."""
        return ready(self._tied[0].coded if self._tied else self.coded)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in_features)`` to logits ``(…, out_features)``, in the cheaper form for so many rows."""
        coded = self.matrix
        batch = max(1, hidden_states.numel() // self.in_features)
        if chain_is_cheaper(batch, coded.rows * coded.columns, coded.macs, coded.gathers, kept=False):
            logits = coded(hidden_states)
            return logits if self.bias is None else logits + self.bias
        return F.linear(hidden_states, coded(), self.bias)

    def chained_loss(self, tokens: int) -> bool:
        """Whether training on so many tokens is cheaper by partial products than with the table built."""
        coded = self.matrix
        sums = coded.positions(0) * self.codes.words
        return chain_trains_cheaper(tokens, coded.rows * coded.columns, coded.macs, coded.gathers, sums)

    def dense(self) -> nn.Linear:
        """A plain layer with the same outputs."""
        weight = self.matrix().detach()
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.clone())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear

    def extra_repr(self) -> str:
        """Sizes."""
        tied = ", tied" if self._tied else ""
        return f"{self.in_features}, {self.out_features}, {_words(self.codes, self.out_features)}{tied}"
