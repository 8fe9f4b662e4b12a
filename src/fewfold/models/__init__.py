"""Families of models that are small by construction and trained from scratch, and the layers they are made of.

Each is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewfold.models.captioner.config import CaptionerConfig
    from fewfold.models.captioner.model import CaptionerModel
    from fewfold.models.mask_predict.config import MaskPredictConfig
    from fewfold.models.mask_predict.model import MaskPredictModel
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
    from fewfold.models.slim import SlimCodes, SlimEmbedding, SlimSoftmax
    from fewfold.models.slim_lm import SlimLMConfig, SlimLMForCausalLM, SlimLMModel, SlimLMOutput
    from fewfold.models.translation.config import RecurrentTranslationConfig
    from fewfold.models.translation.model import RecurrentTranslationModel

__all__ = [
    "CaptionerConfig",
    "CaptionerModel",
    "MaskPredictConfig",
    "MaskPredictModel",
    "RecurrentTranslationConfig",
    "RecurrentTranslationModel",
    "ShareBertConfig",
    "ShareBertForMaskedLM",
    "ShareBertForQuestionAnswering",
    "ShareBertForSequenceClassification",
    "ShareBertForTokenClassification",
    "ShareBertModel",
    "SlimCodes",
    "SlimEmbedding",
    "SlimLMConfig",
    "SlimLMForCausalLM",
    "SlimLMModel",
    "SlimLMOutput",
    "SlimSoftmax",
    "load_reference_state",
    "materialize",
]

_HOMES = {
    "CaptionerConfig": "captioner.config",
    "CaptionerModel": "captioner.model",
    "MaskPredictConfig": "mask_predict.config",
    "MaskPredictModel": "mask_predict.model",
    "RecurrentTranslationConfig": "translation.config",
    "RecurrentTranslationModel": "translation.model",
    "SlimCodes": "slim",
    "SlimEmbedding": "slim",
    "SlimSoftmax": "slim",
    **{name: "slim_lm" for name in __all__ if name.startswith("SlimLM")},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"fewfold.models has no {name}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fewfold.models.{_HOMES.get(name, 'sharebert')}"), name)
