"""The recurrent translation model, as a transformers encoder–decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from fewfold.checkpoint.resize import resizing
from fewfold.errors import ModelError
from fewfold.models.translation.config import RecurrentTranslationConfig
from fewfold.models.translation.decoder import RecurrentDecoder
from fewfold.models.translation.encoder import RecurrentEncoder
from fewfold.models.translation.state import DecoderState


class RecurrentTranslationModel(PreTrainedModel, GenerationMixin):
    """LSTM encoder–decoder with Luong attention; `generate` carries a state of constant size a sentence.

    The tables are plain `nn.Embedding`s and the head a plain `nn.Linear`, tied as the config says, so any method takes
    their place: `fewfold.compress(model, SubvectorCodes(…), fit=False)` for slim tables before training.
    """

    config_class = RecurrentTranslationConfig
    config: RecurrentTranslationConfig
    base_model_prefix = ""
    accepts_loss_kwargs = False
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012  # transformers' own form
    _no_split_modules = ["RecurrentEncoder", "RecurrentDecoder"]  # noqa: RUF012

    def __init__(self, config: RecurrentTranslationConfig) -> None:
        super().__init__(config)
        self.encoder = RecurrentEncoder(config)
        self.decoder = RecurrentDecoder(config)
        self.lm_head = nn.Linear(config.embedding_size, config.target_vocab_size, bias=False)
        if config.decoder_vocab_size is None:
            self._tied_weights_keys = {
                "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
                "lm_head.weight": "encoder.embed_tokens.weight",
            }
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """A joint vocabulary has one table, whatever the config says of the head."""
        if all_submodels or self.config.tie_word_embeddings:
            return super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return {user: home for user, home in (self._tied_weights_keys or {}).items() if user != "lm_head.weight"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                    if (
                        "bias_ih" in name
                    ):  # gates stand in the order input, forget, cell, output: forget nothing at first
                        nn.init.ones_(parameter[module.hidden_size : 2 * module.hidden_size])
                else:
                    nn.init.xavier_uniform_(parameter)

    def get_input_embeddings(self) -> nn.Module:
        """The source's table."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table in the place of the source's; a joint vocabulary has one table."""
        self.encoder.embed_tokens = value  # type: ignore[assignment]
        if self.config.decoder_vocab_size is None:
            self.decoder.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.lm_head = new_embeddings  # type: ignore[assignment]

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The source's table alone, where the target has a vocabulary of its own."""
        if self.config.decoder_vocab_size is None:
            return super()._resize_token_embeddings(*args, **kwargs)
        with resizing(self):
            self.encoder.embed_tokens = self._get_resized_embeddings(self.encoder.embed_tokens, *args, **kwargs)
        return self.encoder.embed_tokens

    def resize_decoder_token_embeddings(self, new_num_tokens: int) -> nn.Module:
        """As Marian's: change the rows of the target's table and of the head.

        :raises ModelError: If the vocabulary is joint.
        """
        if self.config.decoder_vocab_size is None:
            raise ModelError("the vocabulary is joint: call resize_token_embeddings, which resizes both sides")
        with resizing(self):
            self.decoder.embed_tokens = self._get_resized_embeddings(self.decoder.embed_tokens, new_num_tokens)
            self.lm_head = self._get_resized_lm_head(self.lm_head, new_num_tokens)
        self.config.decoder_vocab_size = new_num_tokens
        self.tie_weights()
        return self.decoder.embed_tokens

    def get_encoder(self, modality: str | None = None) -> RecurrentEncoder:
        """What `generate` runs once a sentence."""
        return self.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: DecoderState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Score target tokens.

        :param input_ids: Source tokens, `(batch, source tokens)`; not needed with `encoder_outputs`.
        :param attention_mask: Ones on source tokens, zeros on the padding right of them; None: found by the padding id.
        :param decoder_input_ids: Target tokens read, `(batch, tokens)`; None: the labels moved on by one.
        :param encoder_outputs: The source's states, where they are known.
        :param past_key_values: The decoder's state before these target tokens; None: its first state.
        :param labels: Target tokens to foretell, -100 where none.
        :return: Loss (mean a token, where labels are given), logits `(batch, tokens, vocabulary)`, and the state after
            the last token as `past_key_values`.
        :raises ValueError: If neither source nor its states, or neither target nor labels are given.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("give input_ids or encoder_outputs")
            encoder_outputs = self.encoder(input_ids, attention_mask)
        states = encoder_outputs[0]
        if attention_mask is None:
            known = None if input_ids is None else input_ids != self.config.pad_token_id
            attention_mask = states.new_ones(states.shape[:2], dtype=torch.long) if known is None else known
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids or labels")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        state = past_key_values or self.decoder.first_state(states, attention_mask)
        features, state = self.decoder(decoder_input_ids, state, states, attention_mask)
        logits = self.lm_head(features)
        loss = None if labels is None else cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits, past_key_values=state if use_cache is not False else None,  # type: ignore[arg-type]
            encoder_last_hidden_state=states,
        )  # fmt: skip
        return output.to_tuple() if return_dict is False else output

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels moved on by one, behind the start token."""
        moved = labels.masked_fill(labels < 0, self.config.pad_token_id).roll(1, dims=1)
        moved[:, 0] = self.config.decoder_start_token_id
        return moved

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: DecoderState | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Target tokens that the state has not read yet, and the source."""
        read = 0 if past_key_values is None else past_key_values.tokens
        return {
            "decoder_input_ids": input_ids[:, read:], "past_key_values": past_key_values,
            "attention_mask": attention_mask, "encoder_outputs": encoder_outputs,
        }  # fmt: skip

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """No cache is made beforehand: the first forward makes the state."""
