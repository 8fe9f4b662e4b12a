"""Images and captions as training examples: small changes of the picture, captions padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from fewfold.tasks.captioning.images import Captions

IGNORED = -100  # labels that count for nothing
MARGIN = 8  # a picture is moved by at most a size / MARGIN


class Example(NamedTuple):
    """An image, `(3, size, size)` from -1 to 1, and the tokens of one caption, the end token last."""

    pixels: Tensor
    tokens: list[int]


class Examples:
    """Every caption of every image as an example of its own.

    :param data: The images.
    :param tokenizer: Of the captions.
    :param max_length: Tokens a caption; of longer ones the ends are cut, the end token stays.
    """

    def __init__(self, data: Captions, tokenizer: Any, max_length: int = 40) -> None:
        self.data = data
        self.rows = tokenizer(data.texts(), truncation=True, max_length=max_length)["input_ids"]
        self.image = [place for place, captions in enumerate(data.captions) for _ in captions]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean_tokens(self) -> float:
        """Tokens of an example on average."""
        return sum(map(len, self.rows)) / len(self.rows)

    def plain(self, place: int) -> Example:
        """An example as it is."""
        return Example(scaled(self.data.pixels[self.image[place]]), self.rows[place])

    def changed(self, place: int, generator: Generator) -> Example:
        """An example with its picture moved a little and mirrored every other time."""
        example = self.plain(place)
        return Example(jitter(example.pixels, generator), example.tokens)


def scaled(pixels: Tensor) -> Tensor:
    """Bytes to numbers from -1 to 1."""
    return pixels.float().div_(127.5).sub_(1.0)


def jitter(pixels: Tensor, generator: Generator) -> Tensor:
    """Move a picture by up to an eighth of its size, what is laid bare being grey, and mirror it or not.

    :param pixels: `(3, size, size)`.
    :param generator: Decides.
    :return: The same shape.
    """
    size = pixels.shape[-1]
    pad = size // MARGIN
    down, right = torch.randint(2 * pad + 1, (2,), generator=generator).tolist()
    wide = torch.nn.functional.pad(pixels, (pad, pad, pad, pad))
    moved = wide[:, down : down + size, right : right + size]
    return moved.flip(-1) if torch.rand((), generator=generator) < 0.5 else moved


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Stack images and pad captions on the right.

    :return: `pixel_values` `(examples, 3, size, size)` and `labels` `(examples, tokens)`, -100 where padded.
    """
    longest = max(len(example.tokens) for example in examples)
    labels = [example.tokens + [IGNORED] * (longest - len(example.tokens)) for example in examples]
    return {
        "pixel_values": torch.stack([example.pixels for example in examples]),
        "labels": torch.tensor(labels),
    }
