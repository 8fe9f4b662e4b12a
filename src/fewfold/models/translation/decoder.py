"""An LSTM over the target that looks back at the source (Luong et al. 2015, global attention, "general" score)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewfold.models.translation.config import RecurrentTranslationConfig
from fewfold.models.translation.encoder import summary_state
from fewfold.models.translation.state import DecoderState


class Attention(nn.Module):
    """Scores are products of projected queries and source states; padding gets none of the weight."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, queries: Tensor, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Weigh the source's states for every query.

        :param queries: `(batch, queries, hidden)`.
        :param states: `(batch, tokens, hidden)`.
        :param attention_mask: `(batch, tokens)`.
        :return: Contexts, `(batch, queries, hidden)`.
        """
        scores = self.query(queries) @ states.transpose(1, 2)
        scores = scores.masked_fill(~attention_mask.bool()[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1) @ states


class RecurrentDecoder(nn.Module):
    """Target tokens to features for the head.

    The LSTM begins at tanh of a projection of the source's mean state. Its outputs query the source, and a context and
    an output together become one feature. Features are not fed back, so that a whole target is one call.
    """

    def __init__(self, config: RecurrentTranslationConfig) -> None:
        super().__init__()
        size, self.layers = config.hidden_size, config.decoder_layers
        self.embed_tokens = nn.Embedding(config.target_vocab_size, config.embedding_size, config.pad_token_id)
        self.scale = config.embedding_scale
        self.bridge = nn.Linear(size, 2 * self.layers * size)
        self.lstm = nn.LSTM(
            config.embedding_size, size, self.layers, batch_first=True,
            dropout=config.dropout if self.layers > 1 else 0.0,
        )  # fmt: skip
        self.attention = Attention(size)
        self.combine = nn.Linear(2 * size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def first_state(self, states: Tensor, attention_mask: Tensor) -> DecoderState:
        """The state before the first target token."""
        first = self.bridge(summary_state(states, attention_mask))
        hidden, cell = first.unflatten(1, (2, self.layers, -1)).permute(1, 2, 0, 3)
        return DecoderState(hidden.tanh().contiguous(), cell.contiguous())

    def forward(
        self, input_ids: Tensor, state: DecoderState, states: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, DecoderState]:
        """Go on from a state.

        :param input_ids: Target tokens, `(batch, tokens)`.
        :param state: Before the first of these tokens.
        :param states: The source's, `(batch, source tokens, hidden)`.
        :param attention_mask: `(batch, source tokens)`.
        :return: Features `(batch, tokens, embedding)` and the state after the last token.
        """
        embedded = self.dropout(self.embed_tokens(input_ids) * self.scale)
        outputs, (hidden, cell) = self.lstm(embedded, (state.hidden, state.cell))
        outputs = self.dropout(outputs)
        contexts = self.attention(outputs, states, attention_mask)
        features = self.combine(torch.cat([contexts, outputs], dim=-1)).tanh()
        return self.dropout(features), DecoderState(hidden, cell, state.tokens + input_ids.shape[1])
