import pytest

from fewfold.report.curves import draw_losses, loss_plot


def phase(name, *parts):
    def point(step):
        losses = {part: 1.0 / step for part in parts}
        return {"step": step, "seconds": 60.0 * step, "loss": len(parts) / step, **losses}

    noise = {"tokens": 5, "learning_rate": 0.1, "gradient_norm": 2.0}
    curve = [{**point(step), **noise} for step in (1, 2, 4)]
    return {"config": {"name": name}, "curve": curve, "held_out": [point(1), point(4)]}


def test_curves_are_drawn_over_minutes():
    figure = draw_losses([phase("general", "hidden_last", "hidden_all"), phase("task", "logits")])
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["general", "task"]
    lines = {line.get_label(): line for line in first.lines}
    assert set(lines) == {"training", "hidden, last", "hidden, all", "held-out texts"}
    assert lines["training"].get_xdata().tolist() == [1, 2, 4]
    assert lines["training"].get_ydata().tolist() == [2, 1, 0.5]
    assert lines["hidden, all"].get_ydata().tolist() == [1, 0.5, 0.25]
    assert lines["held-out texts"].get_xdata().tolist() == [1, 4]
    assert {line.get_label() for line in second.lines} == {"training", "held-out texts"}


def test_the_picture_is_written(tmp_path):
    file = loss_plot([phase("general", "hidden_last")], tmp_path / "loss.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one phase"):
        loss_plot([], tmp_path / "none.png")
