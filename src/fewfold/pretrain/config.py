"""A pretraining as one YAML file: model, methods, vocabulary, masking and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewfold.errors import TaskError
from fewfold.pretrain.settings import PretrainSettings
from fewfold.training.frequencies import Start
from fewfold.training.neighbours import Tables

PRESETS = Path(__file__).parent / "presets"


class PretrainConfig(BaseModel):
    """What is trained, on what windows, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    family: str = Field(description="sharebert, or a model type of transformers that has a masked language model")
    size: str | None = Field(None, description="of sharebert: a preset's name")
    model: dict[str, Any] = Field(default_factory=dict, description="fields of the model's config")
    methods: list[dict[str, Any]] | None = Field(
        None, description="methods that the model is built from, as in a recipe; none for a dense model"
    )
    tokenizer: str | None = Field(None, description="folder or Hub name (None: a vocabulary is trained from the text)")
    vocabulary: int = Field(8000, ge=1, description="entries of a trained vocabulary")
    vocabulary_kind: Literal["wordpiece", "bpe"] = Field("wordpiece", description="of a trained vocabulary")
    pad_vocabulary: int = Field(8, ge=1, description="rows of the token table are a multiple of this")
    length: int = Field(128, ge=4, description="tokens of a window")
    mask_share: float = Field(0.15, gt=0, lt=1, description="of a window's tokens that are to be predicted")
    most_masked: int | None = Field(None, ge=1, description="masked tokens of a window at most")
    sparse_head: bool = Field(
        True, description="score masked tokens alone: the same loss in less time, for all families whose head allows it"
    )
    output_bias: Start = Field(
        "frequencies", description="where the head's bias begins: at the logs of tokens' shares of the text, or at 0"
    )
    neighbours: Tables = Field(
        "slim", description="tables that begin at the neighbours tokens have in the text: slim (coded) ones, all, none"
    )
    training: PretrainSettings = Field(default_factory=PretrainSettings)

    @classmethod
    def read(cls, name: str) -> PretrainConfig:
        """Read a YAML file, or a preset by its name.

        :raises TaskError: If there is none, or a field is wrong.
        """
        file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
        if not file.is_file():
            raise TaskError(f"no pretraining {name!r}: give a .yaml file, or one of {', '.join(preset_names())}")
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise TaskError(f"{file} is no YAML: {error}") from error
        return cls.make(data, str(name))

    @classmethod
    def make(cls, data: Any, name: str = "config") -> PretrainConfig:
        """Check fields.

        :raises TaskError: naming the field and what it may be.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise TaskError(f"{name}: {where}: {first['msg']}") from error

    def changed(self, training: dict[str, Any], **fields: Any) -> PretrainConfig:
        """The same with other values; None leaves a value as it is.

        :raises TaskError: As of `make`.
        """
        settings = {**self.training.model_dump(), **{k: v for k, v in training.items() if v is not None}}
        return self.make(
            {**self.model_dump(), **{k: v for k, v in fields.items() if v is not None}, "training": settings}
        )


def preset_names() -> list[str]:
    """The configs that come with the library."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))
