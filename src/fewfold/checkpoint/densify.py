"""A plain model again: assemble every weight once and put the dense modules back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from fewfold.checkpoint.config import structure_of
from fewfold.errors import TargetError
from fewfold.surgery.replace import restore_modules
from fewfold.surgery.wrappers import unwrapped

if TYPE_CHECKING:
    from fewfold.models.slim_lm import SlimLMForCausalLM


def densify(model: nn.Module, *, share: bool = False) -> Any:
    """Turn a compressed model into a plain one with equal outputs, in place.

    It loads without fewfold, and is as large as before compression. A model of ours with slim layers becomes its dense
    twin.

    :param model: compressed, also inside a wrapper as of :func:`fewfold.compress`.
    :param share: layers whose weights are one carved weight keep one tensor in common: for running in little memory.
        transformers does not save such a model; densify without it for that.
    :return: ``model``.
    :raises TargetError: if the model is not compressed.
    """
    given, model = model, unwrapped(model)
    compressed, slim = structure_of(model) is not None, bool(getattr(model, "is_slim", False))
    if not compressed and not slim:
        raise TargetError(f"this {type(model).__name__} is not compressed by fewfold: there is nothing to densify")
    if compressed:
        restore_modules(model, share)
    if slim:
        cast("SlimLMForCausalLM", model).unslim()
    config = getattr(model, "config", None)
    if config is not None:
        config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("fewfold_structure", None)
    return given
