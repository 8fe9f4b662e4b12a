"""Write captions with any encoder–decoder that reads images and has `generate`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.errors import TaskError
from fewfold.measure.modes import evaluating
from fewfold.progress import track
from fewfold.tasks.captioning.batching import scaled


@dataclass(frozen=True)
class Written:
    """Captions, in the order of the images.

    :param texts: One an image.
    :param tokens: Tokens that were generated, end tokens included.
    :param seconds: Wall time of `generate` alone.
    """

    texts: list[str]
    tokens: int
    seconds: float


def caption(
    model: nn.Module, tokenizer: Any, pixels: Tensor, *, beams: int = 3, batch_size: int = 64, max_length: int = 30
) -> Written:
    """Caption images, greedily or by beam search.

    :param model: Such as `build_captioner` makes.
    :param tokenizer: Of the captions.
    :param pixels: `(images, 3, size, size)`, uint8.
    :param beams: 1 is greedy.
    :param batch_size: Images a batch.
    :param max_length: Tokens a caption.
    :return: The captions.
    :raises TaskError: If there is no image, or no beam.
    """
    if not len(pixels) or beams < 1:
        raise TaskError(f"caption: {len(pixels)} images with {beams} beams; give at least one of each")
    device = next(model.parameters()).device
    texts: list[str] = []
    tokens, seconds, special = 0, 0.0, {tokenizer.pad_token_id, tokenizer.bos_token_id}
    with evaluating(model), torch.inference_mode():
        for part in track(pixels.split(batch_size), "captioning", total=-(-len(pixels) // batch_size)):
            begun = time.perf_counter()
            ids = model.generate(  # type: ignore[operator]
                pixel_values=scaled(part).to(device), num_beams=beams, do_sample=False, max_new_tokens=max_length
            ).tolist()
            seconds += time.perf_counter() - begun
            tokens += sum(token not in special for row in ids for token in row)
            texts += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return Written(texts, tokens, seconds)
