import gzip
import json
import lzma

import pytest

from fewfold.distill.examples import read_examples
from fewfold.errors import CalibrationError
from fewfold_cli.texts import MANUAL, calibration_texts, excluded, rows


def test_files_of_lines(tmp_path):
    file = tmp_path / "lines.txt.xz"
    file.write_bytes(lzma.compress("one text\n\n  \nänother\n".encode()))
    assert calibration_texts(str(file)) == (["one text", "änother"], "lines.txt.xz")


def test_manual_is_on_every_machine():
    texts, name = calibration_texts(MANUAL)
    assert name == MANUAL
    assert len(set(texts)) == 512


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_unusable_files(tmp_path, content):
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"texts\.txt"):
        calibration_texts(str(file))


@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.json.gz"])
def test_tables_are_not_read_as_lines(tmp_path, name):
    file = tmp_path / name
    file.write_text("sentence,label\na cat,1\n")
    for read in (calibration_texts, lambda source: rows([source]), lambda source: excluded([source])):
        with pytest.raises(CalibrationError, match=rf"{name} is a table \(\.[a-z]+\)"):
            read(str(file))


def test_tables_are_rows(tmp_path):
    quoted, tabs = tmp_path / "rows.csv", tmp_path / "rows.tsv.gz"
    quoted.write_text('sentence,label\n"one, ""two""",1\nthree,0\n')
    tabs.write_bytes(gzip.compress(b'label\tsentence\n1\tsay "a\n0.5\tb\n'))
    first = [{"sentence": 'one, "two"', "label": "1"}, {"sentence": "three", "label": "0"}]
    second = [{"label": "1", "sentence": 'say "a'}, {"label": "0.5", "sentence": "b"}]
    assert rows([str(quoted), str(tabs)]) == ([*first, *second], "rows.csv, rows.tsv.gz")
    assert calibration_texts(str(tabs)) == (['say "a', "b"], "rows.tsv.gz")
    assert read_examples(first + second, True).labels == [1.0, 0.0, 1.0, 0.5]
    spread = tmp_path / "SHEET.CSV"
    spread.write_text("\ufeffsentence,label\nthree,0\n")
    assert rows([str(spread)])[0] == first[1:]
    quoted.write_text('\ufeffsentence,label\n"First line.\n\nSecond, the same text.",1\n\n  \nthree,0\n')
    assert rows([str(quoted)])[0] == [{"sentence": "First line.\n\nSecond, the same text.", "label": "1"}, first[1]]
    (tmp_path / "rows.jsonl").write_text('\ufeff{"text": "one"}\n\n{"text": "two"}\n')
    assert rows([str(tmp_path / "rows.jsonl")])[0] == [{"text": "one"}, {"text": "two"}]
    quoted.write_text("sentence,label\na,1\nb,c,2\n")
    with pytest.raises(CalibrationError, match="row 3 has more fields than the header"):
        rows([str(quoted)])


def test_what_tasks_judge_on_is_excluded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    for name, content in {
        "sst2/dev.tsv": "sentence\tlabel\na cat\t1\na dog\t0\na cat\t0\n",
        "rte/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\tentailment\n1\ttwo\tthree\tnot_entailment\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    assert excluded(["sst2-dev", "rte-dev"]) == ["a cat", "a dog", "one", "two", "three"]
    paragraphs = [
        {"context": "A cat.", "qas": [{"question": "Who?", "id": "1", "answers": [{"text": "cat", "answer_start": 2}]}]}
    ]
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "dev-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert excluded(["squad-dev"]) == ["Who?", "A cat."]
    assert excluded(["python-manual"])
    with pytest.raises(CalibrationError, match="other-dev: no such file; give a text file, or stsb-dev, sst2-dev"):
        excluded(["other-dev"])


def test_texts_and_rows_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    with pytest.raises(CalibrationError, match=r"a\.txt holds texts and .*b\.jsonl holds rows"):
        rows([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('{"text": "one", "label": 1}\n{"text": "two"}\n', ["one", "two"]),
        ('{"sentence1": "a", "sentence2": "b"}\n{"sentence1": "c", "sentence2": "d"}\n', ["a", "c", "b", "d"]),
    ],
)
def test_rows_give_their_texts(tmp_path, lines, expected):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines)
    assert calibration_texts(str(file)) == (expected, "rows.jsonl")
    assert excluded([str(file)]) == expected
    assert rows([str(file)])[0] == [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"body": "one"}\n', "--exclude .*rows.jsonl: data has the columns body"),
        ('{"text": "one"}\n["two"]\n', "line 2 is no object"),
        ('{"text": "one"}\nplain\n', "line 2 is no JSON"),
    ],
)
def test_rows_without_texts_are_refused(tmp_path, lines, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines)
    with pytest.raises(CalibrationError, match=message):
        excluded([str(file)])
