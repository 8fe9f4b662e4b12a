"""Which part of a wrapped model is compressed: the transformers model inside, whose config carries the structure."""

from __future__ import annotations

import warnings

from torch import nn
from transformers import PreTrainedModel

from fewfold.errors import FewfoldWarning, ModelError


def inner_model(model: nn.Module) -> nn.Module:
    """The model that a wrapper runs: of ``torch.compile``, ``DataParallel``, sentence-transformers and their like.

    A module that has weights of its own beside a transformers model is taken as it is, with a warning: such a
    structure is not saved with it.

    :return: ``model`` itself where it is a transformers model or holds none.
    :raises ModelError: for a model with PEFT's adapters, whose weights do not stand under their own names.
    """
    if _has_adapters(model):
        raise ModelError(
            f"{type(model).__name__} holds adapters: compress the model first and add them then, or merge them with "
            "model = model.merge_and_unload()"
        )
    inner, inside = unwrapped(model), _outermost(model)
    if isinstance(inner, PreTrainedModel) or not inside:
        return inner
    named = " and ".join(f"model.get_submodule({name!r}), a {type(part).__name__}" for name, part in inside)
    warnings.warn(
        f"{type(model).__name__} is no transformers model, so what it becomes is not saved with it; "
        f"{'each of those' if len(inside) > 1 else 'the one'} that it holds can be compressed and saved by itself: "
        f"{named}",
        FewfoldWarning,
        stacklevel=3,
    )
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """As :func:`inner_model`, and ``model`` itself, without a word, where that has something to say."""
    if isinstance(model, PreTrainedModel) or _has_adapters(model):
        return model
    inside = _outermost(model)
    of_them = {parameter for _, part in inside for parameter in part.parameters()}
    of_sentences = any(kind.__module__.startswith("sentence_transformers.") for kind in type(model).__mro__)
    is_all = of_sentences or of_them.issuperset(model.parameters())
    return inside[0][1] if len(inside) == 1 and is_all else model


def _has_adapters(model: nn.Module) -> bool:
    return any(kind.__name__ == "PeftModel" for kind in type(model).__mro__)


def _outermost(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """The transformers models that a module holds, none inside another."""
    found: list[tuple[str, PreTrainedModel]] = []
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found
