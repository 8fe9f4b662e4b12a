"""Settings of the captioner."""

from __future__ import annotations

from transformers import MarianConfig


class CaptionerConfig(MarianConfig):
    """A Marian config, whose encoder reads images in the place of tokens; further settings are given by keyword.

    :param image_size: Pixels of a side, a multiple of 8: a stem of three convolutions makes an eighth of it.
    :param stem_size: Channels after the stem's first convolution; the second has twice as many.
    :param label_smoothing: Share of a label's weight that is spread over the vocabulary while training.
    """

    model_type = "fewfold_captioner"
    image_size = 64
    stem_size = 32
    label_smoothing = 0.1

    @property
    def patches(self) -> int:
        """States of an image."""
        return (self.image_size // 8) ** 2
