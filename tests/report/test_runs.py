from __future__ import annotations

import json

import pytest

from fewfold.report.runs import FORMAT, BadRecord, RunRecord, read_run, read_runs, run_file, slug, write_run


def record(name="low rank, 1/7", **values):
    return RunRecord(name, "recover", "tiny", budget="1/7 of linears", numbers={"sts": {"spearman": 0.5}}, **values)


def test_a_record_reads_back_as_it_was_written(tmp_path):
    run = record(series={"loss": [[0.0, 1.5], [2.0, 0.25]]}, minutes=10.0, tokens=7)
    path = write_run(run, tmp_path)
    assert path == run_file("recover", "low rank, 1/7", tmp_path)
    assert read_run(path) == run
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_run_of_the_same_name_replaces_the_old_one(tmp_path):
    write_run(record(minutes=1.0), tmp_path)
    write_run(record(minutes=2.0), tmp_path)
    (run,) = read_runs([tmp_path])
    assert run.minutes == 2.0


def test_folders_are_read_with_all_below_them_and_kinds_are_told_apart(tmp_path):
    write_run(record("b"), tmp_path)
    write_run(record("a"), tmp_path)
    write_run(RunRecord("c", "speed", "tiny"), tmp_path)
    assert [run.name for run in read_runs([tmp_path], kind="recover")] == ["a", "b"]
    assert len(read_runs([tmp_path, run_file("speed", "c", tmp_path)])) == 4


def test_names_that_differ_have_files_of_their_own():
    names = ["low rank, 1/4", "low rank, 1/48", "low rank, 4×", "shared layers + delta, 1/4", "shared layers, 1/4"]
    assert len({slug(name) for name in names}) == len(names)
    assert slug("Codes (5 MB)/2") == "codes-5-mb-of-2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "no record"),
        ('{"rows": []}', "no 'format'"),
        (json.dumps({"format": FORMAT + 1}), "update fewfold"),
        (json.dumps({"format": FORMAT, "name": "a"}), "it has no kind, model"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text, reason):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BadRecord, match=reason) as caught:
        read_run(path)
    assert "x.json" in str(caught.value)


def test_a_place_that_is_missing_is_named(tmp_path):
    with pytest.raises(BadRecord, match="nowhere"):
        read_runs([tmp_path / "nowhere"])
