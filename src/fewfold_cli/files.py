"""Folders that commands read and write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BESIDE_WEIGHTS = (
    "*.json", "*.txt", "*.model", "*.md", "*/config.json", "*.jinja", "*.py",
    "[1-9]_*/*.safetensors", "[1-9]_*/*.bin",  # of sentence-transformers' modules behind the transformer
)  # fmt: skip
_OTHER_EXPORTS = ("onnx/*", "openvino/*", "*.index.json")


def check_output(folder: Path, force: bool, source: Path | None = None) -> Path:
    """Refuse to write where something stands, before any work is done.

    :param force: allow to replace a folder that holds a model, and only such a folder.
    :param source: the folder that is read, which must not be replaced.
    :return: the folder, resolved.
    :raises CheckpointError: saying what stands there and what to do.
    """
    from fewfold import CheckpointError
    from fewfold.checkpoint.folders import check_writable

    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder to write to")
    if source is not None and source.is_dir():
        inside = folder.resolve()
        if inside == source.resolve() or inside in source.resolve().parents:
            raise CheckpointError(f"{folder} holds the model that is read; write to another folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise CheckpointError(f"{folder} exists and is not empty; give another folder, or --force to replace it")
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} is not empty and holds no model: --force replaces models only")
    return check_writable(folder)


def check_files(*files: Path | None) -> None:
    """Refuse result files that cannot be written, before any work is done.

    :raises CheckpointError: if a path is a folder, or its folder does not exist or lets nobody write.
    """
    from fewfold import CheckpointError

    for file in files:
        if file is not None and file.is_dir():
            raise CheckpointError(f"{file} is a folder; give a file to write to")
        place = None if file is None else file.expanduser().resolve()
        if file is not None and place is not None and not place.parent.is_dir():
            raise CheckpointError(f"{file} cannot be written: there is no folder {file.parent}")
        if place is not None and not os.access(place if place.exists() else place.parent, os.W_OK):
            raise CheckpointError(f"{file} cannot be written: no permission in {place.parent}")


def existing_model(folder: Path) -> Path:
    """A folder that holds a model.

    :raises CheckpointError: if it does not.
    """
    from fewfold import CheckpointError

    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a saved model")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give the folder that save_pretrained wrote")
    return folder


@contextmanager
def model_files(model: str) -> Iterator[Path]:
    """The folder with the files that stand beside a model's weights: the folder given, or fetched from the Hub.

    :param model: a folder, or a model's name on the Hub.
    :raises CheckpointError: if it is neither.
    """
    from fewfold import CheckpointError

    path = Path(model).expanduser()
    if path.exists() or model.startswith((".", "~", os.sep)) or model.count("/") > 1:
        yield existing_model(path)
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / model.split("/")[-1]
        try:
            snapshot_download(
                model, local_dir=folder, allow_patterns=list(_BESIDE_WEIGHTS), ignore_patterns=list(_OTHER_EXPORTS)
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise CheckpointError(
                f"{model} is neither a folder here nor a model that the Hub gives ({type(error).__name__}); "
                "check the name, the connection and HF_HUB_OFFLINE"
            ) from error
        yield folder


def loadable(model: str, folder: Path) -> str | Path:
    """What to load: the folder, or for a model on the Hub its name."""
    return folder if Path(model).expanduser().is_dir() else model


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer beside a model, or None where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
