"""A recurrent language model as a transformers model: trains, saves, loads and generates like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from fewfold.errors import CheckpointError, ModelError
from fewfold.models.slim import SlimEmbedding, SlimSoftmax
from fewfold.models.slim_lm.cells import CELLS, LayerState, RecurrentLayer
from fewfold.models.slim_lm.config import SlimLMConfig
from fewfold.models.slim_lm.dropout import sequence_dropout, word_dropout
from fewfold.models.slim_lm.loss import LossOptions, lm_loss
from fewfold.stored.modules import unpack

State = tuple[LayerState, ...]  # by layer (h, c) or (h,), each (batch, width)


@dataclass
class SlimLMOutput(ModelOutput):
    """What the model gives.

    :param loss: mean over tokens, where labels were given.
    :param logits: ``(batch, length, vocab)``, where no labels were given or they were asked for.
    :param last_hidden_state: ``(batch, length, output size)``, of :class:`SlimLMModel`.
    :param state: the hidden state after the last step, by layer; what the next call takes.
    :param hidden_states: inputs of the first layer and outputs of each, where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    state: State | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SlimLMPreTrainedModel(PreTrainedModel):
    """What body and language model share: starts of weights, and loading."""

    config_class = SlimLMConfig
    config: SlimLMConfig
    base_model_prefix = "model"
    _is_stateful = True
    _no_split_modules = ["LSTMLayer", "GRULayer", "SlimEmbedding", "SlimSoftmax"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Slim tables have drawn their own; dense ones start as those do, and output biases at 0."""
        std = self.config.initializer_range
        if isinstance(module, RecurrentLayer):
            module.reset_parameters()
        elif type(module) is nn.Embedding:
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[module.padding_idx] = 0.0
        elif type(module) is nn.Linear:
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """Ties of dense tables; a slim output layer points at the input's table and has no weight to tie."""
        if self.config.input_codes is not None:
            return {}
        return super().get_expanded_tied_weights_keys(all_submodels=all_submodels)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As every model's; codes are checked.

        :raises CheckpointError: if codes or sub-vectors are missing, or a code points outside of its pool.
        """
        told = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        slim = {name for name, module in model.named_modules() if isinstance(module, SlimEmbedding | SlimSoftmax)}
        for key in sorted(info["missing_keys"]):
            if any(key.startswith(f"{name}.") for name in slim):
                raise CheckpointError(
                    f"the checkpoint holds no {key}, which the codes in config.json need: weight file and config.json "
                    "do not belong together"
                )
        unpack(model)
        return (model, info) if told else model


class SlimLMModel(SlimLMPreTrainedModel):
    """The body: input table and recurrent layers."""

    def __init__(self, config: SlimLMConfig) -> None:
        super().__init__(config)
        std, padding = config.initializer_range, config.pad_token_id
        if config.input_codes is None:
            self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.embedding_size, padding)
        else:
            self.embed_tokens = SlimEmbedding(
                config.vocab_size, config.embedding_size, config.input_codes, padding, std
            )
        kind, width, layers = CELLS[config.cell], config.embedding_size, []
        for _ in range(config.num_layers):
            layers.append(kind(width, config.hidden_size, config.projection_size, config.weight_dropout))
            width = config.output_size
        self.layers = nn.ModuleList(layers)
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
        output = SlimLMOutput(
            last_hidden_state=hidden,
            state=tuple(after) if wanted else None,
            hidden_states=tuple(seen) if output_hidden_states else None,
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def _check_state(self, state: State | None, batch: int) -> None:
        if state is None:
            return
        if len(state) != len(self.layers) or any(part.shape[0] != batch for layer in state for part in layer):
            shapes = [tuple(part.shape) for layer in state for part in layer]
            raise ModelError(
                f"state has {len(state)} layers with shapes {shapes}; the model has {len(self.layers)} layers and the "
                f"batch {batch} rows: pass what the call before returned, for the same batch"
            )


class SlimLMForCausalLM(SlimLMPreTrainedModel, GenerationMixin):
    """The language model: body and output layer, dense or slim."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SlimLMConfig) -> None:
        super().__init__(config)
        self.model = SlimLMModel(config)
        width, words, table = config.output_size, config.vocab_size, self.model.embed_tokens
        codes: Any = table if config.tie_word_embeddings and isinstance(table, SlimEmbedding) else config.output_codes
        if codes is None:
            self.lm_head: nn.Module = nn.Linear(width, words, bias=config.output_bias)
        else:
            self.lm_head = SlimSoftmax(width, words, codes, config.output_bias, config.initializer_range)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The input table, dense or slim."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another input table."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The output layer, dense or slim."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Another output layer."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        state: State | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        shift_labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SlimLMOutput | tuple:
        """Logits of the next words, or the loss.

        :param state: what an earlier call returned; gradients run through it unless :meth:`detach_state` cuts them.
        :param labels: ``(batch, length)``, mostly ``input_ids`` itself: they are shifted inside; -100 is left out.
        :param shift_labels: ``(batch, length)`` labels that stand where they are predicted already, for streams whose
            last label is the first word of the next piece; in place of ``labels``.
        :param logits_to_keep: only so many last positions' logits (0: all), or their indices.
        :param return_logits: compute logits although labels were given (default: only without labels).
        :param num_items_in_batch: tokens to divide the summed loss by (Trainer's gradient accumulation).
        """
        body: Any = self.model(
            input_ids, state, attention_mask, inputs_embeds, use_cache, output_hidden_states, return_dict=True
        )
        hidden, loss, logits = body.last_hidden_state, None, None
        if labels is not None and shift_labels is not None:
            raise ModelError("give labels, which are shifted inside, or shift_labels, which are not; not both")
        if labels is not None or shift_labels is not None:
            wanted: Any = shift_labels if labels is None else labels[:, 1:]
            states = hidden if labels is None else hidden[:, :-1]
            loss = lm_loss(states, wanted, self.lm_head, self._loss_options(), num_items_in_batch)
        if return_logits or (loss is None and return_logits is None):
            kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        output = SlimLMOutput(loss=loss, logits=logits, state=body.state, hidden_states=body.hidden_states)
        return output if return_dict is None or return_dict else output.to_tuple()

    def _loss_options(self) -> LossOptions:
        config = self.config
        return LossOptions(config.loss if self.training else "full", config.loss_chunk, config.loss_samples)

    @staticmethod
    def detach_state(state: State | None) -> State | None:
        """The same numbers without the graph that they came from: where truncated back-propagation cuts."""
        return None if state is None else tuple(tuple(part.detach() for part in layer) for layer in state)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        state: State | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        is_first_iteration: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The whole prompt at first, one word and the carried state afterwards."""
        first = state is None if is_first_iteration is None else is_first_iteration
        inputs: dict[str, Any] = {"state": state, "use_cache": use_cache, "logits_to_keep": 1}
        if inputs_embeds is not None and first:
            return {**inputs, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        if first or not use_cache:
            return {**inputs, "input_ids": input_ids, "attention_mask": attention_mask}
        return {**inputs, "input_ids": input_ids[:, -1:]}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # there are no keys and values, only the state

    def _reorder_cache(self, state: State, beam_idx: Tensor) -> State:
        return tuple(tuple(part.index_select(0, beam_idx) for part in layer) for layer in state)


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
