"""A recurrent language model as a transformers model: trains, saves, loads and generates like any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin

from fewfold.errors import ModelError
from fewfold.models.slim import SlimEmbedding, SlimSoftmax
from fewfold.models.slim_lm.base import SlimLMOutput, SlimLMPreTrainedModel, State
from fewfold.models.slim_lm.body import SlimLMModel
from fewfold.models.slim_lm.config import SlimLMConfig
from fewfold.models.slim_lm.loss import LossOptions, lm_loss
from fewfold.models.slim_lm.unslim import unslim


class SlimLMForCausalLM(SlimLMPreTrainedModel, GenerationMixin):
    """The language model: body and output layer, dense or slim."""

    word_counts: Tensor | None
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
        counted = config.loss_noise == "unigram"
        self.register_buffer("word_counts", torch.zeros(words, dtype=torch.float64) if counted else None)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The input table, dense or slim."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another input table; a slim output layer that is tied to the old one follows.

        :raises ModelError: if such a layer cannot use it.
        """
        head = self.lm_head
        if isinstance(head, SlimSoftmax) and head.is_tied:
            if not isinstance(value, SlimEmbedding):
                raise ModelError(f"the output is tied to a slim table, {type(value).__name__} is none: call unslim()")
            self.lm_head = SlimSoftmax(head.in_features, head.out_features, value, head.bias is not None)
            if head.bias is not None:
                self.lm_head.bias = head.bias
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
        :param return_logits: whether to compute logits (default: without labels, or where the config asks for them).
        :param num_items_in_batch: tokens to divide the summed loss by (Trainer's gradient accumulation).
        """
        # not an argument of its own: Trainer would take it for a label that every batch must have
        shift_labels: Tensor | None = kwargs.pop("shift_labels", None)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        found: Any = self.model(
            input_ids, state, attention_mask, inputs_embeds, use_cache, output_hidden_states, return_dict=False
        )
        hidden, loss, logits = found[0], None, None
        if labels is not None and shift_labels is not None:
            raise ModelError("give labels, which are shifted inside, or shift_labels, which are not; not both")
        if labels is not None or shift_labels is not None:
            wanted: Any = shift_labels if labels is None else labels[:, 1:]
            states = hidden if labels is None else hidden[:, :-1]
            loss = lm_loss(states, wanted, self.lm_head, self._loss_options(), num_items_in_batch)
        if (loss is None or self.config.return_logits) if return_logits is None else return_logits:
            kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        output = SlimLMOutput(
            loss=loss, logits=logits, state=found[1] if use_cache else None,
            hidden_states=found[-1] if output_hidden_states else None,
        )  # fmt: skip
        return output if return_dict is None or return_dict else output.to_tuple()

    def _loss_options(self) -> LossOptions:
        config = self.config
        kind = config.loss if self.training else "full"
        counts = self.word_counts if kind != "full" else None
        if counts is not None and not bool(counts.any()):
            raise ModelError("loss_noise='unigram' follows word counts: call model.set_word_counts(counts) first")
        return LossOptions(kind, config.loss_chunk, config.loss_samples, counts, config.loss_log_normalizer)

    @property
    def is_slim(self) -> bool:
        """Whether the input or the output layer is slim."""
        return isinstance(self.model.embed_tokens, SlimEmbedding) or isinstance(self.lm_head, SlimSoftmax)

    def unslim(self) -> SlimLMForCausalLM:
        """The dense twin with equal outputs, in place: tables are built, codes and their config are dropped."""
        unslim(self)
        return self

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As every model's, for dense layers; new words have been counted 0 times.

        :raises ModelError: for slim layers, whose codes are drawn for one number of words.
        """
        if self.is_slim and (args or kwargs) and (args or (kwargs.get("new_num_tokens"),))[0] != self.config.vocab_size:
            raise ModelError(
                f"slim layers have codes for {self.config.vocab_size} words: choose vocab_size before training, or "
                "resize the dense twin, model.unslim()"
            )
        if self.is_slim:
            return self.get_input_embeddings()
        table = super().resize_token_embeddings(*args, **kwargs)
        if self.word_counts is not None:
            self.word_counts = F.pad(self.word_counts, (0, self.config.vocab_size - len(self.word_counts)))
        return table

    def set_word_counts(self, counts: Tensor) -> None:
        """How often each word occurs in the training text, ``(vocab,)``: what ``loss_noise='unigram'`` draws after.

        :raises ModelError: if the model draws other noise, or the counts are not one number at least 0 a word.
        """
        if self.word_counts is None:
            raise ModelError(f"loss_noise={self.config.loss_noise!r} needs no counts; set loss_noise='unigram'")
        if tuple(counts.shape) != (self.config.vocab_size,) or bool((counts < 0).any()):
            raise ModelError(
                f"counts have shape {tuple(counts.shape)}; they are {self.config.vocab_size} numbers, at least 0"
            )
        self.word_counts.copy_(counts)

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

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        """A given state, too, stands once for every beam."""
        if kwargs.get("state") is not None:
            kwargs["state"] = tuple(
                tuple(part.repeat_interleave(expand_size, 0) for part in layer) for layer in kwargs["state"]
            )
        return super()._expand_inputs_for_generation(expand_size, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # there are no keys and values, only the state

    def _reorder_cache(self, state: State, beam_idx: Tensor) -> State:
        return tuple(tuple(part.index_select(0, beam_idx) for part in layer) for layer in state)
