"""Recurrent language models, LSTM or GRU, with slim or dense input and output layers."""

from fewfold.models.slim_lm.config import SlimLMConfig
from fewfold.models.slim_lm.model import SlimLMForCausalLM, SlimLMModel, SlimLMOutput

__all__ = ["SlimLMConfig", "SlimLMForCausalLM", "SlimLMModel", "SlimLMOutput"]
