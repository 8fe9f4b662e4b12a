"""The command that draws the report."""

import json


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
