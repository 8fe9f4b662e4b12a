"""Turn whatever the user calibrates on (texts, model inputs, a dataset) into batches of model inputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.errors import CalibrationError
from fewfold.measure.inputs import clipped_length

Batch = dict[str, Tensor]


PIECE_WORDS = (4, 32)  # shortest and longest piece that a calibration text is cut into


def calibration_batches(
    calibration: Any,
    tokenizer: Any,
    model: nn.Module,
    batch_size: int = 64,
    max_length: int = 128,
    max_tokens: int | None = None,
    pieces: bool = False,
    seed: int = 0,
) -> list[Batch]:
    """Batches of model inputs, tensors on the model's device.

    :param calibration: an iterable of texts (needs ``tokenizer``), of model-input dicts, or a datasets.Dataset
        with a text column (``text``, or its first column of strings) or with model-input columns.
    :param batch_size: texts in one batch; dicts are batches already.
    :param max_length: tokens kept of a text.
    :param max_tokens: read about this many tokens of the texts, evenly spread (None: all).
    :param pieces: cut texts into pieces of 4 to 32 words, so that lengths vary whatever the texts are.
    :param seed: of the order and the pieces.
    :raises CalibrationError: if there is nothing to calibrate on, or it cannot be understood.
    """
    if isinstance(calibration, str):
        raise CalibrationError(
            "calibration is one string; pass a list of texts (a file's lines: Path(name).read_text().splitlines())"
        )
    items = list(_rows(calibration))
    if not items:
        raise CalibrationError("calibration is empty: pass at least a few dozen texts like those the model will see")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if all(isinstance(item, Mapping) for item in items):
        return [_as_batch(item, index, device, model) for index, item in enumerate(items)]
    if not all(isinstance(item, str) for item in items):
        kinds = sorted({type(item).__name__ for item in items})
        raise CalibrationError(f"calibration holds {', '.join(kinds)}; pass texts or dicts of model inputs")
    texts = [item for item in items if item.strip()]
    if not texts:
        raise CalibrationError("every calibration text is blank")
    if tokenizer is None:
        raise CalibrationError("calibration holds texts, so a tokenizer is needed: compress(…, tokenizer=tokenizer)")
    texts = cut_to_pieces(texts, seed) if pieces else texts
    chosen = _within(texts, max_tokens, tokenizer, max_length, seed)
    return [_finish(batch, model, device) for batch in _tokenize(chosen, tokenizer, model, batch_size, max_length)]


def count_tokens(calibration: Any, tokenizer: Any, rows: int) -> Tensor | None:
    """How often each id occurs in all calibration texts, ``(rows,)``; None where there are no texts to count.

    Counting is cheap, so it reads every text, however few of them the model is run on.
    """
    items = list(_rows(calibration))
    if tokenizer is None or not all(isinstance(item, str) for item in items):
        return None
    counts = torch.zeros(rows, dtype=torch.long)
    for start in range(0, len(items), 1024):
        for ids in tokenizer(items[start : start + 1024], truncation=True, max_length=100_000)["input_ids"]:
            counts += torch.bincount(torch.as_tensor(ids, dtype=torch.long), minlength=rows)[:rows]
    return counts


def count_rows(batches: Iterable[Batch]) -> tuple[int, int]:
    """How many texts (or images) and how many tokens the batches hold, padding left out."""
    texts = tokens = 0
    for batch in batches:
        first, mask = next(tensor for tensor in batch.values() if tensor.dim()), batch.get("attention_mask")
        texts += first.shape[0]
        tokens += int(mask.sum()) if mask is not None else first.shape[0] * first.shape[-1]
    return texts, tokens


def cut_to_pieces(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Consecutive pieces of every text, their lengths log-uniform between 4 and 32 words.

    Statistics then cover short and long inputs alike, whatever the lengths of the calibration texts.
    """
    random = Random(seed)
    shortest, longest = (math.log(words) for words in PIECE_WORDS)
    pieces = []
    for text in texts:
        words = text.split()
        while words:
            count = round(math.exp(random.uniform(shortest, longest)))
            if len(words) - count < PIECE_WORDS[0]:
                count = min(len(words), PIECE_WORDS[1])
            pieces.append(" ".join(words[:count]))
            words = words[count:]
    return pieces


def _within(texts: Sequence[str], max_tokens: int | None, tokenizer: Any, max_length: int, seed: int) -> list[str]:
    """Texts of about ``max_tokens`` tokens in all, drawn evenly."""
    if max_tokens is None:
        return list(texts)
    order = list(range(len(texts)))
    Random(seed).shuffle(order)
    chosen: list[str] = []
    total = 0
    for start in range(0, len(order), 256):
        some = [texts[index] for index in order[start : start + 256]]
        for text, ids in zip(some, tokenizer(some, truncation=True, max_length=max_length)["input_ids"], strict=True):
            if total >= max_tokens:
                return chosen
            chosen.append(text)
            total += len(ids)
    return chosen


def _rows(calibration: Any) -> Iterable[Any]:
    if calibration is None:
        raise CalibrationError(
            "this recipe is fitted on real inputs: pass calibration=texts and tokenizer=tokenizer, "
            "or choose LowRank(weighting='none') for a plain SVD"
        )
    if isinstance(calibration, Mapping):
        if all(isinstance(value, Tensor | list) for value in calibration.values()):
            return [calibration]  # a batch of model inputs, as tokenizers give it
        raise CalibrationError(
            f"calibration is a {type(calibration).__name__} of {', '.join(map(str, calibration))}: pass one of them, "
            f"as calibration[{next(iter(calibration), '')!r}]"
        )
    features = getattr(calibration, "column_names", None)
    if features is None:
        return calibration
    if "text" in features:
        return calibration["text"]
    first = calibration[0] if len(calibration) else {}
    strings = [name for name in features if isinstance(first.get(name), str)]
    return calibration[strings[0]] if strings else calibration


def _tokenize(texts: list[str], tokenizer: Any, model: nn.Module, size: int, max_length: int) -> Iterable[Batch]:
    limit = clipped_length(getattr(model, "config", None), max_length)
    padded = tokenizer.pad_token is not None
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
    step = size if padded else 1
    for start in range(0, len(order), step):
        chosen = [texts[index] for index in order[start : start + step]]
        yield dict(tokenizer(chosen, truncation=True, max_length=limit, padding=padded, return_tensors="pt").items())


def _as_batch(item: Mapping[str, Any], index: int, device: torch.device, model: nn.Module) -> Batch:
    batch: Batch = {}
    for name, value in item.items():
        try:
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise CalibrationError(
                f"calibration item {index}: {name!r} is a {type(value).__name__}, not a tensor"
            ) from None
        single = tensor.dim() == 1 or (name == "pixel_values" and tensor.dim() == 3)
        batch[name] = tensor.unsqueeze(0) if single else tensor
    if not batch:
        raise CalibrationError(f"calibration item {index} is an empty dict of model inputs")
    return _finish(batch, model, device)


def _finish(batch: Batch, model: nn.Module, device: torch.device) -> Batch:
    """Move to the device; give an encoder–decoder its decoder's inputs (the same text)."""
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    config = getattr(model, "config", None)
    if (
        config is not None
        and getattr(config, "is_encoder_decoder", False)
        and "input_ids" in batch
        and "decoder_input_ids" not in batch
    ):
        ids = batch["input_ids"]
        start = getattr(config, "decoder_start_token_id", None)
        first = torch.full_like(ids[:, :1], config.pad_token_id if start is None else start)
        batch["decoder_input_ids"] = torch.cat([first, ids[:, :-1]], dim=1)
        if "attention_mask" in batch:
            batch["decoder_attention_mask"] = batch["attention_mask"]
    return batch


def fingerprint(batches: Iterable[Batch]) -> str:
    """A short hash of all inputs and their shapes, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for name in sorted(batch):
            tensor = batch[name].detach().cpu().contiguous()
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            if tensor.dtype == torch.bfloat16:  # which numpy has not
                tensor = tensor.view(torch.int16)
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
