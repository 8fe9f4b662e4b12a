"""ShareBERT: an encoder whose weights are carved out of its factored token table.

Hu, Cavicchioli, Berardinelli, Capotondi, *ShareBERT: Embeddings Are Capable of Learning Hidden Layers* (AAAI 2024).
What is here is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewfold.models.sharebert.configuration import ShareBertConfig
    from fewfold.models.sharebert.heads import (
        ShareBertForMaskedLM,
        ShareBertForQuestionAnswering,
        ShareBertForSequenceClassification,
        ShareBertForTokenClassification,
    )
    from fewfold.models.sharebert.modeling import ShareBertModel, ShareBertPreTrainedModel
    from fewfold.models.sharebert.plain import materialize
    from fewfold.models.sharebert.reference import load_reference_state, reference_config

_HOMES = {
    "ShareBertConfig": "configuration",
    "ShareBertForMaskedLM": "heads",
    "ShareBertForQuestionAnswering": "heads",
    "ShareBertForSequenceClassification": "heads",
    "ShareBertForTokenClassification": "heads",
    "ShareBertModel": "modeling",
    "ShareBertPreTrainedModel": "modeling",
    "load_reference_state": "reference",
    "materialize": "plain",
    "reference_config": "reference",
}

__all__ = [
    "ShareBertConfig",
    "ShareBertForMaskedLM",
    "ShareBertForQuestionAnswering",
    "ShareBertForSequenceClassification",
    "ShareBertForTokenClassification",
    "ShareBertModel",
    "ShareBertPreTrainedModel",
    "load_reference_state",
    "materialize",
    "reference_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"{__name__} has no {name}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
