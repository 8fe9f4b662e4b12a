"""Joining entries and the Pareto front, against naive loops."""

import random

import pytest

from fewfold.report.html.entries import Entry, Score, front, joined, metrics_of, more_is_better


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_front_holds_exactly_what_nothing_beats(seed, more):
    draw = random.Random(seed)
    points = [(draw.randint(1, 12), draw.randint(1, 12)) for _ in range(30)]
    sign = 1 if more else -1

    def beaten(i):
        cost, value = points[i]
        return any(c <= cost and sign * v >= sign * value and (c, v) != (cost, value) for c, v in points)

    naive = {points[i] for i in range(len(points)) if not beaten(i)}
    found = [points[i] for i in front(points, more)]
    assert set(found) == naive
    assert found == sorted(naive)


def test_entries_of_one_folder_become_one():
    first = Entry("small", "a.json", {"accuracy": Score(0.9)}, bytes=4, folder="m/small")
    second = Entry(
        "small", "b.json", {"nn10": Score(0.5)}, bytes=5, macs=7.0, latency={"1x16": Score(2.0)}, folder="m/small"
    )
    (one,) = joined([first, second])
    assert one.quality == {"accuracy": Score(0.9), "nn10": Score(0.5)}
    assert (one.bytes, one.macs, one.latency, one.origin) == (4, 7.0, {"1x16": Score(2.0)}, "a.json, b.json")


def test_a_model_that_was_judged_twice_keeps_both_results():
    tuned = Entry("small", "tuned.json", {"sst2, accuracy": Score(0.92)}, folder="m/small")
    probed = Entry("small", "probed.json", {"sst2, accuracy": Score(0.71)}, folder="m/small")
    first, second = joined([tuned, probed])
    assert first == tuned
    assert (second.name, second.quality) == ("small (probed.json)", probed.quality)


def test_a_model_that_was_judged_often_keeps_all_results():
    entries = [
        Entry("small", f"{n}.json", {"sst2": Score(value)}, folder="m/small") for n, value in enumerate((3, 5, 4))
    ]
    more = Entry("small", "costs.json", {"nn10": Score(0.5)}, folder="m/small")
    found = joined([*entries, more])
    assert [entry.quality["sst2"].value for entry in found] == [3, 5, 4]
    assert [entry.name for entry in found] == ["small", "small (1.json)", "small (2.json)"]
    assert found[0].quality["nn10"] == Score(0.5)


def test_repeated_rows_stand_once_and_different_ones_stay():
    dense = Entry("dense", "a.json", {"nn10": Score(1.0)}, bytes=9)
    again = Entry("dense", "b.json", {"nn10": Score(1.0)}, bytes=9)
    other = Entry("dense", "b.json", {"nn10": Score(0.9)}, bytes=9)
    assert joined([dense, again, other]) == [dense, other]


def test_families_and_directions():
    names = ["codes (codes-default), 15×", "codes, 1/4", "codes: 10 min"]
    assert {Entry(name, "a").family for name in names} == {"codes"}
    assert [more_is_better(name) for name in ("nn10", "wiki, perplexity", "error of hidden states")] == [
        True,
        False,
        False,
    ]
    rare, common = Entry("a", "a", {"x": Score(1)}), Entry("b", "a", {"y": Score(1)})
    assert metrics_of([rare, common, common]) == ["y", "x"]
