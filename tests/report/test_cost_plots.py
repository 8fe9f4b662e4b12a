"""The picture of costs."""

import pytest

from fewfold.report.cost_plots import BARS, cost_plot, draw_shares


def _models():
    base = {key: 100.0 * (place + 1) for place, key in enumerate(BARS)}
    return {
        "small": {key: value / 4 for key, value in base.items()} | {"live_parameters": base["live_parameters"]},
        "dense": base,
    }


def test_bars_are_shares_of_the_last_model():
    matplotlib = pytest.importorskip("matplotlib.figure")
    axis = matplotlib.Figure().subplots()
    small, dense = draw_shares(axis, _models())
    assert small == [1.0 if key == "live_parameters" else 0.25 for key in BARS]
    assert dense == [1.0] * len(BARS)
    widths = [patch.get_width() for patch in axis.patches]
    assert widths == [100 * share for share in small + dense]


def test_a_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    points = [{"batch": 1, "length": n, "median": 2.0 * n, "low": n, "high": 3.0 * n} for n in (16, 128)]
    file = cost_plot(_models(), {"small": points, "dense": points}, tmp_path / "costs.png")
    assert file.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="at least one model"):
        cost_plot({}, {}, tmp_path / "none.png")
