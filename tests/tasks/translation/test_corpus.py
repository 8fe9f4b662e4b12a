"""Parallel text out of the data root, files and the Hub."""

import gzip

import pytest

from fewfold import TaskError
from fewfold.tasks.translation import corpus as module
from fewfold.tasks.translation import read_corpus, read_files


def test_both_directions_and_the_first_pairs(root):
    corpus = read_corpus("de", "en", "val")
    assert (corpus.sources[0], corpus.targets[0]) == ("Rote hunde sehen kleine katzen.", "red dogs see small cats.")
    assert len(corpus) == 6
    assert corpus.first(2).sources == corpus.sources[:2]
    assert corpus.source == "multi30k/val"


def test_the_hub_where_the_root_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    asked = []

    def rows(*names):
        asked.append(names)
        return [{"en": "a", "de": "b"}]

    monkeypatch.setattr(module, "from_hub", rows)
    corpus = read_corpus(split="test_2016_flickr")
    assert (corpus.sources, corpus.targets) == (["a"], ["b"])
    assert asked == [("bentrevett/multi30k", None, "test")]


def test_files_packed_or_plain(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b" one\n\ntwo \n"))
    (tmp_path / "b").write_text("eins\n\nzwei\n")
    corpus = read_files(tmp_path / "a.gz", tmp_path / "b")
    assert (corpus.sources, corpus.targets) == (["one", "two"], ["eins", "zwei"])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (b"a\nb\n", b"c\n", "2 sentences and 1 translations"),
        (b"a\nb\n", b"c\n \n", "line 2: the tgt side is empty"),
        (b"\n\n", b"\n\n", "holds no sentence"),
        (b"\xff\xfe\n", b"c\n", "no UTF-8"),
    ],
)
def test_files_that_make_no_corpus(first, second, message, tmp_path):
    (tmp_path / "a").write_bytes(first)
    (tmp_path / "b").write_bytes(second)
    with pytest.raises(TaskError, match=message):
        read_files(tmp_path / "a", tmp_path / "b")


def test_languages_that_it_does_not_have(root):
    with pytest.raises(TaskError, match="en to de"):
        read_corpus("en", "fr")
    with pytest.raises(ValueError, match="val"):
        read_corpus(split="dev")
