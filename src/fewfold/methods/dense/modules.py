"""The modules of the dense method: one stored child and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import AssembledEmbedding, AssembledLinear
from fewfold.methods.factors import bias_of, matrix_of, resized, resized_linear
from fewfold.stored import StoredDtype, make_embedding, make_linear


class DenseLinear(AssembledLinear):
    """``y = full(x)``; the weight and the bias live on ``full``."""

    def __init__(self, in_features: int, out_features: int, bias: bool, stored: StoredDtype) -> None:
        super().__init__(in_features, out_features)
        self.full = make_linear(in_features, out_features, bias, stored)

    @property
    def bias(self) -> nn.Parameter | None:  # type: ignore[override]
        """The bias, kept by ``full``."""
        return bias_of(self.full)

    def chain_macs(self) -> int:
        """``in · out``, as dense."""
        return self.dense_macs()

    @property
    def running_form(self) -> str:  # type: ignore[override]
        """There is one form only."""
        return "chained"

    def chained(self, hidden_states: Tensor) -> Tensor:
        """``full(x)``."""
        return self.full(hidden_states)

    def assembled_weight(self) -> Tensor:
        """The stored matrix, ``(out, in)``."""
        return matrix_of(self.full)

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New outputs get the mean row; kept ones stay equal."""
        self.full = resized_linear(self.full, rows)
        self.out_features = rows


class DenseEmbedding(AssembledEmbedding):
    """Rows of one stored table."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, scale: float, stored: StoredDtype
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, scale)
        self.full = make_embedding(num_embeddings, embedding_dim, padding_idx, stored)

    def chain_macs(self) -> int:
        """0: a look-up multiplies nothing."""
        return 0

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the table."""
        return self.full(ids)

    def attend(self, hidden_states: Tensor) -> Tensor:
        """``h · tableᵀ``."""
        return F.linear(hidden_states, matrix_of(self.full))

    def assembled_weight(self) -> Tensor:
        """The stored table, ``(vocab, dim)``."""
        return matrix_of(self.full)

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New rows get the mean row; kept rows stay equal."""
        self.full, self.padding_idx = resized(self.full, rows, self.padding_idx)
        self.num_embeddings = rows
