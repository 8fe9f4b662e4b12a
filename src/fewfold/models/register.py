"""Makes transformers' Auto classes know the models of this package."""

from __future__ import annotations


def install() -> None:
    """Register configs and models; doing it twice is harmless."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from fewfold.models.translation.config import RecurrentTranslationConfig
    from fewfold.models.translation.model import RecurrentTranslationModel

    AutoConfig.register(RecurrentTranslationConfig.model_type, RecurrentTranslationConfig, exist_ok=True)
    AutoModelForSeq2SeqLM.register(RecurrentTranslationConfig, RecurrentTranslationModel, exist_ok=True)
