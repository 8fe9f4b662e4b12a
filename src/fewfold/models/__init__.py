"""Families of models that are trained with shared weights from the start; each is imported at its first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewfold.models.sharebert import (
        ShareBertConfig,
        ShareBertForMaskedLM,
        ShareBertForQuestionAnswering,
        ShareBertForSequenceClassification,
        ShareBertForTokenClassification,
        ShareBertModel,
        load_reference_state,
        materialize,
    )

__all__ = [
    "ShareBertConfig",
    "ShareBertForMaskedLM",
    "ShareBertForQuestionAnswering",
    "ShareBertForSequenceClassification",
    "ShareBertForTokenClassification",
    "ShareBertModel",
    "load_reference_state",
    "materialize",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"fewfold.models has no {name}; it has {', '.join(__all__)}")
    from fewfold.models import sharebert

    return getattr(sharebert, name)
