"""Every form of record is told apart by its content; what is none is named."""

import json

import pytest

from fewfold.report.html import ReportError
from fewfold.report.html.entries import Score
from fewfold.report.html.sources import read_sources


def _entries(*places):
    return {entry.name: entry for entry in read_sources(places).entries}


def test_rows_of_quality(files):
    found = _entries(files["quality"])
    assert list(found) == ["dense", "low rank, 1/4", "low rank, 1/2", 'codes, "best", 1/4', "floor"]
    quarter = found["low rank, 1/4"]
    assert quarter.bytes == 40_000_000
    assert quarter.parameters == 10_000_000
    assert quarter.quality["nn10"] == Score(0.5)
    assert quarter.quality["STS, Spearman"] == Score(0.80, 0.80 - 0.02, 0.80 + 0.02)
    assert quarter.minutes == 0.5
    assert found["floor"].is_floor
    assert not quarter.is_floor


def test_evaluation_and_costs_of_one_folder_are_joined(files):
    found = _entries(files["sst2"], files["costs"])
    assert set(found) == {"small", "dense"}
    small = found["small"]
    assert small.quality == {"sst2, accuracy": Score(0.9, 0.88, 0.92)}
    assert (small.bytes, small.latency, small.minutes) == (4_000_000, {"1x16": Score(3.5)}, 2.0)
    assert found["dense"].bytes == 36_000_000


def test_files_of_one_name_are_told_apart(files, tmp_path):
    record, places = json.loads(files["sst2"].read_text()), []
    for name in ("a", "b", "c"):
        places.append(tmp_path / name / "sst2.json")
        places[-1].parent.mkdir()
        places[-1].write_text(json.dumps({**record, "environment": {"torch": name}}))
    sources = read_sources([*places, places[0]])
    assert list(sources.environments)[:3] == ["sst2.json", "b/sst2.json", "c/sst2.json"]
    assert [told["torch"] for told in sources.environments.values()] == ["a", "b", "c", "a"]


def test_run_records_keep_before_and_after_apart(files):
    sources = read_sources([files["run"]])
    told = [(one.name, one.quality["nn10"].value, one.minutes) for one in sources.entries]
    assert told == [("codes, 1/7, 10 min, before", 0.4, None), ("codes, 1/7, 10 min, after", 0.6, 10.0)]
    assert sources.recipes == [("codes, 1/7, 10 min", [{"method": "codes"}])]


def test_flat_numbers_of_a_run(tmp_path):
    numbers = {"bytes": 5, "accuracy": 0.5, "bleu": {"value": 30.0, "low": 29.0, "high": 31.0}, "latency_ms": 2.0}
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "kind": "k", "model": "m", "numbers": numbers}))
    (one,) = read_sources([tmp_path]).entries
    assert one.quality == {"accuracy": Score(0.5), "bleu": Score(30.0, 29.0, 31.0)}
    assert (one.bytes, one.latency) == (5, {"latency": Score(2.0)})


def test_a_folder_is_read_whole_and_tells_what_it_leaves_out(files, tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "quality.json").write_text(files["quality"].read_text())
    (tmp_path / "other.json").write_text('{"speeds": [1, 2]}')
    sources = read_sources([tmp_path])
    assert len(sources.entries) == 5
    assert sources.skipped == [str(tmp_path / "other.json")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"speeds": [1, 2]}', "holds nothing to report on; give records"),
        ("{", "is no JSON"),
        ('{"neighbour_overlap": 1, "bytes": 2}', "is damaged: KeyError at 'cosine'"),
        (None, "does not exist; give records"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words):
    file = tmp_path / "odd.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ReportError, match=words) as caught:
        read_sources([file])
    assert "odd.json" in str(caught.value)


def test_dense_folders_and_empty_ones_are_refused(tmp_path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.json").write_text("{}")
    with pytest.raises(ReportError, match="give a dense model as --dense"):
        read_sources([tmp_path / "dense"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="empty holds nothing to report on"):
        read_sources([tmp_path / "empty"])
    with pytest.raises(ReportError, match="nothing to report on: give"):
        read_sources([])
