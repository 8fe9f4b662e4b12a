"""Model families that are trained from scratch, as transformers models; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "RecurrentTranslationConfig": "fewfold.models.translation.config",
    "RecurrentTranslationModel": "fewfold.models.translation.model",
    "MaskPredictConfig": "fewfold.models.mask_predict.config",
    "MaskPredictModel": "fewfold.models.mask_predict.model",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
