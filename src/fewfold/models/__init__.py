"""Families of models that are small by construction and trained from scratch, and the layers they are made of."""

from fewfold.models.slim import SlimCodes, SlimEmbedding, SlimSoftmax
from fewfold.models.slim_lm import SlimLMConfig, SlimLMForCausalLM, SlimLMModel, SlimLMOutput
from fewfold.models.translation.config import RecurrentTranslationConfig
from fewfold.models.translation.model import RecurrentTranslationModel

__all__ = [
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
