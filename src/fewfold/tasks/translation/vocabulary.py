"""Subword vocabularies: byte-pair encodings of bytes, joint or one a language, saved beside the model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fewfold.errors import TaskError
from fewfold.tasks.translation.corpus import Corpus

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
TARGET_FOLDER = "target_tokenizer"
_LEAST = 256 + len(SPECIAL)


@dataclass(frozen=True)
class Vocabularies:
    """The tokenizers of both sides; where the vocabulary is joint, one and the same object.

    :param source: Of what is translated; every text ends with its end token.
    :param target: Of the translations.
    """

    source: Any
    target: Any

    @property
    def is_joint(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self.source is self.target

    @property
    def is_lowercase(self) -> bool:
        """Whether the translations are lower-cased."""
        return bool(self.target.init_kwargs.get("do_lower_case", False))

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write tokenizer files into a folder; those of a separate target side into its `target_tokenizer`."""
        self.source.save_pretrained(folder)
        if not self.is_joint:
            self.target.save_pretrained(Path(folder) / TARGET_FOLDER)

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabularies:
        """Take a tokenizer as joint, unless the folder it was loaded from holds one of the target side.

        :param tokenizer: The source side's tokenizer, or vocabularies, which come back as they are.
        :return: Both sides.
        """
        if isinstance(tokenizer, Vocabularies):
            return tokenizer
        target = Path(str(getattr(tokenizer, "name_or_path", "") or "")) / TARGET_FOLDER
        if target.is_dir():
            return cls(tokenizer, AutoTokenizer.from_pretrained(target))
        return cls(tokenizer, tokenizer)


def train_vocabularies(corpus: Corpus, size: int = 8000, joint: bool = True, lowercase: bool = False) -> Vocabularies:
    """Train byte-pair encodings (Sennrich et al. 2016) on the training text alone.

    :param corpus: The training pairs.
    :param size: Entries, special tokens and the 256 bytes among them; of each side where they are separate.
    :param joint: One vocabulary of both languages, so that embeddings can be shared.
    :param lowercase: Lower-case all text; BLEU then compares lower-cased text and says so.
    :return: The tokenizers.
    :raises TaskError: If the vocabulary is too small to hold every byte.
    """
    if size < _LEAST:
        raise TaskError(f"a vocabulary of {size} entries: {_LEAST} are the bytes and special tokens alone; give more")
    if joint:
        tokenizer = _train([*corpus.sources, *corpus.targets], size, lowercase)
        return Vocabularies(tokenizer, tokenizer)
    return Vocabularies(_train(corpus.sources, size, lowercase), _train(corpus.targets, size, lowercase))


def _train(texts: Sequence[str], size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A tokenizer over bytes: no text is unknown to it, and decoding gives the very text back."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    forms: list[Any] = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(forms)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=list(SPECIAL.values()), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    end = SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, do_lower_case=lowercase, clean_up_tokenization_spaces=False,
            padding_side="right", **SPECIAL,
        )  # fmt: skip
