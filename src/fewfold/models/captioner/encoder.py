"""Images to states: three strided convolutions, then transformer layers over what is left of the picture."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.marian.modeling_marian import MarianEncoderLayer

from fewfold.models.captioner.config import CaptionerConfig

STRIDE = 8
GROUPS = 8


class ImageEncoder(nn.Module):
    """A convolutional stem (Xiao et al. 2021), learned positions, and Marian's encoder layers."""

    main_input_name = "pixel_values"

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        if config.image_size % STRIDE:
            raise ValueError(f"image_size={config.image_size}: give a multiple of {STRIDE}")
        self.image_size = config.image_size
        widths = (3, config.stem_size, 2 * config.stem_size, config.d_model)
        blocks: list[nn.Module] = []
        for before, after in pairwise(widths):
            blocks += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(GROUPS, after), nn.GELU()]
        self.stem = nn.Sequential(*blocks)
        self.positions = nn.Parameter(torch.zeros(config.patches, config.d_model))
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(MarianEncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Read images.

        :param pixel_values: `(batch, 3, image size, image size)`, -1 (black) to 1.
        :return: States `(batch, patches, width)`, row by row from the upper left.
        :raises ValueError: If the images have another size.
        """
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: images are 3×{self.image_size}×{self.image_size}"
            )
        states = self.stem(pixel_values.to(self.positions.dtype)).flatten(2).transpose(1, 2)
        states = self.dropout(self.norm(states + self.positions))
        for layer in self.layers:
            states = layer(states, None)
        return BaseModelOutput(last_hidden_state=states)
