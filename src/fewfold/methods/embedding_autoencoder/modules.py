"""The module of the embedding auto-encoder: a low-rank table whose rows may pass through an ELU."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fewfold.assembled import AssembledEmbedding
from fewfold.methods.embedding_autoencoder.config import Activation
from fewfold.methods.low_rank.modules import LowRankEmbedding
from fewfold.stored import StoredDtype


class AutoencoderEmbedding(LowRankEmbedding):
    """``rows = activation(up(latents(ids)))``: ``up`` is the decoder, ``rank → dim``, its bias the mean row.

    Without activation it is a low-rank table, and tied heads run ``(h · up) · latentsᵀ + h · b``. With the ELU they
    need the rebuilt table.

    :param activation: what follows the decoder.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
        stored: StoredDtype | None = None,
        mean_row: bool = True,
        activation: Activation = "linear",
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, rank, padding_idx, scale, stored, mean_row)
        self.activation = activation

    def lookup(self, ids: Tensor) -> Tensor:
        """Gather latents, then decode."""
        return self._activated(super().lookup(ids))

    def attend(self, hidden_states: Tensor) -> Tensor:
        """Through the factors, or with the rebuilt table where an activation stands between."""
        if self.activation == "linear":
            return super().attend(hidden_states)
        return AssembledEmbedding.attend(self, hidden_states)

    def assembled_weight(self) -> Tensor:
        """The decoded table, ``(vocab, dim)``."""
        return self._activated(super().assembled_weight())

    def _activated(self, rows: Tensor) -> Tensor:
        return rows if self.activation == "linear" else F.elu(rows)

    def extra_repr(self) -> str:
        """As every table's, with the activation where there is one."""
        text = super().extra_repr()
        return text if self.activation == "linear" else f"{text}, activation={self.activation}"
