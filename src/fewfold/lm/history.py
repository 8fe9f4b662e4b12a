"""The curve of a training as a file of one JSON object a line, cut back where a training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import write_whole

FILE = "history.jsonl"


class History:
    """Points of a training: ``kind`` is "train" (means since the point before) or "valid".

    :param folder: where `history.jsonl` is kept; None keeps it in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.points: list[dict[str, Any]] = []
        self._file = None if folder is None else folder / FILE

    def add(self, kind: str, **values: Any) -> dict[str, Any]:
        """Append a point, and write it down."""
        point = {"kind": kind, **values}
        self.points.append(point)
        if self._file is not None:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
        return point

    def go_on(self, count: int) -> None:
        """Take the first points from the file, and drop those that a stopped training wrote after its checkpoint."""
        if self._file is None:
            return
        lines = self._file.read_text(encoding="utf-8").splitlines()[:count] if self._file.is_file() else []
        self.points = [json.loads(line) for line in lines]
        write_whole(self._file, "".join(f"{line}\n" for line in lines))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The points of one kind."""
        return [{name: value for name, value in p.items() if name != "kind"} for p in self.points if p["kind"] == kind]
