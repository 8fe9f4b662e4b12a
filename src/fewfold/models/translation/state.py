"""What a recurrent decoder carries from token to token: of constant size, where a transformer keeps every token."""

from __future__ import annotations

from torch import Tensor


class DecoderState:
    """Hidden and cell state of every layer; `generate` passes it on as `past_key_values`.

    :param hidden: `(layers, batch, hidden)`.
    :param cell: `(layers, batch, hidden)`.
    :param tokens: Target tokens read so far.
    """

    is_compileable = False

    def __init__(self, hidden: Tensor, cell: Tensor, tokens: int = 0) -> None:
        self.hidden, self.cell, self.tokens = hidden, cell, tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give every beam the state of the one that it goes on from, in place."""
        self.hidden, self.cell = (part.index_select(1, beam_idx.to(part.device)) for part in (self.hidden, self.cell))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Target tokens read so far."""
        return self.tokens
