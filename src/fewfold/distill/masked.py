"""Masks for distilling masked language models: both models foretell the same hidden tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewfold.distill.config import DistillConfig
from fewfold.distill.tokens import TokenisedTexts
from fewfold.errors import DistillError
from fewfold.pretrain.masking import Masking
from fewfold.pretrain.sparse import scores_tokens_apart

HIDDEN = "hidden_tokens"  # of a masked batch: the hidden tokens, -100 elsewhere
HELD_OUT = 0  # the step whose masks held-out texts always have


class BatchMasking:
    """Masks batches of tokenised texts; what is hidden depends on the seed, the step and the text alone.

    :param masking: of one text.
    :param seed: of the run.
    """

    def __init__(self, masking: Masking, seed: int) -> None:
        self.masking, self.seed = masking, seed

    @classmethod
    def of(cls, config: DistillConfig, tokenizer: Any) -> BatchMasking | None:
        """As a config asks for; None where nothing is masked.

        :raises DistillError: if the tokenizer has no mask token.
        """
        if config.masking is None:
            return None
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise DistillError(f"masking={config.masking} needs a tokenizer with a mask token")
        return cls(Masking.of(tokenizer, config.masking), config.seed)

    def __call__(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """The batch with masked ``input_ids``, and the hidden tokens as ``hidden_tokens`` ``(batch, length)``.

        :param batch: with ``index``, the texts' numbers.
        :param step: number of the optimizer step, from 1.
        """
        ids = batch["input_ids"]
        pairs = [
            self.masking(row, self._generator(step, text))
            for row, text in zip(ids.cpu(), batch["index"].tolist(), strict=True)
        ]
        inputs, targets = (torch.stack(rows).to(ids.device) for rows in zip(*pairs, strict=True))
        return {**batch, "input_ids": inputs, HIDDEN: targets}

    def sparse(self, model: Any, texts: TokenisedTexts) -> bool:
        """Whether a model can score the hidden tokens alone."""
        batch = self(texts.batch([0]), HELD_OUT)
        return scores_tokens_apart(model, {"input_ids": batch["input_ids"], "labels": batch[HIDDEN]})

    def _generator(self, step: int, text: int) -> torch.Generator:
        seed = np.random.SeedSequence([self.seed, step, text]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed) >> 1)
