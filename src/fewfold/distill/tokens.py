"""Texts tokenised once, and turned into padded batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fewfold.distill.examples import Examples
from fewfold.distill.targets import Padded, Targets, longest, noisy
from fewfold.errors import DistillError
from fewfold.progress import track

CHUNK = 1024


class TokenisedTexts(Dataset):
    """Token ids of all texts in one array.

    An item is its own number: the collator gathers what a batch needs.

    :param targets: what an encoder–decoder is to write, or None.
    """

    def __init__(
        self,
        ids: NDArray,
        types: NDArray | None,
        offsets: NDArray,
        labels: NDArray | None,
        pad: int,
        targets: Targets | None = None,
    ) -> None:
        self.ids, self.types, self.offsets, self.labels, self.pad = ids, types, offsets, labels, pad
        self.targets = targets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def lengths(self) -> NDArray:
        """Tokens of every text, its target's not among them."""
        return np.diff(self.offsets)

    @property
    def sizes(self) -> NDArray:
        """Tokens that every text costs, its target's among them."""
        return self.lengths if self.targets is None else self.lengths + self.targets.lengths

    def fingerprint(self) -> str:
        """A short hash of all ids, labels and targets."""
        digest = hashlib.blake2b(digest_size=16)
        targets = () if self.targets is None else (self.targets.ids, self.targets.offsets)
        for array in (self.ids, self.offsets, self.types, self.labels, *targets):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def part(self, places: Sequence[int]) -> TokenisedTexts:
        """Some of the texts, in this order."""
        rows = [slice(self.offsets[place], self.offsets[place + 1]) for place in places]
        types = None if self.types is None else np.concatenate([self.types[row] for row in rows])
        labels = None if self.labels is None else self.labels[list(places)]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[list(places)])])
        targets = None if self.targets is None else self.targets.part(places)
        return TokenisedTexts(
            np.concatenate([self.ids[row] for row in rows]), types, offsets, labels, self.pad, targets
        )  # fmt: skip

    def batch(self, places: Sequence[int], padded: Padded = longest) -> dict[str, Tensor]:
        """A padded batch of model inputs; ``index`` holds the texts' numbers.

        :param padded: the length of a batch whose longest text has so many tokens.
        """
        lengths = self.lengths[list(places)]
        shape = len(places), padded(int(lengths.max()))
        ids = torch.full(shape, self.pad)
        mask, types = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, place in enumerate(places):
            span, length = slice(self.offsets[place], self.offsets[place + 1]), int(lengths[row])
            ids[row, :length] = torch.from_numpy(self.ids[span].astype(np.int64))
            mask[row, :length] = 1
            if self.types is not None:
                types[row, :length] = torch.from_numpy(self.types[span].astype(np.int64))
        batch = {"input_ids": ids, "attention_mask": mask, "index": torch.as_tensor(list(places))}
        if self.types is not None:
            batch["token_type_ids"] = types
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[list(places)])
        return batch if self.targets is None else batch | self.targets.batch(places, padded)

    def collator(self, padded: Padded) -> Callable[[Sequence[int]], dict[str, Tensor]]:
        """What makes a batch of items."""
        return lambda places: self.batch(places, padded)


def tokenise(
    examples: Examples, tokenizer: Any, max_length: int, start: int | None = None, noise: float = 0.0, seed: int = 0
) -> TokenisedTexts:
    """Tokenise all texts, longer ones cut at ``max_length`` tokens.

    :param tokenizer: of all texts, or ``Vocabularies`` of sources and targets.
    :param start: the token that a decoder begins with; None where there is no decoder. Texts without targets are then
        their own.
    :param noise: share of tokens that the sources of such texts lose at most.
    :raises DistillError: if the tokenizer cannot pad, or no text has a token.
    """
    source = getattr(tokenizer, "source", tokenizer)
    pad = padding_of(source)
    pairs = examples.pairs
    ids, offsets, types = _encoded(examples.texts, source, max_length, pairs)
    targets = None
    if start is not None and examples.targets is not None:
        target = getattr(tokenizer, "target", tokenizer)
        written, ends, _ = _encoded(examples.targets, target, max_length, as_target=target is source)
        targets = Targets(written, ends, start, padding_of(target))
    elif start is not None:
        targets = Targets(ids, offsets, start, pad)
        if noise and examples.labels is None and pairs is None:
            ids, offsets = noisy(ids, offsets, np.array(source.all_special_ids), noise, seed)
    labels = None if examples.labels is None else np.asarray(examples.labels, dtype=np.float32)
    return TokenisedTexts(ids, types, offsets, labels, pad, targets)


def padding_of(tokenizer: Any) -> int:
    """The token that fills a batch.

    :raises DistillError: if the tokenizer has none.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise DistillError("the tokenizer has no padding token: set tokenizer.pad_token")
    return int(pad)


def _encoded(
    texts: list[str], tokenizer: Any, max_length: int, pairs: list[str] | None = None, as_target: bool = False
) -> tuple[NDArray, NDArray, NDArray | None]:
    """Ids, offsets, and token types of pairs.

    :param as_target: let a tokenizer of both sides (Marian's) read the texts as targets.
    """
    options: dict[str, Any] = {"truncation": True, "max_length": max_length}
    ids: list[NDArray] = []
    types: list[NDArray] = []
    for start in track(range(0, len(texts), CHUNK), "tokenising"):
        span = slice(start, start + CHUNK)
        if as_target:
            encoded = tokenizer(text_target=texts[span], **options)
        elif pairs is not None:
            encoded = tokenizer(texts[span], text_pair=pairs[span], **options)
        else:
            encoded = tokenizer(texts[span], **options)
        ids += [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        if pairs is not None and "token_type_ids" in encoded:
            types += [np.asarray(row, dtype=np.int8) for row in encoded["token_type_ids"]]
    lengths = np.array([len(row) for row in ids])
    if not lengths.all():
        empty = int(np.flatnonzero(lengths == 0)[0])
        raise DistillError(f"text {empty} of the data ({texts[empty][:40]!r}) gives no token: leave it out")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate(ids), offsets, np.concatenate(types) if types else None
