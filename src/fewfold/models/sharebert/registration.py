"""The Auto classes know ShareBERT: its config from ``import fewfold`` on, its models with the first config."""

from __future__ import annotations

from functools import cache

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


def register_config() -> None:
    """Register the config; doing it twice is harmless."""
    from fewfold.models.sharebert.configuration import ShareBertConfig

    AutoConfig.register(ShareBertConfig.model_type, ShareBertConfig, exist_ok=True)


@cache
def register_models() -> None:
    """Register the models."""
    from fewfold.models.sharebert import heads, modeling
    from fewfold.models.sharebert.configuration import ShareBertConfig

    for auto, model in (
        (AutoModel, modeling.ShareBertModel),
        (AutoModelForMaskedLM, heads.ShareBertForMaskedLM),
        (AutoModelForSequenceClassification, heads.ShareBertForSequenceClassification),
        (AutoModelForTokenClassification, heads.ShareBertForTokenClassification),
        (AutoModelForQuestionAnswering, heads.ShareBertForQuestionAnswering),
    ):
        auto.register(ShareBertConfig, model, exist_ok=True)
