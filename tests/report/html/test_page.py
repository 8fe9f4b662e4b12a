"""The page's markup without a browser: whole, escaped, and without anything from elsewhere."""

import re
import xml.etree.ElementTree as ET

import pytest

from fewfold.report.html.entries import Entry, Score
from fewfold.report.html.page import page as render
from fewfold.report.html.pictures import quality_pictures, speed_pictures
from fewfold.report.html.sources import Sources, read_sources


def test_the_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 400_000
    addresses = [url for url in re.findall(r"https?://[^\"'\s<]+", text) if "www.w3.org" not in url]
    assert addresses == []
    assert not re.search(r"<(link|img|iframe)\b|<script[^>]*\bsrc=|@import", text)
    assert "default-src 'none'" in text


def test_names_are_escaped_and_numbers_whole(page):
    text = page.read_text(encoding="utf-8")
    assert "<title>A few &lt;models&gt;</title>" in text
    assert "codes, &#34;best&#34;, 1/4</th>" in text
    assert 'data-value="0.45">0.4500</td>' in text
    assert '<td class="number" data-value="">–</td>' in text


def test_pictures_are_sound_markup_and_follow_the_page(files):
    entries = read_sources(list(files.values())).entries
    pictures = [*quality_pictures(entries), *speed_pictures(entries)]
    titles = [picture.title for picture in pictures]
    assert titles[:2] == ["Size against nn10", "Size against cosine to dense"]
    assert "Size against latency at 1×16" in titles
    assert "Size against work" in titles
    for picture in pictures:
        ET.fromstring(picture.markup)
        assert "var(--ink)" in picture.markup
        assert "#000000" not in picture.markup


def test_the_caption_tells_the_front(files):
    entries = read_sources([files["quality"]]).entries
    caption = next(one.caption for one in quality_pictures(entries) if one.title == "Size against nn10")
    assert caption == (
        "nn10: more is better. On the front (line): low rank, 1/4 (40.00 MB, 0.5); low rank, 1/2 (60.00 MB, 0.7); "
        "dense (90.00 MB, 1)."
    )


def test_points_tell_their_names(files):
    entries = read_sources([files["quality"]]).entries
    markup = quality_pictures(entries)[0].markup
    hints = [one.text for one in ET.fromstring(markup).iter("{http://www.w3.org/2000/svg}title")][1:]
    assert [hint.split(":")[0] for hint in hints] == [entry.name for entry in entries]


def test_words_and_numbers_are_told_whole():
    heights = {"low-rank 0.125": 0.8634, "low-rank 0.1875": 0.8699, "#000000": 0.8651}
    entries = [
        Entry(name, "a.json", {"sts": Score(height)}, bytes=size * 1_000_000)
        for size, (name, height) in enumerate(heights.items(), 5)
    ]
    drawing = ET.fromstring(quality_pictures(entries)[0].markup)
    hints = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert hints == [f"{name}: {size}.00 MB, sts {height}" for size, (name, height) in enumerate(heights.items(), 5)]
    texts = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "low-rank 0.1875" in texts
    heights_told = [text for text in texts if text.startswith("0.")]
    assert len(set(heights_told)) == len(heights_told) > 2


def test_odd_names_are_drawn_as_they_are():
    entries = [Entry(name, "a.json", {"nn10": Score(1.0)}, bytes=9) for name in (r"$\frac{", "<b>&</b>", "")]
    markup = quality_pictures(entries)[0].markup
    texts = [one.text for one in ET.fromstring(markup).iter("{http://www.w3.org/2000/svg}text")]
    assert {r"$\frac{", "<b>&</b>"} <= set(texts)


def test_a_page_about_nothing_measured_still_stands():
    text = render(Sources(), "empty")
    assert "0 measured models" in text


@pytest.mark.parametrize("section", ["quality", "speed", "recovery", "recipes", "numbers"])
def test_sections_are_linked(page, section):
    text = page.read_text(encoding="utf-8")
    assert f'href="#{section}"' in text
    assert f'id="{section}"' in text
