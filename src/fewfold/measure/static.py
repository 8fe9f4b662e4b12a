"""Sentence vectors without an encoder: averages of the word table, the floor under every quality table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def static_embeddings(
    table: Tensor, tokenizer: Any, texts: Sequence[str], weights: Tensor | None = None, max_length: int = 128
) -> Tensor:
    """Average the word table's rows over each text's tokens, special tokens left out.

    :param table: Word embeddings, `(vocab, dim)`.
    :param tokenizer: The tokenizer that numbers its rows.
    :param texts: The texts.
    :param weights: A weight for each row, `(vocab,)`; all the same where not given.
    :param max_length: Tokens per text, special ones included; what is longer is cut.
    :return: fp32, L2-normalised, `(texts, dim)`; zeros for a text without tokens.
    """
    table = table.detach().float().cpu()
    if weights is not None:
        table = table * weights[:, None].float()
    room = max_length - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(list(texts), truncation=True, max_length=room, add_special_tokens=False)["input_ids"]
    starts = torch.tensor([0, *(len(ids) for ids in encoded[:-1])]).cumsum(dim=0)
    flat = torch.tensor([token for ids in encoded for token in ids], dtype=torch.long)
    # A sum points the same way as a mean, and is zero for a text without tokens.
    means = torch.nn.functional.embedding_bag(flat, table, starts, mode="sum")
    return torch.nn.functional.normalize(means, dim=1)


def rare_word_weights(tokenizer: Any, texts: Sequence[str], vocabulary: int, a: float = 1e-3) -> Tensor:
    """Weigh down frequent tokens by `a / (a + p)`, p the share of a token in the texts.

    Arora, Liang, Ma: A simple but tough-to-beat baseline for sentence embeddings (ICLR 2017), with the
    constant that paper uses; the removal of a common component is left out.

    :param tokenizer: The tokenizer.
    :param texts: Texts to count tokens in; not those the floor is judged on.
    :param vocabulary: Rows of the word table.
    :param a: The share at which a token's weight is one half.
    :return: Weights in 0…1, `(vocabulary,)`.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=512, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for row in encoded for token in row], dtype=torch.long)
    share = torch.bincount(ids, minlength=vocabulary).double() / max(1, len(ids))
    return (a / (a + share)).float()
