"""What the site adds to its pages while it is built."""

import importlib
import inspect
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what pages only mark: the list of measured tables, and the fields of configs, of all or by name."""
    if "<!-- tables -->" in markdown:
        markdown = markdown.replace("<!-- tables -->", tables(page))
    if "<!-- configs -->" in markdown:
        markdown = markdown.replace("<!-- configs -->", configs())
    return re.sub(r"<!-- fields ([\w.]+) -->", lambda found: fields(found[1]), markdown)


def fields(path: str) -> str:
    """What a pydantic model says of itself, and a table of its fields, by its dotted name."""
    module, _, name = path.rpartition(".")
    config = getattr(importlib.import_module(module), name)
    return f"{_words(config)}\n\n{_fields(config, set(config.model_fields))}"


def tables(page: Any) -> str:
    """The measured tables by their titles, whichever there are."""
    folder = Path(page.file.abs_src_path).parent
    files = [file for file in sorted(folder.glob("*.md")) if file.name != "index.md"]
    titles = {file.name: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}
    lines = [f"- [{title}]({name})" for name, title in sorted(titles.items(), key=lambda item: item[1].lower())]
    return "\n".join(lines)


def configs() -> str:
    """A table of fields for what all configs have, and for what each adds."""
    from fewfold.methods.base import MethodConfig
    from fewfold.methods.registry import METHODS

    common = set(MethodConfig.model_fields)
    parts = ["## All methods\n", _fields(MethodConfig, common)]
    for method in METHODS.values():
        own = [name for name in method.config.model_fields if name not in common and name != "method"]
        parts += [f"\n## {method.config.__name__}\n", f"`method: {method.name}`. {_words(method.config)}\n"]
        parts += [_fields(method.config, own)] if own else []
    return "\n".join(parts)


def _fields(config: Any, names: Collection[str]) -> str:
    lines = ["| field | default | |", "|---|---|---|"]
    for name, field in config.model_fields.items():
        if name in names:
            default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
            lines.append(f"| `{name}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _words(config: Any) -> str:
    return (inspect.getdoc(config) or "").replace("``", "`")
