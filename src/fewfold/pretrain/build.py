"""Masked language models with fresh weights, dense or built from methods."""

from __future__ import annotations

from typing import Any

import torch

from fewfold.errors import TaskError
from fewfold.pretrain.config import PretrainConfig
from fewfold.pretrain.text import first_and_last


def build_masked_lm(config: PretrainConfig, tokenizer: Any) -> Any:
    """Make the model that a config describes.

    :param config: Of the pretraining.
    :param tokenizer: Decides the rows of the token table.
    :return: A masked language model of transformers or `ShareBertForMaskedLM`; torch's generator is left as it was.
    :raises TaskError: If there is no such family, or it does not take the fields.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    from fewfold.compress import compress
    from fewfold.models import ShareBertConfig
    from fewfold.recipe import Recipe

    rows = -(-len(tokenizer) // config.pad_vocabulary) * config.pad_vocabulary
    ids = {"vocab_size": rows, "pad_token_id": tokenizer.pad_token_id}
    fields = {"max_position_embeddings": config.length, **config.model, **ids}
    try:
        if config.family == "sharebert":
            made: Any = ShareBertConfig.preset(config.size or "small", **fields)
        elif config.size is not None:
            raise TaskError(f"size={config.size!r} is of sharebert: give the sizes of a {config.family} under model")
        else:
            marks = _marks(AutoConfig.for_model(config.family), tokenizer)
            made = AutoConfig.for_model(config.family, **{**marks, **fields})
            if "max_position_embeddings" not in config.model:
                made.max_position_embeddings += _first_position(made)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            model = AutoModelForMaskedLM.from_config(made)
    except (ValueError, TypeError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"family={config.family!r} with {config.model}: {error}") from error
    if config.methods:
        compress(model, Recipe.model_validate({"methods": config.methods}), fit=False, seed=config.training.seed)
    return model


def _first_position(config: Any) -> int:
    """Where a text's positions begin: some families (RoBERTa's) count them from behind the padding token's id."""
    from transformers import AutoModelForMaskedLM

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config)
    tables = [module.position_embeddings for module in model.modules() if hasattr(module, "position_embeddings")]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    return max((place + 1 for place in padding if place is not None), default=0)


def _marks(usual: Any, tokenizer: Any) -> dict[str, int]:
    """The tokens around a text, under the names that a model's usual config has ids of its own vocabulary for."""
    sides = {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 1, "sep_token_id": 1}
    return {
        name: first_and_last(tokenizer)[side] for name, side in sides.items() if getattr(usual, name, None) is not None
    }
