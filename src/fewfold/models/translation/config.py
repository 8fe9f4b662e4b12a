"""Settings of the recurrent translation model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class RecurrentTranslationConfig(PreTrainedConfig):
    """Sizes of an LSTM encoder–decoder with attention.

    :param vocab_size: Entries of the source vocabulary, or of the joint one.
    :param decoder_vocab_size: Entries of the target vocabulary; None: the vocabulary is joint, and both sides look up
        the same table.
    :param embedding_size: Numbers of a word's vector; the head multiplies vectors of this size.
    :param hidden_size: Of the decoder's LSTM, and of the encoder's both directions together: an even number.
    :param encoder_layers: Bidirectional layers.
    :param decoder_layers: Layers of the decoder.
    :param dropout: On embeddings, between layers, on the encoder's states and before the head.
    :param initializer_range: Standard deviation of fresh embeddings; None: one over the root of their size. Looked up,
        rows are multiplied by that root, so that they and the head both start at a fitting scale.
    :param tie_word_embeddings: The head multiplies by the decoder's table.
    """

    model_type = "fewfold_recurrent_translation"
    is_encoder_decoder = True
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  # transformers' own form
    attribute_map = {"num_hidden_layers": "encoder_layers"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 8000,
        decoder_vocab_size: int | None = None,
        embedding_size: int = 256,
        hidden_size: int = 512,
        encoder_layers: int = 1,
        decoder_layers: int = 1,
        dropout: float = 0.3,
        initializer_range: float | None = None,
        tie_word_embeddings: bool = True,
        pad_token_id: int = 0,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        decoder_start_token_id: int = 1,
        **kwargs: Any,
    ) -> None:
        if hidden_size % 2:
            raise ValueError(f"hidden_size={hidden_size}: the encoder's two directions share it; give an even number")
        self.vocab_size = vocab_size
        self.decoder_vocab_size = decoder_vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.dropout = dropout
        self.initializer_range = embedding_size**-0.5 if initializer_range is None else initializer_range
        shared: dict[str, Any] = {
            "pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id,
            "decoder_start_token_id": decoder_start_token_id, "tie_word_embeddings": tie_word_embeddings,
            "is_encoder_decoder": True,
        }  # fmt: skip
        super().__init__(**{**kwargs, **shared})

    @property
    def embedding_scale(self) -> float:
        """What looked-up rows are multiplied by."""
        return self.embedding_size**0.5

    @property
    def target_vocab_size(self) -> int:
        """Entries that the head chooses from."""
        return self.decoder_vocab_size or self.vocab_size
