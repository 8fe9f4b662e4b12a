"""A table's fit that is stopped goes on where it was."""

from functools import partial

import pytest
import torch
from tiny_models import make

import fewfold
from fewfold import SubvectorCodes
from fewfold.linalg import subvectors_by_columns
from fewfold.linalg.kmeans import kmeans
from fewfold.linalg.subvectors import fit_codes
from fewfold.methods.subvector_codes import remembered, table

CONFIG = SubvectorCodes(targets="embeddings", width=2, words=8, weighting="none")


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(remembered, "LARGE", 1)
    monkeypatch.setenv("FEWFOLD_CACHE", str(tmp_path))


class Counted:
    """k-means that counts its calls and may be stopped after some."""

    def __init__(self, stop=None):
        self.calls, self.stop = 0, stop

    def __call__(self, *args, **kwargs):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return kmeans(*args, **kwargs)


def words_of(model):
    return [m.weight for name, m in model.named_modules() if "codebooks." in name]


def test_a_stopped_fit_goes_on(monkeypatch):
    straight = fewfold.compress(make("bert"), CONFIG)
    for file in (remembered.cache_folder().parent / "words").iterdir():
        file.unlink()
    stopped = Counted(stop=3)
    monkeypatch.setattr(remembered, "kmeans", stopped)
    with pytest.raises(KeyboardInterrupt):
        fewfold.compress(make("bert"), CONFIG)
    again = Counted()
    monkeypatch.setattr(remembered, "kmeans", again)
    resumed = fewfold.compress(make("bert"), CONFIG)
    positions = words_of(resumed)[0].shape[0] // 8
    assert positions > 4
    assert again.calls == positions - 3
    assert all(torch.equal(a, b) for a, b in zip(words_of(straight), words_of(resumed), strict=True))


@pytest.mark.parametrize("change", ["points", "weights", "words", "seed"])
def test_what_it_depends_on_is_told_apart(change, monkeypatch):
    points, weights = torch.randn(50, 3), torch.rand(50)
    remembered.remembered_kmeans(points, 4, weights, seed=0)
    counted = Counted()
    monkeypatch.setattr(remembered, "kmeans", counted)
    remembered.remembered_kmeans(points, 4, weights, seed=0)
    assert counted.calls == 0
    points, weights = points.clone(), weights.clone()
    if change == "points":
        points[49, 2] += 1
    if change == "weights":
        weights[0] += 1
    found = remembered.remembered_kmeans(points, 5 if change == "words" else 4, weights, seed=int(change == "seed"))
    assert counted.calls == 1
    assert found.shape == (5 if change == "words" else 4, 3)


def test_a_damaged_file_is_computed_anew():
    points = torch.randn(50, 3)
    wanted = remembered.remembered_kmeans(points, 4)
    (file,) = (remembered.cache_folder().parent / "words").iterdir()
    file.write_bytes(b"half")
    assert torch.equal(remembered.remembered_kmeans(points, 4), wanted)
    assert torch.equal(remembered.remembered_kmeans(points, 4), wanted)


@pytest.mark.parametrize(
    "config", [CONFIG, SubvectorCodes(targets="embeddings", width=4, words=8, codebooks="matrix", frequent=20)]
)
def test_a_table_that_is_coded_by_columns_goes_on(config, monkeypatch):
    monkeypatch.setattr(table, "HELD_AT_ONCE", 1)
    monkeypatch.setattr(subvectors_by_columns, "GROUP_COLUMNS", 4)
    folder = remembered.cache_folder().parent / "codes"
    calls = []

    def coded(*args, stop=None, **kwargs):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(args)
        return fit_codes(*args, **kwargs)

    def run(stop=None):
        calls.clear()
        monkeypatch.setattr(subvectors_by_columns, "fit_codes", partial(coded, stop=stop))
        return fewfold.compress(make("bert"), config)

    straight = run()
    whole = len(calls)
    assert whole > 3
    assert not any(folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(stop=3)
    shared = int(config.codebooks == "matrix")  # found anew, from remembered k-means
    assert len(list(folder.iterdir())) == 3 - shared
    resumed = run()
    assert len(calls) == whole - 3 + shared
    assert not any(folder.iterdir())
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
