"""Which tokens a masked language model has to foretell (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from fewfold.errors import TaskError

IGNORED = -100  # labels that count for nothing


@dataclass(frozen=True)
class Masking:
    """Choose tokens to foretell: 80 % become the mask token, 10 % another token, 10 % stay.

    :param mask: Id of the mask token.
    :param vocabulary: Entries of the vocabulary.
    :param special: Ids that are never chosen, and never stand in for another token.
    :param share: Of the tokens that may be chosen.
    :param most: Tokens of a window at most; None: no limit.
    """

    mask: int
    vocabulary: int
    special: tuple[int, ...]
    share: float = 0.15
    most: int | None = None

    @classmethod
    def of(cls, tokenizer: Any, share: float = 0.15, most: int | None = None) -> Masking:
        """As a tokenizer's tokens ask for.

        :raises TaskError: If the share is none.
        """
        if not 0 < share < 1:
            raise TaskError(f"mask share {share}: give a share of the tokens, such as 0.15")
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(tokenizer.all_special_ids)), share, most)

    def __call__(self, row: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Mask a window: exactly the share of its tokens, rounded, at least one.

        :param row: `(tokens,)`.
        :param generator: Decides.
        :return: Inputs, and labels: the tokens that were chosen, -100 elsewhere; int64, `(tokens,)`.
        """
        row = row.long()
        free = (~torch.isin(row, torch.tensor(self.special))).nonzero()[:, 0]
        labels = torch.full_like(row, IGNORED)
        if not len(free):
            return row, labels
        count = max(1, round(self.share * len(free)))
        count = count if self.most is None else min(count, self.most)
        chosen = free[torch.randperm(len(free), generator=generator)[:count]]
        labels[chosen] = row[chosen]
        fate = torch.rand(count, generator=generator)
        others = torch.randint(self.vocabulary, (count,), generator=generator)
        others = torch.where(torch.isin(others, torch.tensor(self.special)), labels[chosen], others)
        inputs = row.clone()
        inputs[chosen] = torch.where(fate < 0.8, self.mask, torch.where(fate < 0.9, others, row[chosen]))
        return inputs, labels
