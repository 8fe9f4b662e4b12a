"""The page in a real browser: nothing is fetched, it fits a phone, sorts, downloads and is heard."""

import csv
from itertools import pairwise

import pytest


@pytest.fixture
def opened(browser, page):
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True, accept_downloads=True)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []
    context.close()


def _column(tab, name):
    place = tab.locator("#table thead th").evaluate_all(
        "(all, name) => all.findIndex(h => h.dataset.name == name)", name
    )
    return tab.locator("#table tbody tr").evaluate_all("(rows, i) => rows.map(r => r.cells[i].dataset.value)", place)


def test_headings_sort_by_number_both_ways_with_the_unknown_last(opened):
    button = opened.get_by_role("button", name="nn10")
    before = [float(value) for value in _column(opened, "nn10") if value]
    assert before != sorted(before)
    button.click()
    up = _column(opened, "nn10")
    known = [float(value) for value in up if value]
    assert known == sorted(before)
    assert up[len(known) :] == [""] * (len(up) - len(known))
    assert len(up) > len(known)
    assert opened.locator("th[aria-sort]").evaluate_all("all => all.map(h => h.dataset.name + h.ariaSort)") == [
        "nn10ascending"
    ]
    button.click()
    down = _column(opened, "nn10")
    assert [float(value) for value in down if value] == known[::-1]
    assert down[-1] == ""
    assert "descending" in opened.get_by_role("status").inner_text()


def test_the_keyboard_reaches_and_sorts(opened):
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.locator("th button").first.focus()
    opened.keyboard.press("Enter")
    names = _column(opened, "model")
    assert names == sorted(names, key=str.lower)
    outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_the_download_is_the_table_as_it_stands(opened, tmp_path):
    opened.get_by_role("button", name="MB").first.click()
    with opened.expect_download() as started:
        opened.get_by_role("button", name="Download as CSV").click()
    file = tmp_path / "table.csv"
    started.value.save_as(file)
    assert started.value.suggested_filename == "a-few-models-.csv"
    rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
    assert [row["MB"] for row in rows] == _column(opened, "MB")
    assert float(rows[0]["MB"]) == pytest.approx(4.0)
    assert 'codes, "best", 1/4' in [row["model"] for row in rows]


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_nothing_sticks_out_of_the_screen(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    boxes = opened.locator("figure svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert boxes
    assert all(200 < box < width for box in boxes)


def test_everything_has_a_name_for_screen_readers(opened):
    images = opened.get_by_role("img")
    assert images.count() == opened.locator("figure").count() > 3
    names = images.evaluate_all(
        "all => all.map(i => document.getElementById(i.getAttribute('aria-labelledby')).textContent)"
    )
    assert all(len(name) > 10 for name in names)
    ids = opened.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    levels = opened.locator("h1, h2, h3").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const v = parse(c).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if ((parse(c)[3] ?? 1) > 0) return c; } return "rgb(255,255,255)"; };
  const found = [];
  for (const e of document.querySelectorAll("h1,h2,p,a,figcaption,td,th,button,summary,svg text")) {
    const style = getComputedStyle(e);
    const ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    found.push((a + 0.05) / (b + 0.05));
  }
  return Math.min(...found);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_on_light_and_dark(opened, scheme):
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate(CONTRAST) >= 4.5
