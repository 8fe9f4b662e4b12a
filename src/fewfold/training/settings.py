"""Settings whose mistakes are told by name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from fewfold.errors import TaskError


class CheckedSettings(BaseModel):
    """Settings that nothing changes and nothing unknown is added to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def make(cls, **settings: Any) -> Self:
        """Check settings.

        :raises TaskError: naming the setting, its value and what it may be.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise TaskError(f"{name}={first['input']!r}: {first['msg']}") from error
