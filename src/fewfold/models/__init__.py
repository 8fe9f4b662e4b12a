"""Families of models that are small by construction and trained from scratch, and the layers they are made of."""

from fewfold.models.slim import SlimCodes, SlimEmbedding, SlimSoftmax
from fewfold.models.slim_lm import SlimLMConfig, SlimLMForCausalLM, SlimLMModel, SlimLMOutput

__all__ = [
    "SlimCodes",
    "SlimEmbedding",
    "SlimLMConfig",
    "SlimLMForCausalLM",
    "SlimLMModel",
    "SlimLMOutput",
    "SlimSoftmax",
]
