"""Perplexity on running text: of causal models, and pseudo-perplexity of masked ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fewfold.errors import TaskError
from fewfold.measure.inputs import clipped_length
from fewfold.measure.likelihood import perplexity_of
from fewfold.measure.modes import evaluating
from fewfold.progress import track
from fewfold.tasks.heads import is_of

_LOGITS = 2**25  # numbers that the logits of a batch may hold


@dataclass(frozen=True)
class Perplexity:
    """How well a model foretells a text.

    :param kind: "causal" (each token from those before it) or "masked" (each token from all others of its window).
    :param nll: Mean negative log-likelihood a token, in nats.
    :param tokens: Tokens that were foretold; special ones never are.
    :param words: Words of the text, split at white space.
    :param max_length: Tokens a window, special ones included.
    :param stride: Causal: tokens that a window moves on, each foretold once; masked: every so manyth token is masked
        at once, in as many passes, 0 where each token is masked alone.
    """

    kind: Literal["causal", "masked"]
    nll: float
    tokens: int
    words: int
    max_length: int
    stride: int

    @property
    def perplexity(self) -> float:
        """Of tokens, so it compares models of one tokenizer only."""
        return perplexity_of(self.nll)

    @property
    def word_perplexity(self) -> float:
        """The same log-likelihood shared out among words: comparable across tokenizers."""
        return perplexity_of(self.nll * self.tokens / self.words)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"perplexity": self.perplexity, "word_perplexity": self.word_perplexity, **asdict(self)}


def perplexity(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], max_length: int = 512, stride: int | None = None,
    max_tokens: int | None = None,
) -> Perplexity:  # fmt: skip
    """Measure perplexity in the way that suits the model's class: causal or masked.

    :param model: A model with a language-modelling head.
    :param tokenizer: Its tokenizer.
    :param texts: Lines, read as one text.
    :param max_length: Tokens a window, special ones included.
    :param stride: See `causal_perplexity` and `masked_perplexity`; None for their defaults.
    :param max_tokens: Judge on the first so many tokens; None for all.
    :return: The measure.
    :raises TaskError: If the model has no such head, or there is nothing to foretell.
    """
    if is_of(model, "AutoModelForCausalLM"):
        return causal_perplexity(model, tokenizer, texts, max_length, stride, max_tokens)
    if is_of(model, "AutoModelForMaskedLM"):
        return masked_perplexity(model, tokenizer, texts, max_length, stride or 0, max_tokens)
    raise TaskError(
        f"{type(model).__name__} has no language-modelling head: load it with AutoModelForCausalLM or "
        "AutoModelForMaskedLM"
    )


def causal_perplexity(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], max_length: int = 512, stride: int | None = None,
    max_tokens: int | None = None,
) -> Perplexity:  # fmt: skip
    """Foretell each token from those before it, in windows that slide over the text.

    Each window foretells the tokens that no earlier one did; all but the first window's see at least
    `max_length - stride` tokens before them. Where the tokenizer has a beginning-of-text token it stands before the
    text; elsewhere the very first token is not foretold.

    :param model: A causal language model.
    :param tokenizer: Its tokenizer.
    :param texts: Lines, read as one text.
    :param max_length: Tokens a window.
    :param stride: Tokens that a window moves on, 1 up to `max_length - 1`; None for half a window.
    :param max_tokens: Judge on the first so many tokens; None for all.
    :return: The measure.
    :raises TaskError: If the stride does not fit the window, or there is nothing to foretell.
    """
    length = clipped_length(model.config, max_length)
    stride = length // 2 if stride is None else stride
    if not 1 <= stride < length:
        raise TaskError(f"stride={stride}: windows of {length} tokens move on by 1…{length - 1}")
    ids, words = _tokens(tokenizer, texts, max_tokens)
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    if len(ids) < 2:
        raise TaskError("there is no token to foretell: give a longer text")
    total, count = 0.0, 0
    device = next(parameter.device for parameter in model.parameters())
    with evaluating(model), torch.inference_mode():
        for start, first, end in track(list(causal_windows(len(ids), length, stride)), "perplexity"):
            window = torch.tensor([ids[start:end]], device=device)
            logits = model(input_ids=window).logits[0, first - start - 1 : -1].float()
            total += float(cross_entropy(logits, window[0, first - start :], reduction="sum").double())
            count += end - first
    return Perplexity("causal", total / count, count, words, length, stride)


def causal_windows(tokens: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Lay windows over a text so that every token but the first is foretold once.

    :param tokens: Tokens of the text.
    :param length: Tokens a window.
    :param stride: Tokens that a window moves on.
    :return: For each window its first token, the first one to foretell, and its end.
    """
    first, start = 1, 0
    while first < tokens:
        end = min(start + length, tokens)
        yield start, first, end
        first, start = end, start + stride


def masked_perplexity(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], max_length: int = 512, stride: int = 0,
    max_tokens: int | None = None,
) -> Perplexity:  # fmt: skip
    """Foretell masked tokens: the pseudo-perplexity of Salazar et al. 2020 (Masked Language Model Scoring, eq. 2).

    The text is cut into windows that share nothing. Exactly, each token is masked alone, which takes a forward a
    token. With a stride, pass p masks the tokens p, p + stride, …: `stride` forwards a window, and a somewhat higher
    figure, because masked tokens do not see each other.

    :param model: A masked language model.
    :param tokenizer: Its tokenizer.
    :param texts: Lines, read as one text.
    :param max_length: Tokens a window, special ones included.
    :param stride: Mask every so manyth token at once; 0 masks each alone.
    :param max_tokens: Judge on the first so many tokens; None for all.
    :return: The measure.
    :raises TaskError: If there is no mask token, the stride is negative, or there is nothing to foretell.
    """
    if tokenizer.mask_token_id is None:
        raise TaskError(
            f"{type(tokenizer).__name__} has no mask token: pseudo-perplexity needs a masked model's tokenizer"
        )
    if stride < 0:
        raise TaskError(f"stride={stride}: mask every so manyth token, or 0 for each alone")
    length = clipped_length(model.config, max_length)
    room = length - tokenizer.num_special_tokens_to_add(False)
    ids, words = _tokens(tokenizer, texts, max_tokens)
    if not ids or room < 1:
        raise TaskError(f"there is no token to foretell: {len(ids)} tokens in windows with room for {room}")
    total = 0.0
    device = next(parameter.device for parameter in model.parameters())
    size: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    with evaluating(model), torch.inference_mode():
        for start in track(range(0, len(ids), room), "pseudo-perplexity"):
            window, places = _with_special_tokens(tokenizer, ids[start : start + room])
            passes = _passes(places, stride)
            at_once = max(1, _LOGITS // (len(window) * size))
            for some in (passes[i : i + at_once] for i in range(0, len(passes), at_once)):
                total += _masked_nll(model, tokenizer.mask_token_id, window.to(device), some)
    return Perplexity("masked", total / len(ids), len(ids), words, length, stride)


def _with_special_tokens(tokenizer: Any, ids: list[int]) -> tuple[Tensor, list[int]]:
    """A window as the model wants it, `(tokens,)`, and the places of the text's own tokens."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    own = [place for place, special in enumerate(probe["special_tokens_mask"]) if not special]
    before, after = probe["input_ids"][: own[0]], probe["input_ids"][own[-1] + 1 :]
    return torch.tensor([*before, *ids, *after]), list(range(len(before), len(before) + len(ids)))


def _passes(places: Sequence[int], stride: int) -> list[list[int]]:
    """The places to mask in each pass: each alone, or every so manyth."""
    if not stride:
        return [[place] for place in places]
    return [list(places[first::stride]) for first in range(min(stride, len(places)))]


def _masked_nll(model: nn.Module, mask: int, window: Tensor, passes: Sequence[Sequence[int]]) -> float:
    """Summed negative log-likelihood of all tokens masked in some passes over a window, in nats."""
    rows = torch.tensor([row for row, places in enumerate(passes) for _ in places], device=window.device)
    columns = torch.tensor([place for places in passes for place in places], device=window.device)
    batch = window.repeat(len(passes), 1)
    batch[rows, columns] = mask
    logits = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits[rows, columns]
    return float(cross_entropy(logits.float(), window[columns], reduction="sum").double())


def _tokens(tokenizer: Any, texts: Sequence[str], max_tokens: int | None) -> tuple[list[int], int]:
    """The tokens of a text without special ones, and the number of words they stand for."""
    text = "\n".join(texts)
    encoded = tokenizer(
        text, add_special_tokens=False, truncation=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    ids = encoded["input_ids"]
    if max_tokens is not None and len(ids) > max_tokens:
        if max_tokens < 1:
            raise TaskError(f"max_tokens={max_tokens}: judge on at least one token, or None for all")
        ids = ids[:max_tokens]
        text = text[: encoded["offset_mapping"][max_tokens - 1][1]] if tokenizer.is_fast else tokenizer.decode(ids)
    return ids, max(1, len(text.split()))
