"""Make transformers know the models of this library by their names in config.json."""

from __future__ import annotations


def install_models() -> None:
    """Register with AutoConfig, AutoModel and AutoModelForCausalLM; doing it twice is harmless."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from fewfold.models.slim_lm import SlimLMConfig, SlimLMForCausalLM, SlimLMModel

    AutoConfig.register(SlimLMConfig.model_type, SlimLMConfig, exist_ok=True)
    AutoModel.register(SlimLMConfig, SlimLMModel, exist_ok=True)
    AutoModelForCausalLM.register(SlimLMConfig, SlimLMForCausalLM, exist_ok=True)
