"""Word vocabularies, and a tokenizer of them that reloads through AutoTokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from fewfold.errors import TaskError

EOS, UNKNOWN = "<eos>", "<unk>"


def build_vocabulary(lines: Iterable[str], size: int | None = None, min_count: int = 1) -> dict[str, int]:
    """Number the words of a text by frequency, `<unk>` and `<eos>` first; equally frequent ones by first appearance.

    :param lines: The text; words are split at white space.
    :param size: The most words to keep, `<unk>` and `<eos>` among them; None for all.
    :param min_count: How often a word has to occur.
    :return: Ids by word, 0…n−1 without gaps.
    :raises TaskError: If the text holds no word, or the size leaves no room for one.
    """
    if size is not None and size < 3:
        raise TaskError(f"a vocabulary of {size}: {UNKNOWN}, {EOS} and one word need room for 3")
    counts = Counter(word for line in lines for word in line.split())
    for special in (UNKNOWN, EOS):
        counts.pop(special, None)
    kept = [word for word, count in counts.most_common() if count >= min_count]
    if not kept:
        raise TaskError(f"the text holds no word that occurs {min_count}× or more: give a longer one")
    words = [UNKNOWN, EOS, *kept][:size]
    return {word: place for place, word in enumerate(words)}


def word_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a vocabulary: split at white space, a line's end is `<eos>`, what is not in it `<unk>`.

    :param vocabulary: Ids by word, with `<unk>` and `<eos>`.
    :return: A fast tokenizer; `save_pretrained` writes it, AutoTokenizer reads it.
    :raises TaskError: If one of the two is missing, or ids are not 0…n−1.
    """
    for special in (UNKNOWN, EOS):
        if special not in vocabulary:
            raise TaskError(f"the vocabulary has no {special}: add it")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise TaskError(f"the ids of a vocabulary of {len(vocabulary)} words are not 0…{len(vocabulary) - 1}")
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Replace(Regex(r"\r?\n"), f" {EOS} ")
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=UNKNOWN, eos_token=EOS, pad_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def unseen_words(lines: Iterable[str], vocabulary: dict[str, int]) -> Sequence[tuple[str, int]]:
    """List the words of a text that a vocabulary lacks, and how often each occurs, the most frequent first."""
    return Counter(word for line in lines for word in line.split() if word not in vocabulary).most_common()
