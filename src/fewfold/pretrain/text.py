"""Text files to packed windows of tokens, and tokenizers trained from them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewfold.errors import TaskError
from fewfold.progress import step, track
from fewfold.tasks.data import lines

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LINES = 2000  # handed to the tokenizer at a time


def read_texts(files: Sequence[str | PathLike[str]]) -> list[str]:
    """Read the lines of text files that hold words.

    :param files: Plain, `.gz` or `.xz`, UTF-8.
    :return: Their lines in order, stripped.
    :raises TaskError: If a file is missing, no UTF-8 text, or there is no word at all.
    """
    found: list[str] = []
    for name in files:
        file = Path(name).expanduser()
        if not file.is_file():
            raise TaskError(f"{file}: no such file; give text files (.txt, also packed as .gz or .xz)")
        try:
            found += [line.strip() for line in lines(file) if line.strip()]
        except (UnicodeDecodeError, OSError) as error:
            raise TaskError(f"{file} is no UTF-8 text: {error}") from error
    if not found:
        raise TaskError(f"{', '.join(map(str, files)) or 'no file'}: there is no text; give files with some")
    return found


def train_tokenizer(texts: Sequence[str], size: int, kind: Literal["wordpiece", "bpe"] = "wordpiece") -> Any:
    """Train a lower-casing vocabulary of word pieces from text, with BERT's special tokens.

    The same text and size give the same vocabulary, in every process.

    :param texts: Lines.
    :param size: Entries, special tokens among them.
    :param kind: "wordpiece" (pieces as BERT has them) or "bpe" (byte-pair encoding of bytes, nothing is unknown).
    :return: A transformers tokenizer.
    :raises TaskError: If the size is too small, or the kind another.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    least = len(SPECIAL) + (256 if kind == "bpe" else 64)
    if kind not in ("wordpiece", "bpe") or size < least:
        raise TaskError(f"a {kind} vocabulary of {size}: choose wordpiece or bpe, and at least {least} entries")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    model: Any
    if kind == "wordpiece":
        tokenizer = _word_pieces()
        with step("collecting characters"):
            tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=1, show_progress=False))
        # The trainer numbers the characters inside words in no fixed order, and breaks ties by number: fix it.
        inner = sorted(piece for piece in tokenizer.get_vocab() if piece.startswith("##") and len(piece) > 2)
        tokenizer = _word_pieces()
        model = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL, *inner], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        model = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
    with step("training the vocabulary"):
        tokenizer.train_from_iterator(texts, model)
    if kind == "wordpiece":  # as a model of its own: the pieces given above are no special tokens
        tokenizer = _word_pieces(tokenizer.get_vocab())
        tokenizer.add_special_tokens(list(SPECIAL))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, do_lower_case=True, **names)


def _word_pieces(vocabulary: dict[str, int] | None = None) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def first_and_last(tokenizer: Any) -> tuple[int, int]:
    """The tokens around a text.

    :raises TaskError: If the tokenizer lacks them, or a mask token.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None or tokenizer.mask_token_id is None:
        raise TaskError(
            f"{type(tokenizer).__name__} lacks a token for a text's start or end, or a mask token: masked language "
            "models need all three; let a vocabulary be trained from the text"
        )
    return int(first), int(last)


def windows(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Pack running text into windows of equal length.

    :param tokenizer: With tokens for a text's start and end; the end token also parts lines.
    :param texts: Lines.
    :param length: Tokens of a window, start and end among them.
    :return: `(windows, length)`; what does not fill the last window is left out.
    :raises TaskError: If the text fills none, or a window could not hold a word.
    """
    first, last = first_and_last(tokenizer)
    if length < 4:
        raise TaskError(f"length={length}: a window needs at least 4 tokens")
    parts: list[NDArray] = []
    for start in track(range(0, len(texts), _LINES), "tokenizing"):
        rows = tokenizer(list(texts[start : start + _LINES]), add_special_tokens=False, verbose=False)["input_ids"]
        parts += [np.array([*row, last], dtype=np.int32) for row in rows]
    ids = np.concatenate(parts)
    count = len(ids) // (length - 2)
    if not count:
        raise TaskError(f"the text has {len(ids)} tokens, too few for a window of {length}: give more text")
    packed = np.empty((count, length), dtype=np.int32)
    packed[:, 0], packed[:, -1] = first, last
    packed[:, 1:-1] = ids[: count * (length - 2)].reshape(count, -1)
    return torch.from_numpy(packed)
