"""Settings of the mask-predict model."""

from __future__ import annotations

from transformers import MarianConfig


class MaskPredictConfig(MarianConfig):
    """A Marian config, and what predicting masked tokens needs; further settings are given by keyword.

    :param mask_token_id: What stands where a token is to be predicted.
    :param length_span: Lengths are predicted as the source's, plus or minus at most so many tokens.
    :param length_weight: Of the length's cross-entropy beside the tokens' while training.
    :param rounds: In how many rounds a translation comes about.
    """

    model_type = "fewfold_mask_predict"
    mask_token_id = 4
    length_span = 16
    length_weight = 0.1
    rounds = 10
