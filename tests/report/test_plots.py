import pytest
from PIL import Image

from fewfold.measure.quality import QualityRow
from fewfold.report.plots import draw_size_quality, size_quality_plot
from fewfold.tasks.sts import StsScore


def row(name, megabytes, overlap, sts=None, macs=1e6):
    score = StsScore(sts, sts - 0.02, sts + 0.02) if sts else None
    return QualityRow(name, "-", score, overlap, 0.5, 0.5, int(megabytes * 1e6), 10, macs)


ROWS = [
    row("dense", 90.9, 1.0, 0.867),
    row("int4", 55, 0.84, 0.864),
    row("int4, table too", 12, 0.80, 0.860),
    row("low rank, 1/4", 58, 0.41, 0.811),
    row("low rank, 1/7", 54, 0.35, 0.774),
    row("word-table average, no encoder", 46.9, 0.29, 0.645, macs=0),
]


def test_picture_is_written(tmp_path):
    path = size_quality_plot(ROWS, tmp_path / "plot.png")
    wide, _ = Image.open(path).size
    narrow, _ = Image.open(size_quality_plot([row("a", 1, 0.5)], tmp_path / "one.png")).size
    assert wide == 2 * narrow


def test_names_cover_neither_points_nor_each_other():
    figure, panels = draw_size_quality(ROWS)
    for axis, boxes, heights in zip(
        figure.axes,
        panels,
        ([r.neighbour_overlap for r in ROWS], [r.sts.spearman for r in ROWS]),
        strict=True,
    ):
        assert len(boxes) == len(ROWS)
        points = [axis.transData.transform((r.bytes / 1e6, h)) for r, h in zip(ROWS, heights, strict=True)]
        for place, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[place + 1 :])
            assert not any(box.contains(*point) for point in points)


def test_no_rows():
    with pytest.raises(ValueError, match="at least one row"):
        size_quality_plot([], "none.png")
