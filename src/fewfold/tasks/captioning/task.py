"""Captioning as a task: CIDEr-D and BLEU, and whether captions say more of their own image than of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fewfold.errors import TaskError
from fewfold.tasks.batches import Row
from fewfold.tasks.captioning.cider import Cider, normalized
from fewfold.tasks.captioning.decode import caption
from fewfold.tasks.captioning.images import read_captions
from fewfold.tasks.heads import Kind
from fewfold.tasks.interval import mean_interval
from fewfold.tasks.judged import Judged
from fewfold.tasks.metrics import Score
from fewfold.tasks.translation.bleu import bleu

CAPTIONS = ("flickr8k-captions",)
SHUFFLES = 10


class Captioning:
    """The test images of `read_captions` with their captions, read once.

    The control shows the model the same images in another order: `cider_shuffled` is the mean over ten shuffles in
    which no image keeps its place, and `image_gain` what the right image adds, with its interval over images.
    """

    kind: Kind = "captioning"
    num_labels = 0

    def __init__(
        self, name: str, tokenizer: Any, max_length: int = 30, eval_limit: int | None = None, beams: int = 1
    ) -> None:
        """Read what is judged on.

        :param name: One of `CAPTIONS`.
        :param tokenizer: The model's.
        :param max_length: Tokens a caption.
        :param eval_limit: Judge on the first so many images; None for all.
        :param beams: 1 is greedy.
        """
        self.name, self.tokenizer, self.max_length, self.beams = name, tokenizer, max_length, beams
        self.limit = eval_limit
        self.signature: str | None = None
        self.source, self.images = "", 0

    def judges(self, model: nn.Module) -> bool:
        """Say whether a model reads images and generates."""
        return getattr(model, "main_input_name", "") == "pixel_values" and hasattr(model, "generate")

    def training_rows(self, model: nn.Module, limit: int | None) -> tuple[list[Row], int]:
        """Refuse: captioners are trained from scratch, by a command of their own.

        :raises TaskError: Always.
        """
        raise TaskError(f"{self.name} has no fine-tuning: train with fewfold caption train, then judge as it is")

    def judged_on(self) -> Sequence[Any]:
        """Nothing, as nothing is fine-tuned."""
        return ()

    def judge(self, model: nn.Module, batch_size: int, resamples: int) -> Judged:
        """Caption the test images and score what was written: CIDEr-D 0…10, BLEU 0…100."""
        config: Any = model.config
        data = read_captions("test", int(config.image_size)).first(self.limit)
        self.source, self.images = data.source, len(data)
        written = caption(
            model, self.tokenizer, data.pixels, beams=self.beams, batch_size=batch_size, max_length=self.max_length
        )
        texts = [normalized(text) for text in written.texts]
        cider = Cider(data.captions)
        own, others = cider.scores(texts), shuffled_scores(cider, texts)
        scored = bleu(texts, data.captions, resamples=resamples)
        self.signature = scored.signature
        metrics = {
            "cider": _mean(own, resamples),
            "bleu": scored.score,
            "cider_shuffled": _mean(others, resamples),
            "image_gain": _mean(own - others, resamples),
        }
        records = [
            {"index": place, "image": data.names[place], "prediction": text, "references": data.captions[place],
             "cider": float(own[place])}
            for place, text in enumerate(texts)
        ]  # fmt: skip
        return Judged(metrics, records, len(data), len(data), written.tokens, written.seconds, "generation")

    def data(self) -> dict[str, Any]:
        """Describe the data in use, the search, and BLEU's signature once it is known."""
        return {
            "test": {"source": self.source, "examples": self.images},
            "beams": self.beams, "signature": self.signature,
        }  # fmt: skip


def shuffled_scores(cider: Cider, texts: Sequence[str], shuffles: int = SHUFFLES, seed: int = 0) -> NDArray:
    """Score captions that were written for other images.

    :param cider: Of the images.
    :param texts: A caption for each.
    :param shuffles: Over which each image's score is averaged.
    :param seed: Of the shuffles.
    :return: `(images,)`; a single image keeps its own caption.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    place = np.argsort(order)  # neighbours on a random circle: no image meets itself before a full turn
    turns = [1 + turn % max(len(texts) - 1, 1) for turn in range(shuffles)] if len(texts) > 1 else [0]
    return np.mean([cider.scores([texts[other] for other in order[(place + turn) % len(texts)]]) for turn in turns], 0)


def _mean(values: NDArray, resamples: int) -> Score:
    return Score(float(values.mean()), *mean_interval(values, resamples))
