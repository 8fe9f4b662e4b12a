"""What has to be the same of a model for a stopped training to go on with it."""

from __future__ import annotations

import json
from typing import Any

_PASSING = ("transformers_version", "provenance")  # the latter says when a structure was made


def config_of(model: Any) -> dict[str, Any]:
    """A model's config as JSON gives it back, without what changes from run to run."""
    described: dict[str, Any] = json.loads(json.dumps(model.config.to_diff_dict(), default=str, sort_keys=True))
    return _lasting(described)


def _lasting(described: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _lasting(value) if isinstance(value, dict) else value
        for name, value in described.items()
        if name not in _PASSING
    }
