"""Families of models that are small by construction and trained from scratch, and the layers they are made of."""

from fewfold.models.mask_predict.config import MaskPredictConfig
from fewfold.models.mask_predict.model import MaskPredictModel
from fewfold.models.slim import SlimCodes, SlimEmbedding, SlimSoftmax
from fewfold.models.slim_lm import SlimLMConfig, SlimLMForCausalLM, SlimLMModel, SlimLMOutput
from fewfold.models.translation.config import RecurrentTranslationConfig
from fewfold.models.translation.model import RecurrentTranslationModel

__all__ = [
    "MaskPredictConfig",
    "MaskPredictModel",
    "RecurrentTranslationConfig",
    "RecurrentTranslationModel",
    "SlimCodes",
    "SlimEmbedding",
    "SlimLMConfig",
    "SlimLMForCausalLM",
    "SlimLMModel",
    "SlimLMOutput",
    "SlimSoftmax",
]
