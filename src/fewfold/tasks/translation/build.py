"""Translation models by name, dense or with slim tables, ready to be trained."""

from __future__ import annotations

from typing import Any

import torch

from fewfold.errors import TaskError
from fewfold.models.slim_tables import SlimTables, make_slim
from fewfold.tasks.translation.vocabulary import Vocabularies
from fewfold.training.fresh import draw_linears

KINDS = ("lstm", "transformer", "mask-predict")
POSITIONS = 256  # tokens a sentence may have in a transformer


def build_model(
    kind: str, vocabularies: Vocabularies, *, size: int = 256, layers: int | None = None, dropout: float = 0.3,
    slim: SlimTables | None = None, recipe: Any = None, seed: int = 0,
) -> Any:  # fmt: skip
    """Make a model with fresh weights.

    :param kind: "lstm" (bidirectional encoder, Luong attention, hidden states of twice the size), "transformer"
        (Marian's, feed-forward maps of twice the size) or "mask-predict" (all tokens at once, over a joint vocabulary).
        Tables and head are tied, over a joint vocabulary all three.
    :param vocabularies: They decide the numbers of rows.
    :param size: Numbers of a word's vector, a multiple of 64.
    :param layers: Of encoder and decoder each; None: 1 for "lstm", 3 for the others.
    :param dropout: See the models' configs.
    :param slim: Sizes of slim tables; None for dense ones.
    :param recipe: Methods that the model is built from, as `fewfold.compress` takes them; not with `slim`.
    :param seed: Of the fresh weights; the global generator is left as it was.
    :return: The model.
    :raises TaskError: If the kind or the size is unknown, or both `slim` and `recipe` are given.
    """
    if kind not in KINDS:
        raise TaskError(f"no model {kind!r}: choose {', '.join(KINDS)}")
    if size < 64 or size % 64:
        raise TaskError(f"size={size}: give a multiple of 64")
    if slim is not None and recipe is not None:
        raise TaskError("slim tables and a recipe: give one of them; a recipe can hold SubvectorCodes too")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[kind](vocabularies, size, layers, dropout)
        if slim is not None:
            return make_slim(model, slim)
        if recipe is not None:
            from fewfold.compress import compress

            compress(model, recipe, fit=False, seed=seed)
        return model


def _ids(vocabularies: Vocabularies) -> dict[str, Any]:
    """Sizes and special tokens; they have the same ids on both sides."""
    target = vocabularies.target
    return {
        "vocab_size": len(vocabularies.source), "decoder_vocab_size": None if vocabularies.is_joint else len(target),
        "pad_token_id": target.pad_token_id, "bos_token_id": target.bos_token_id,
        "eos_token_id": target.eos_token_id, "decoder_start_token_id": target.bos_token_id,
    }  # fmt: skip


def _lstm(vocabularies: Vocabularies, size: int, layers: int | None, dropout: float) -> Any:
    from fewfold.models.translation.config import RecurrentTranslationConfig
    from fewfold.models.translation.model import RecurrentTranslationModel

    return RecurrentTranslationModel(
        RecurrentTranslationConfig(
            **_ids(vocabularies),
            embedding_size=size,
            hidden_size=2 * size,
            encoder_layers=layers or 1,
            decoder_layers=layers or 1,
            dropout=dropout,
        )
    )


def _marian(vocabularies: Vocabularies, size: int, layers: int | None, dropout: float) -> dict[str, Any]:
    return {
        **_ids(vocabularies), "d_model": size, "encoder_layers": layers or 3, "decoder_layers": layers or 3,
        "encoder_ffn_dim": 2 * size, "decoder_ffn_dim": 2 * size, "encoder_attention_heads": size // 64,
        "decoder_attention_heads": size // 64, "max_position_embeddings": POSITIONS, "dropout": dropout,
        "attention_dropout": dropout / 3, "activation_function": "relu", "scale_embedding": True,
        "init_std": size**-0.5, "forced_eos_token_id": vocabularies.target.eos_token_id,
        "share_encoder_decoder_embeddings": vocabularies.is_joint,
    }  # fmt: skip


def _transformer(vocabularies: Vocabularies, size: int, layers: int | None, dropout: float) -> Any:
    from transformers import MarianConfig, MarianMTModel

    model = MarianMTModel(MarianConfig(**_marian(vocabularies, size, layers, dropout)))
    draw_linears(model)
    return model


def _mask_predict(vocabularies: Vocabularies, size: int, layers: int | None, dropout: float) -> Any:
    from fewfold.models.mask_predict.config import MaskPredictConfig
    from fewfold.models.mask_predict.model import MaskPredictModel

    if not vocabularies.is_joint:
        raise TaskError("mask-predict takes a joint vocabulary: leave out --separate, or train with joint=True")
    settings = {**_marian(vocabularies, size, layers, dropout), "mask_token_id": vocabularies.target.mask_token_id}
    model = MaskPredictModel(MaskPredictConfig(**settings))
    draw_linears(model)
    return model


_BUILDERS = {"lstm": _lstm, "transformer": _transformer, "mask-predict": _mask_predict}
