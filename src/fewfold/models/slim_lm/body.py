"""The body of a recurrent language model: input table and layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewfold.errors import ModelError
from fewfold.models.slim import SlimEmbedding
from fewfold.models.slim_lm.base import SlimLMOutput, SlimLMPreTrainedModel, State
from fewfold.models.slim_lm.cells import CELLS
from fewfold.models.slim_lm.config import SlimLMConfig
from fewfold.models.slim_lm.dropout import sequence_dropout, word_dropout
from fewfold.models.slim_lm.gated_conv import GatedConvLayer


class SlimLMModel(SlimLMPreTrainedModel):
    """The body: input table and recurrent or gated convolutional layers."""

    def __init__(self, config: SlimLMConfig) -> None:
        super().__init__(config)
        std, padding = config.initializer_range, config.pad_token_id
        if config.input_codes is None:
            self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.embedding_size, padding)
        else:
            self.embed_tokens = SlimEmbedding(
                config.vocab_size,
                config.embedding_size,
                config.input_codes,
                None if config.tie_word_embeddings else padding,  # the output layer needs the row as it is
                std,
            )
        widths = [config.embedding_size] + [config.output_size] * (config.num_layers - 1)
        self.layers = nn.ModuleList(_layer(config, width) for width in widths)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The input table, dense or slim."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another input table."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        state: State | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SlimLMOutput | tuple:
        """``input_ids`` ``(batch, length)`` to hidden states ``(batch, length, output size)`` and the state.

        :param state: the hidden state before the first step (None: zeros).
        :param attention_mask: ``(batch, length)``, 0 at padding, which leaves the state as it is on either side.
        :param inputs_embeds: ``(batch, length, embedding size)`` in place of ids.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("SlimLMModel takes input_ids or inputs_embeds, one of them")
        config = self.config
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if self.training and config.embedding_dropout:
                assert input_ids is not None
                inputs_embeds = word_dropout(
                    inputs_embeds, input_ids, config.vocab_size, config.embedding_dropout, self.training
                )
        hidden: Tensor = inputs_embeds
        mask = _mask(attention_mask, hidden)
        self._check_state(state, hidden.shape[0])
        hidden = sequence_dropout(hidden, config.input_dropout, self.training, config.variational)
        seen, after = [hidden], []
        for index, layer in enumerate(self.layers):
            hidden, layer_state = layer(hidden, None if state is None else state[index], mask)
            after.append(layer_state)
            last = index == len(self.layers) - 1
            rate = config.output_dropout if last else config.hidden_dropout
            hidden = sequence_dropout(hidden, rate, self.training, config.variational)
            seen.append(hidden)
        wanted = config.use_cache if use_cache is None else use_cache
        carried, all_states = tuple(after) if wanted else None, tuple(seen) if output_hidden_states else None
        if return_dict is None or return_dict:
            return SlimLMOutput(last_hidden_state=hidden, state=carried, hidden_states=all_states)
        return tuple(part for part in (hidden, carried, all_states) if part is not None)

    def _check_state(self, state: State | None, batch: int) -> None:
        if state is None:
            return
        if len(state) != len(self.layers) or any(part.shape[0] != batch for layer in state for part in layer):
            shapes = [tuple(part.shape) for layer in state for part in layer]
            raise ModelError(
                f"state has {len(state)} layers with shapes {shapes}; the model has {len(self.layers)} layers and the "
                f"batch {batch} rows: pass what the call before returned, for the same batch"
            )


def _layer(config: SlimLMConfig, width: int) -> nn.Module:
    if config.cell == "gated_conv":
        return GatedConvLayer(width, config.hidden_size, config.kernel_size)
    return CELLS[config.cell](width, config.hidden_size, config.projection_size, config.weight_dropout)


def _mask(attention_mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """As booleans, or None where nothing is padding; a longer mask counts from its end."""
    if attention_mask is None:
        return None
    batch, length = hidden.shape[:2]
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
        raise ModelError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; inputs of {batch}×{length} need the same"
        )
    mask = attention_mask[:, -length:].bool()
    return None if bool(mask.all()) else mask
