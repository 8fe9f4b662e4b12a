"""The captioner, as a transformers encoder–decoder with `generate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.marian.modeling_marian import MarianDecoder, MarianPreTrainedModel, shift_tokens_right

from fewfold.models.captioner.config import CaptionerConfig
from fewfold.models.captioner.encoder import ImageEncoder


class CaptionerModel(MarianPreTrainedModel, GenerationMixin):
    """An image encoder and Marian's decoder; the head is tied to the decoder's table.

    All layers are plain modules, so any method takes their place: of `EmbeddingSharing`, which carves them out of the
    captions' table, `exclude=["encoder.stem"]` leaves the image side's convolutions as they are.
    """

    config_class = CaptionerConfig
    config: CaptionerConfig
    base_model_prefix = ""
    accepts_loss_kwargs = False
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_missing = ["decoder.embed_positions.weight"]  # noqa: RUF012  # transformers' own form
    _keys_to_ignore_on_save = _keys_to_ignore_on_load_missing
    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__(config)
        self.encoder = ImageEncoder(config)
        self.decoder = MarianDecoder(config)
        self.lm_head = nn.Linear(config.d_model, int(config.decoder_vocab_size or config.vocab_size), bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ImageEncoder):
            nn.init.normal_(module.positions, std=self.config.init_std)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The captions' table."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table in its place."""
        self.decoder.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.lm_head = new_embeddings  # type: ignore[assignment]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As every model's; the captions are the decoder's."""
        table: Any = super().resize_token_embeddings(*args, **kwargs)
        self.config.decoder_vocab_size = table.num_embeddings
        return table

    def get_encoder(self, modality: str | None = None) -> ImageEncoder:
        """What `generate` runs once an image."""
        return self.encoder

    def forward(
        self,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Score captions.

        :param pixel_values: As of `ImageEncoder`; not needed with `encoder_outputs`.
        :param decoder_input_ids: Tokens read, `(batch, tokens)`; None: the labels moved on by one.
        :param encoder_outputs: The images' states, where they are known.
        :param past_key_values: Keys and values of earlier tokens.
        :param labels: Tokens to foretell, -100 where none.
        :return: Loss where labels are given (mean a token; smoothed while training), logits `(batch, tokens,
            vocabulary)`.
        :raises ValueError: If neither images nor states, or neither tokens nor labels are given.
        """
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or encoder_outputs")
            encoder_outputs = self.encoder(pixel_values)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids or labels")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        decoded = self.decoder(
            input_ids=decoder_input_ids, encoder_hidden_states=encoder_outputs[0], past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
        )  # fmt: skip
        logits, loss = self.lm_head(decoded.last_hidden_state), None
        if labels is not None:
            smoothing = self.config.label_smoothing if self.training else 0.0
            loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing)
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits, past_key_values=decoded.past_key_values,
            encoder_last_hidden_state=encoder_outputs[0],
        )  # fmt: skip
        return output.to_tuple() if return_dict is False else output

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels moved on by one, behind the start token."""
        return shift_tokens_right(labels, int(self.config.pad_token_id or 0), int(self.config.decoder_start_token_id))
