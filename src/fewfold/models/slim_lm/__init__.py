"""Recurrent language models, LSTM or GRU, with slim or dense input and output layers."""

from fewfold.models.slim_lm.base import SlimLMOutput
from fewfold.models.slim_lm.body import SlimLMModel
from fewfold.models.slim_lm.config import SlimLMConfig
from fewfold.models.slim_lm.model import SlimLMForCausalLM

__all__ = ["SlimLMConfig", "SlimLMForCausalLM", "SlimLMModel", "SlimLMOutput"]
