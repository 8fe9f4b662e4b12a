"""A bidirectional LSTM over the source; padding on the right leaves no trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import BaseModelOutput

from fewfold.models.translation.config import RecurrentTranslationConfig


class RecurrentEncoder(nn.Module):
    """Source tokens to a state each, both directions side by side."""

    main_input_name = "input_ids"

    def __init__(self, config: RecurrentTranslationConfig) -> None:
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.scale = config.embedding_scale
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            config.embedding_size, config.hidden_size // 2, config.encoder_layers, batch_first=True, bidirectional=True,
            dropout=config.dropout if config.encoder_layers > 1 else 0.0,
        )  # fmt: skip

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """Run both directions over the real tokens of each row.

        :param input_ids: `(batch, tokens)`.
        :param attention_mask: `(batch, tokens)`, ones and then zeros in every row; None: zeros where the padding id is.
        :return: States `(batch, tokens, hidden)`, zero where the mask is.
        :raises ValueError: If a row is empty, or padding stands before a token.
        """
        mask = input_ids != self.pad_token_id if attention_mask is None else attention_mask.bool()
        if not mask[:, 0].all() or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("attention_mask: every row needs a token, and padding on the right only")
        embedded = self.dropout(self.embed_tokens(input_ids) * self.scale)
        packed = pack_padded_sequence(embedded, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        return BaseModelOutput(last_hidden_state=self.dropout(states))


def summary_state(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the real tokens' states, `(batch, hidden)`: what the decoder begins with."""
    weights = attention_mask.to(states.dtype)
    return torch.einsum("bt,bth->bh", weights, states) / weights.sum(dim=1, keepdim=True)
