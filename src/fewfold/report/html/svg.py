"""Pictures as SVG that belongs to a page: its colours, its font, its names for screen readers."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

# What pictures are drawn in, and the page's colour that takes its place: so they follow light and dark.
THEME = {
    "#000000": "var(--ink)",
    "#222222": "var(--ink)",
    "#777777": "var(--muted)",
    "#999999": "var(--muted)",
    "#b0b0b0": "var(--grid)",
    "#e3e3e3": "var(--grid)",
    "#ffffff": "var(--paper)",
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewfold",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "legend.fontsize": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def svg(figure: Any, name: str, title: str, hints: Mapping[str, str]) -> str:
    """Turn a figure into an inline ``<svg>`` that scales with its place.

    :param figure: the matplotlib figure, drawn under `SETTINGS`.
    :param name: unique on the page; it stands before every id within.
    :param title: what the picture is, for those who hear it.
    :param hints: by gid of an artist, the words that appear when a pointer rests on it.
    :return: markup without a fixed size.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _restyled(tag[0]), text)
    for gid, words in hints.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(words)}</title>', 1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg {box[0]} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head += f' role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    return head + text[text.index(">") + 1 :].strip()


def _restyled(tag: str) -> str:
    """A tag in the page's colours, with coordinates of two decimals; words and numbers that are read stand outside."""
    for drawn, themed in THEME.items():
        tag = re.sub(drawn, themed, tag, flags=re.IGNORECASE)
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", tag)
