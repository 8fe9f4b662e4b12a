"""Byte-pair encodings: nothing is unknown, and text comes back as it was."""

import pytest
from transformers import AutoTokenizer

from fewfold import TaskError
from fewfold.tasks.translation import Vocabularies, train_vocabularies


def test_text_comes_back_and_nothing_is_unknown(vocabularies):
    tokenizer = vocabularies.target
    for text in ("Rote hunde sehen kleine katzen.", "Straße „ñ“ – 東京 🙂, (x)!", "two  blanks"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert vocabularies.is_joint
    assert not vocabularies.is_lowercase
    assert len(tokenizer) <= 300


def test_merges_are_those_of_the_text(vocabularies):
    assert vocabularies.source.tokenize("dogs") == ["Ġdogs"]
    assert len(vocabularies.source.tokenize("zebra")) > 3


def test_lower_case_is_known_after_a_reload(corpus, tmp_path):
    train_vocabularies(corpus, 300, lowercase=True).save_pretrained(tmp_path)
    again = Vocabularies.of(AutoTokenizer.from_pretrained(tmp_path))
    assert again.is_lowercase
    assert again.target.decode(again.target("Rote HUNDE")["input_ids"], skip_special_tokens=True) == " rote hunde"


def test_separate_vocabularies_are_found_again(corpus, tmp_path):
    pair = train_vocabularies(corpus, 290, joint=False)
    assert not pair.is_joint
    assert pair.source.tokenize("dogs") != pair.target.tokenize("dogs")
    pair.save_pretrained(tmp_path)
    again = Vocabularies.of(AutoTokenizer.from_pretrained(tmp_path))
    assert not again.is_joint
    assert again.target.tokenize("Rote hunde") == pair.target.tokenize("Rote hunde")
    assert again.source.tokenize("red dogs") == pair.source.tokenize("red dogs")
    assert Vocabularies.of(pair) is pair


def test_too_small_for_every_byte(corpus):
    with pytest.raises(TaskError, match="261"):
        train_vocabularies(corpus, 260)
