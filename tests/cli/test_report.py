"""The command that draws the report."""

import json
import re

import pytest


def cells(page):
    """The page's data: for each row of the table, what is downloaded by the heading's name."""
    headings = re.findall(r'data-name="([^"]*)"', page)
    body = page[page.index("<tbody>", page.index('id="table"')) :]
    rows = [re.findall(r'data-value="([^"]*)"', row) for row in body[: body.index("</tbody>")].split("</tr>")[:-1]]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


@pytest.mark.full
def test_what_measure_prints_is_on_the_page(run, measured, small, tmp_path):
    out = tmp_path / "page.html"
    assert json.loads(run("report", measured.file, small.folder, "--out", out, "--json").out)["entries"] == 2
    page = out.read_text(encoding="utf-8")
    found = cells(page)
    for folder, costs in measured.json["models"].items():
        row = found[folder.rpartition("/")[2]]
        for point in measured.json["grid"][folder]:
            assert float(row[f"ms at {point['batch']}×{point['length']}"]) == point["median"]
            assert f"({point['low']:,.2f}…{point['high']:,.2f})</td>" in page
        assert float(row["load, s"]) == costs["load_seconds"]
        for heading, cost in [
            ("MB", "stored_bytes"), ("memory, MB", "resident_bytes"), ("peak, MB", "peak_bytes"),
            ("activations, MB", "activation_bytes"), ("live, M", "live_parameters"), ("parameters, M", "parameters"),
            ("MACs a token, M", "macs_per_token"),
        ]:  # fmt: skip
            assert float(row[heading]) == pytest.approx(costs[cost] / 1e6)
    for title in ("latency at 1×8", "latency at 2×8", "work", "memory", "load time"):
        assert f"<h3>Size against {title}</h3>" in page


def test_a_page_about_a_table_and_a_folder(run, small, encoder, tmp_path):
    row = {"name": "a", "neighbour_overlap": 0.5, "cosine": 0.6, "bytes": 10, "parameters": 2, "macs": 1.0}
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [row, {**row, "name": "b", "bytes": 20}]}))
    out = tmp_path / "page.html"
    told = json.loads(
        run("report", tmp_path / "rows.json", small.folder, "--dense", encoder, "--out", out, "--json").out
    )
    assert told == {"report": str(out), "bytes": out.stat().st_size, "entries": 3, "folders": 1, "skipped": []}
    text = out.read_text(encoding="utf-8")
    assert "encoder.layer.1.attention.self.query" in text
    assert "low-rank-int8" in text
    assert "Errors" in text


def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path):
    odd = tmp_path / "odd.json"
    odd.write_text("[]")
    for arguments, words in [
        ([odd, "--out", tmp_path / "page.html"], "holds nothing to report on"),
        ([odd, "--out", tmp_path / "page.pdf"], "give a file that ends in .html"),
        ([odd, "--out", tmp_path / "none" / "page.html"], "does not exist"),
        ([odd, "--dense", tmp_path, "--out", tmp_path / "page.html"], "no config.json"),
    ]:
        result = run("report", *arguments)
        assert result.code == 1
        assert words in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.json"]
