import gzip
import lzma

import pytest

from fewfold.errors import FewfoldError, TaskError
from fewfold.tasks import data
from fewfold.tasks.data import DataUnavailable, SentencePair


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    return tmp_path


def pack(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def test_root_is_the_named_folder_or_one_beside(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path / "none"))
    with pytest.raises(FewfoldError, match="not a folder"):
        data.data_root()
    monkeypatch.delenv("FEWFOLD_DATA")
    monkeypatch.setattr(data, "__file__", str(tmp_path / "repo" / "src" / "fewfold" / "tasks" / "data.py"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert data.data_root() is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert data.data_root() == (tmp_path / "shared" / "data").resolve()


def test_lines_of_plain_and_packed_files(tmp_path):
    text = " a \n\nü\u2028b\r\nlast"
    expected = [" a ", "", "ü\u2028b", "last"]
    (tmp_path / "t.txt").write_bytes(text.encode())
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(text.encode()))
    for name in ("t.txt", "t.txt.gz", "t.txt.xz"):
        assert data.lines(tmp_path / name) == expected


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz"])
def test_packed_files_that_are_none_or_damaged(name, tmp_path):
    packed = {"a.txt.gz": gzip.compress, "a.txt.xz": lzma.compress}[name](b"some words\n" * 50)
    for content in (b"no packed file", packed[:-9], packed[:20] + b"??????????" + packed[30:]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TaskError, match=f"{name} is no .{name[-2:]} file, or is damaged"):
            data.lines(tmp_path / name)


def test_stsb_is_read_without_quoting(root):
    pack(root / "glue/stsb/dev.tsv.gz", 'g\tf\ty\t1\t2.500\t"A dog.\tB cat "x"\ng\tf\ty\t2\t5\tOne.\tTwo.\n')
    pairs = data.stsb("dev")
    assert pairs == [SentencePair('"A dog.', 'B cat "x"', 2.5), SentencePair("One.", "Two.", 5.0)]
    assert data.distinct_sentences([*pairs, pairs[0]]) == ['"A dog.', 'B cat "x"', "One.", "Two."]


def test_wikitext_keeps_lines_as_they_stand(root):
    pack(root / "wikitext-2/test.txt.gz", " \n = Title = \n a <unk> b \n")
    assert data.wikitext2("test") == [" ", " = Title = ", " a <unk> b "]


def test_calibration_texts(root):
    (root / "calibration").mkdir()
    (root / "calibration/mixed-512.txt").write_text("one\n\ntwo\n")
    assert data.calibration_texts() == ["one", "two"]
    with pytest.raises(DataUnavailable, match="pydoc_sentences"):
        data.calibration_texts("other")


def test_the_hub_is_asked_where_files_are_missing(root, monkeypatch):
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*names, split):
            asked.append((*names, split))
            if names[1] == "stsb":
                return [{"sentence1": "a", "sentence2": "b", "label": 3.0}]
            return [{"text": " = T = \n"}, {"text": ""}]

    monkeypatch.setattr(data, "require", lambda name: Datasets)
    assert data.stsb("dev") == [SentencePair("a", "b", 3.0)]
    assert data.wikitext2("valid") == [" = T = ", ""]
    assert asked == [
        ("nyu-mll/glue", "stsb", "validation"),
        ("Salesforce/wikitext", "wikitext-2-v1", "validation"),
    ]


def test_what_cannot_be_had_says_how(root, monkeypatch):
    def missing(name):
        raise ImportError("datasets is not installed")

    monkeypatch.setattr(data, "require", missing)
    with pytest.raises(DataUnavailable, match=r"FEWFOLD_DATA.*fewfold\[tasks\]"):
        data.stsb()
    with pytest.raises(ValueError, match="choose one of train, dev"):
        data.stsb("test")


def test_real_counts():
    root = data.data_root()
    if root is None:
        pytest.skip("no data root: set FEWFOLD_DATA to test the real files")
    assert (len(data.stsb("train")), len(data.stsb("dev"))) == (5749, 1500)
    assert len(data.wikitext2("valid")) == 3760
    texts = data.calibration_texts("mixed-512")
    assert len(texts) == 512
    assert not set(texts) & set(data.distinct_sentences(data.stsb("dev")))
