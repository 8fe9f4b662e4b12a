"""Captioners and their vocabularies, ready to be trained."""

from __future__ import annotations

from typing import Any

import torch

from fewfold.errors import TaskError
from fewfold.tasks.captioning.images import Captions
from fewfold.tasks.translation.corpus import Corpus
from fewfold.tasks.translation.vocabulary import train_vocabularies
from fewfold.training.fresh import draw_linears

POSITIONS = 64  # tokens that a caption may have


def train_vocabulary(data: Captions, size: int = 2000) -> Any:
    """Train a byte-pair encoding on the training captions alone.

    :param data: The training split.
    :param size: Entries, special tokens and the 256 bytes among them.
    :return: The tokenizer.
    :raises TaskError: If the vocabulary is too small to hold every byte.
    """
    texts = data.texts()
    return train_vocabularies(Corpus(texts, texts, ("en", "en"), data.source), size, lowercase=True).target


def build_captioner(
    tokenizer: Any, *, size: int = 256, encoder_layers: int = 2, decoder_layers: int = 2, inner: int | None = None,
    dropout: float = 0.2, image_size: int = 64, stem: int = 32, recipe: Any = None, seed: int = 0,
) -> Any:  # fmt: skip
    """Make a captioner with fresh weights.

    :param tokenizer: Of the captions.
    :param size: Width of the model, a multiple of 64.
    :param encoder_layers: Transformer layers over the picture.
    :param decoder_layers: Transformer layers over the caption.
    :param inner: Width of the feed-forward maps; None: twice `size`.
    :param dropout: See `MarianConfig`; attention has a third of it.
    :param image_size: Pixels of a side.
    :param stem: Channels after the first convolution, a multiple of 8.
    :param recipe: Methods that the model is built from, as `fewfold.compress` takes them; None for a dense model.
    :param seed: Of the fresh weights; the global generator is left as it was.
    :return: The model.
    :raises TaskError: If a size cannot be.
    """
    from fewfold.models.captioner.config import CaptionerConfig
    from fewfold.models.captioner.model import CaptionerModel

    for name, value, unit in (("size", size, 64), ("image_size", image_size, 8), ("stem", stem, 8)):
        if value < unit or value % unit:
            raise TaskError(f"{name}={value}: give a multiple of {unit}")
    own = {"image_size": image_size, "stem_size": stem}
    config = CaptionerConfig(
        vocab_size=len(tokenizer), decoder_vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id, forced_eos_token_id=tokenizer.eos_token_id,
        d_model=size, encoder_layers=encoder_layers, decoder_layers=decoder_layers, encoder_ffn_dim=inner or 2 * size,
        decoder_ffn_dim=inner or 2 * size, encoder_attention_heads=size // 64, decoder_attention_heads=size // 64,
        max_position_embeddings=POSITIONS, dropout=dropout, attention_dropout=dropout / 3, scale_embedding=True,
        activation_function="gelu", init_std=size**-0.5, **own,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CaptionerModel(config)
        draw_linears(model)
    if recipe is not None:
        from fewfold.compress import compress

        compress(model, recipe, fit=False, seed=seed)
    return model
