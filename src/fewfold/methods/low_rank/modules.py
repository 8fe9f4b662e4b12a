"""The modules of the low-rank method: factors are real ``nn.Linear`` and ``nn.Embedding`` children."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import AssembledEmbedding, AssembledLinear
from fewfold.methods.factors import bias_of, matrix_of, resized, resized_linear
from fewfold.stored import StoredDtype, make_embedding, make_linear


class LowRankLinear(AssembledLinear):
    """``y = up(down(x))`` with ``down: in → rank`` and ``up: rank → out``; the bias lives on ``up``.

    :param square_core: a ``rank × rank`` map between the two (method II of Ren et al., ICLR 2022).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool,
        stored: StoredDtype | None = None,
        square_core: bool = False,
    ) -> None:
        super().__init__(in_features, out_features)
        stored = stored or StoredDtype()
        self.rank = rank
        self.down = make_linear(in_features, rank, False, stored)
        self.core = make_linear(rank, rank, False, stored) if square_core else None
        self.up = make_linear(rank, out_features, bias, stored)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh factors whose product has the variance of a fresh ``nn.Linear``: 1 / (3 · in)."""
        if matrix_of(self.down).is_meta:
            return
        variance = 1.0 / (3 * self.in_features)
        with torch.no_grad():
            matrix_of(self.down).normal_(std=math.sqrt(1.0 / self.in_features))
            matrix_of(self.up).normal_(std=math.sqrt(variance * self.in_features / self.rank))
            if self.core is not None:
                matrix_of(self.core).normal_(std=math.sqrt(1.0 / self.rank))
            if self.bias is not None:
                self.bias.zero_()

    @property
    def bias(self) -> nn.Parameter | None:  # type: ignore[override]
        """The bias, kept by ``up``."""
        return bias_of(self.up)

    def chain_macs(self) -> int:
        """``rank · (in + out)``, and the core's ``rank²``."""
        return self.rank * (self.in_features + self.out_features + (0 if self.core is None else self.rank))

    def chained(self, hidden_states: Tensor) -> Tensor:
        """``up(core(down(x)))``."""
        hidden_states = self.down(hidden_states)
        return self.up(hidden_states if self.core is None else self.core(hidden_states))

    def assembled_weight(self) -> Tensor:
        """``up.weight @ core.weight @ down.weight``, ``(out, in)``."""
        down = matrix_of(self.down)
        return matrix_of(self.up) @ (down if self.core is None else matrix_of(self.core) @ down)

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New outputs get the mean row of ``up``; kept ones stay equal."""
        self.up = resized_linear(self.up, rows)
        self.out_features = rows


class LowRankEmbedding(AssembledEmbedding):
    """``rows = up(latents(ids))`` with ``latents: (vocab, rank)`` and ``up: rank → dim``.

    :param mean_row: whether ``up`` adds a row to every row (its bias, ``(dim,)``).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
        stored: StoredDtype | None = None,
        mean_row: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, scale)
        stored = stored or StoredDtype()
        self.rank = rank
        self.latents = make_embedding(num_embeddings, rank, padding_idx, stored)
        self.up = make_linear(rank, embedding_dim, mean_row, stored)
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Fresh factors whose product has standard deviation ``std``."""
        if matrix_of(self.latents).is_meta:
            return
        with torch.no_grad():
            matrix_of(self.latents).normal_(std=std)
            matrix_of(self.up).normal_(std=1.0 / math.sqrt(self.rank))
            if self.mean_row is not None:
                self.mean_row.zero_()

    @property
    def mean_row(self) -> nn.Parameter | None:
        """What is added to every row, ``(dim,)``."""
        return bias_of(self.up)

    def chain_macs(self) -> int:
        """``rank · dim`` a looked-up row."""
        return self.rank * self.embedding_dim

    def lookup(self, ids: Tensor) -> Tensor:
        """Gather latents, then one product."""
        return self.up(self.latents(ids))

    def attend(self, hidden_states: Tensor) -> Tensor:
        """``(h · up) · latentsᵀ``: the table is never assembled where the chain is cheaper."""
        chain = self.rank * (self.embedding_dim + self.num_embeddings)
        if self.form == "rebuilt" or (self.form == "auto" and chain >= self.embedding_dim * self.num_embeddings):
            return super().attend(hidden_states)
        logits = F.linear(F.linear(hidden_states, matrix_of(self.up).t()), matrix_of(self.latents))
        return logits if self.mean_row is None else logits + (hidden_states @ self.mean_row)[..., None]

    def assembled_weight(self) -> Tensor:
        """``latents @ up.weightᵀ + mean row``, ``(vocab, dim)``."""
        table = matrix_of(self.latents) @ matrix_of(self.up).t()
        return table if self.mean_row is None else table + self.mean_row

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New rows get the mean latent; kept rows stay equal."""
        self.latents, self.padding_idx = resized(self.latents, rows, self.padding_idx)
        self.num_embeddings = rows
