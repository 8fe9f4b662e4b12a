"""What the site adds to its pages while it is built."""

from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """List the measured tables by their titles, whichever there are."""
    if "<!-- tables -->" not in markdown:
        return markdown
    folder = Path(page.file.abs_src_path).parent
    files = [file for file in sorted(folder.glob("*.md")) if file.name != "index.md"]
    titles = {file.name: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}
    lines = [f"- [{title}]({name})" for name, title in sorted(titles.items(), key=lambda item: item[1].lower())]
    return markdown.replace("<!-- tables -->", "\n".join(lines))
