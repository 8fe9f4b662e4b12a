"""A toy language pair on disk: every word has one translation, and the order stays."""

import itertools

import pytest

from fewfold.tasks.translation import read_corpus, train_vocabularies

WORDS = {"dogs": "Hunde", "cats": "Katzen", "see": "sehen", "like": "mögen", "red": "rote", "small": "kleine"}
SUBJECTS = ["red dogs", "small dogs", "red cats", "small cats"]


def sentences():
    english = [f"{a} {verb} {b}." for a, verb, b in itertools.product(SUBJECTS, ["see", "like"], SUBJECTS)]
    german = [" ".join(WORDS[word] for word in line[:-1].split()).capitalize() + "." for line in english]
    return english, german


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with the pair as Multi30k."""
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    english, german = sentences()
    for split, rows in (("train", slice(0, 32)), ("val", slice(3, 9)), ("test_2016_flickr", slice(5, 12))):
        (folder / f"{split}.en").write_text("\n".join(english[rows]) + "\n", encoding="utf-8")
        (folder / f"{split}.de").write_text("\n".join(german[rows]) + "\n", encoding="utf-8")
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture
def corpus(root):
    return read_corpus()


@pytest.fixture
def vocabularies(corpus):
    return train_vocabularies(corpus, 300)
