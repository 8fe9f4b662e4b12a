"""Reading GLUE: both layouts, the Hub, and everything that can be wrong with a file."""

import gzip
import lzma

import pytest

from fewfold import TaskError
from fewfold.tasks import data
from fewfold.tasks.data import DataUnavailable, data_root
from fewfold.tasks.glue import GLUE, Example, read_glue

QUOTES = 'He said "no .'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    packing = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(packing(text.encode()))


LAYOUTS = {
    "cola": (
        "CoLA/train.tsv",
        f"gj04\t1\t\t{QUOTES}\nks08\t0\t*\tTwo it .\n",
        [(QUOTES, None, 1), ("Two it .", None, 0)],
    ),
    "sst2": ("glue/SST-2/train.tsv.gz", f"sentence\tlabel\n{QUOTES}\t0\nb \t1\n", [(QUOTES, None, 0), ("b ", None, 1)]),
    "mrpc": (
        "MRPC/train.tsv",
        f"\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t{QUOTES}\tb\n",
        [(QUOTES, "b", 1)],
    ),
    "qqp": (
        "QQP/train.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tWhy ?\tHow ?\t0\n",
        [("Why ?", "How ?", 0)],
    ),
    "stsb": (
        "STS-B/train.tsv.xz",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\ty\t1\tn\tn\tA .\tB .\t3.800\n",
        [("A .", "B .", 3.8)],
    ),
    "mnli": (
        "glue/mnli/train.tsv",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n1\tc\td\tneutral\tentailment\n",
        [("a", "b", 2), ("c", "d", 0)],
    ),
    "qnli": (
        "glue/qnli/train.tsv",
        "index\tquestion\tsentence\tlabel\n0\tq\ts\tnot_entailment\n1\tq\ts\tentailment\n",
        [("q", "s", 1), ("q", "s", 0)],
    ),
    "rte": ("RTE/train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", [("a", "b", 0)]),
}


@pytest.mark.parametrize("name", GLUE)
def test_files_of_every_task(name, folder):
    file, text, expected = LAYOUTS[name]
    write(folder / file, text)
    found = read_glue(name, "train")
    assert found.examples == [Example(*example) for example in expected]
    assert file.endswith(found.source)


def test_sts_scores_without_a_header(folder):
    write(folder / "glue/stsb/dev.tsv.gz", "g\tf\ty\t1\t2.5\tA .\tB .\nmain\tf\ty\t2\t5\tC\tD\textra\n")
    assert read_glue("stsb", "dev").examples == [Example("A .", "B .", 2.5), Example("C", "D", 5.0)]


def test_mnli_is_judged_on_both_its_dev_sets(folder):
    assert GLUE["mnli"].dev == ("dev_matched", "dev_mismatched")
    head = "sentence1\tsentence2\tgold_label\n"
    write(folder / "MNLI/dev_mismatched.tsv", head + "a\tb\tneutral\n")
    assert read_glue("mnli", "dev_mismatched").examples == [Example("a", "b", 1)]
    with pytest.raises(TaskError, match="choose one of train, dev_matched, dev_mismatched"):
        read_glue("mnli", "dev")


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("cola", {"sentence": "a", "label": 1, "idx": 0}, Example("a", None, 1)),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": 2.2}, Example("a", "b", 2.2)),
        ("mnli", {"premise": "a", "hypothesis": "b", "label": 2}, Example("a", "b", 2)),
        ("qqp", {"question1": "a", "question2": "b", "label": 0}, Example("a", "b", 0)),
    ],
)
def test_the_hub_is_asked_by_official_names(name, row, expected, folder, monkeypatch):
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*names, split):
            asked.append((*names, split))
            return [row]

    monkeypatch.setattr(data, "require", lambda module: Datasets)
    split = "dev_matched" if name == "mnli" else "dev"
    found = read_glue(name, split)
    assert found.examples == [expected]
    assert found.source.startswith("nyu-mll/glue")
    assert asked == [("nyu-mll/glue", name, split.replace("dev", "validation"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\na\t1\n", "needs the columns sentence, label"),
        ("sentence\tlabel\n", "holds no example"),
        ("\n\n", "holds no example"),
        ("sentence\tlabel\na\t2\n", r"example 1: sst2 labels are 0, 1 .* '2'"),
        ("sentence\tlabel\na\t1\nb\t-1\n", r"example 2.*test split has no labels"),
        ("sentence\tlabel\na\t1\nb\n", "1 of 2 rows have fewer than 2 columns, the first is row 2"),
    ],
)
def test_bad_files_are_named(text, message, folder):
    write(folder / "glue/sst2/dev.tsv", text)
    with pytest.raises(TaskError, match=message):
        read_glue("sst2", "dev")


def test_bad_scores(folder):
    for value in ("5.1", "nan", "high"):
        write(folder / "glue/stsb/dev.tsv", f"g\tf\ty\t1\t{value}\tA\tB\n")
        with pytest.raises(TaskError, match=f"scores are 0…5, and this one is '{value}'"):
            read_glue("stsb", "dev")


def test_the_odd_broken_row_is_left_out(folder):
    rows = ["a\t1"] * 2000
    rows[70] = "broken"
    write(folder / "sst2/train.tsv", "\n".join(["sentence\tlabel", *rows]))
    assert len(read_glue("sst2", "train").examples) == 1999


def test_unknown_and_missing(folder, monkeypatch):
    with pytest.raises(TaskError, match="choose one of cola, sst2"):
        read_glue("wnli", "dev")
    monkeypatch.setattr(data, "require", lambda module: (_ for _ in ()).throw(ImportError("no datasets")))
    with pytest.raises(DataUnavailable, match="FEWFOLD_DATA"):
        read_glue("rte", "dev")


def test_real_counts():
    if data_root() is None:
        pytest.skip("no data root: set FEWFOLD_DATA to test the real files")
    counts = {name: len(read_glue(name, "dev").examples) for name in ("cola", "sst2", "stsb", "qnli")}
    assert counts == {"cola": 1043, "sst2": 872, "stsb": 1500, "qnli": 5463}
    positive = sum(example.label for example in read_glue("sst2", "dev").examples)
    assert positive == 444
