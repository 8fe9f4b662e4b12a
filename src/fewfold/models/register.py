"""Make transformers know the models of this library by their names in config.json."""

from __future__ import annotations


def install_models() -> None:
    """Register configs and models with the Auto classes; doing it twice is harmless."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )

    from fewfold.models.captioner.config import CaptionerConfig
    from fewfold.models.captioner.model import CaptionerModel
    from fewfold.models.mask_predict.config import MaskPredictConfig
    from fewfold.models.mask_predict.model import MaskPredictModel
    from fewfold.models.sharebert.registration import register_config
    from fewfold.models.slim_lm import SlimLMConfig, SlimLMForCausalLM, SlimLMModel
    from fewfold.models.translation.config import RecurrentTranslationConfig
    from fewfold.models.translation.model import RecurrentTranslationModel

    AutoConfig.register(SlimLMConfig.model_type, SlimLMConfig, exist_ok=True)
    AutoModel.register(SlimLMConfig, SlimLMModel, exist_ok=True)
    AutoModelForCausalLM.register(SlimLMConfig, SlimLMForCausalLM, exist_ok=True)

    AutoConfig.register(RecurrentTranslationConfig.model_type, RecurrentTranslationConfig, exist_ok=True)
    AutoModelForSeq2SeqLM.register(RecurrentTranslationConfig, RecurrentTranslationModel, exist_ok=True)
    AutoConfig.register(MaskPredictConfig.model_type, MaskPredictConfig, exist_ok=True)
    AutoModelForSeq2SeqLM.register(MaskPredictConfig, MaskPredictModel, exist_ok=True)
    AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig, exist_ok=True)
    AutoModelForImageTextToText.register(CaptionerConfig, CaptionerModel, exist_ok=True)
    register_config()
