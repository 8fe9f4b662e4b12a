from collections import Counter

import pytest
from transformers import AutoTokenizer

from fewfold import TaskError
from fewfold.lm.corpus import token_corpus, word_corpus
from fewfold.lm.texts import encode, line_end, read_text
from fewfold.lm.vocabulary import build_vocabulary, unseen_words, word_tokenizer

LINES = ["b a b c", "", " b  <unk> a d", "e b a"]


def test_words_are_numbered_by_frequency():
    assert build_vocabulary(LINES) == {"<unk>": 0, "<eos>": 1, "b": 2, "a": 3, "c": 4, "d": 5, "e": 6}
    assert list(build_vocabulary(LINES, size=4)) == ["<unk>", "<eos>", "b", "a"]
    assert list(build_vocabulary(LINES, min_count=2)) == ["<unk>", "<eos>", "b", "a"]
    assert unseen_words(["x b x y"], build_vocabulary(LINES)) == [("x", 2), ("y", 1)]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "no word"),
        (["", " "], {}, "no word"),
        (LINES, {"min_count": 9}, "occurs 9×"),
        (LINES, {"size": 2}, "vocabulary of 2"),
    ],
)
def test_errors_of_vocabularies(lines, options, message):
    with pytest.raises(TaskError, match=message):
        build_vocabulary(lines, **options)


def test_the_tokenizer_against_a_loop(tmp_path):
    vocabulary = build_vocabulary(LINES, size=5)
    made = word_tokenizer(vocabulary)
    made.save_pretrained(tmp_path)
    lines = ["b z a", "", "  c <eos> <unk>", "<unk>b  a"]
    expected = [i for line in lines for i in [*(vocabulary.get(word, 0) for word in line.split()), 1]]
    expected[-3:-2] = [0, 2]  # a special token is found inside of a word too
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.is_fast
        assert tokenizer("\n".join(lines) + "\n")["input_ids"] == expected
        text = encode(tokenizer, lines, "mine")
        assert text.ids.tolist() == expected
        assert (text.words, text.unknown) == (12, 3)
        assert tokenizer.decode([2, 3, 1]) == "b a <eos>"
        assert line_end(tokenizer) == 1


def test_bad_vocabularies():
    with pytest.raises(TaskError, match="no <eos>"):
        word_tokenizer({"<unk>": 0, "a": 1})
    with pytest.raises(TaskError, match="not 0…2"):
        word_tokenizer({"<unk>": 0, "<eos>": 1, "a": 3})


def test_a_corpus_counts_what_it_lacks():
    corpus = word_corpus(["a b a", "c a"], ["a x", "b"], size=4)
    assert corpus.train.ids.tolist() == [2, 3, 2, 1, 0, 2, 1]
    assert corpus.valid.ids.tolist() == [2, 0, 1, 3, 1]
    assert (corpus.train.unknown, corpus.valid.unknown, corpus.test) == (1, 1, None)


def test_unseen_words_that_nobody_could_learn():
    with pytest.raises(TaskError, match=r"test has 1 words that train lacks \('x', …\), and train has no <unk>"):
        word_corpus(["a b"], ["a"], ["a x"])
    assert word_corpus(["a b <unk>"], ["a x"]).valid.unknown == 1


def test_other_tokenizers():
    tokenizer = word_tokenizer(build_vocabulary(["a b"]))
    backend = type(tokenizer)(tokenizer_object=_without_unknown(), eos_token="<eos>")
    with pytest.raises(TaskError, match="text: the vocabulary has no 'x' and no <unk>"):
        token_corpus(backend, ["a x"], names=("text", "", ""))
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match="no token for a line's end"):
        token_corpus(tokenizer, ["a"])


def _without_unknown():
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"<eos>": 0, "a": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_files(tmp_path):
    import gzip
    import lzma

    for name, opener in (("a.txt", open), ("a.txt.gz", gzip.open), ("a.txt.xz", lzma.open)):
        with opener(tmp_path / name, "wt") as file:
            file.write("a b\n\nc\n")
        assert read_text(tmp_path / name) == ["a b", "", "c"]
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty.txt", "is empty"), ("broken.txt", "no UTF-8"), ("none.txt", "no such file")):
        with pytest.raises(TaskError, match=message):
            read_text(tmp_path / name)
    assert Counter(word for line in read_text(tmp_path / "a.txt") for word in line.split()) == Counter("abc")
