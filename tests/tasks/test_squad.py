"""Reading SQuAD."""

import json
import lzma

import pytest

from fewfold import TaskError
from fewfold.tasks import data
from fewfold.tasks.squad import Question, read_squad

CONTEXT = "Rome is old. Oslo\u2028is not."


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    (tmp_path / "squad").mkdir()
    return tmp_path / "squad"


def content(**changes):
    asked = {"id": "1", "question": "Which?", "answers": [{"text": "Oslo", "answer_start": 13},
             {"text": "Rome", "answer_start": 0}], **changes}  # fmt: skip
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": [asked]}]}]})


def test_a_packed_file(folder):
    (folder / "dev-v1.1.json.xz").write_bytes(lzma.compress(content().encode()))
    found = read_squad("dev")
    assert found.questions == [Question("1", "Which?", CONTEXT, ("Oslo", "Rome"), (13, 0))]
    assert found.source == "squad/dev-v1.1.json.xz"


def test_the_hub(folder, monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name, config, split):
            assert (name, config, split) == ("rajpurkar/squad", None, "validation")
            answers = {"text": ["Rome"], "answer_start": [0]}
            return [{"id": "7", "question": "q", "context": CONTEXT, "title": "t", "answers": answers}]

    monkeypatch.setattr(data, "require", lambda module: Datasets)
    assert read_squad("dev").questions == [Question("7", "q", CONTEXT, ("Rome",), (0,))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (content(answers=[]), "question 1 has no answer, as in SQuAD v2"),
        (content(answers=[{"text": "Oslo", "answer_start": 12}]), "the answer 'Oslo' at 12.*' Osl'"),
        (content(answers=[{"text": "Rome"}]), "not in the format"),
        ('{"data": []}', "holds no question"),
        ('{"data": [', "not in the format"),
        ("[]", "not in the format"),
    ],
)
def test_bad_files_are_named(text, message, folder):
    (folder / "train-v1.1.json").write_text(text)
    with pytest.raises(TaskError, match=message):
        read_squad("train")


def test_no_such_split():
    with pytest.raises(TaskError, match="choose one of train, dev"):
        read_squad("test")


def test_real_counts():
    if data.data_root() is None:
        pytest.skip("no data root: set FEWFOLD_DATA to test the real files")
    assert len(read_squad("dev").questions) == 10570
