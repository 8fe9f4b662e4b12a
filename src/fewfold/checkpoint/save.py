"""Save and load whole checkpoint folders: atomically, with tokenizer, side files and model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from fewfold import models as families
from fewfold.checkpoint.card import restore_card, write_card
from fewfold.checkpoint.config import structure_of
from fewfold.errors import CheckpointError
from fewfold.stored import pack

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.ot")
_SKIPPED_FOLDERS = ("onnx", "openvino", ".git", ".cache", "__pycache__")


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    source: str | os.PathLike[str] | None = None,
    numbers: dict[str, Any] | None = None,
) -> Path:
    """Write a complete checkpoint: weights, config, card, and everything else that stands beside the original.

    The folder appears in one step when all is written; a killed save leaves what was there before.

    :param tokenizer: saved along, if given.
    :param source: the folder the model came from: its tokenizer and sentence-transformers files are kept.
    :param numbers: measured figures for the model card.
    :return: the folder.
    """
    folder = Path(folder)
    with atomic_folder(folder) as partial:
        if source is not None:
            copy_side_files(Path(source), partial)
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if structure_of(model) is not None:
            write_card(model, partial, source=source, numbers=numbers)
        else:
            restore_card(partial)
    return folder


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, that takes its place only when the block ends without an error."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder to save into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
        _open_as_usual(partial)
        if folder.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
            os.rename(folder, retired / "old")
            os.rename(partial, folder)
            shutil.rmtree(retired)
        else:
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open_as_usual(folder: Path) -> None:
    """Give folder and weights the permissions of new ones: temporary folders and safetensors are the user's alone."""
    probe = folder / ".permissions"
    probe.mkdir()
    usual = probe.stat().st_mode
    (probe / "file").touch()
    usual_file = (probe / "file").stat().st_mode
    shutil.rmtree(probe)
    folder.chmod(usual)
    for file in folder.rglob("*.safetensors"):
        file.chmod(usual_file)


def copy_side_files(source: Path, folder: Path) -> None:
    """Copy what stands beside the weights: tokenizer, sentence-transformers modules, generation config, card."""
    if not source.is_dir():
        return

    def ignore(_: str, names: list[str]) -> set[str]:
        weights = {name for pattern in _WEIGHTS for name in shutil.fnmatch.filter(names, pattern)}  # type: ignore[attr-defined]
        return weights | {name for name in names if name in _SKIPPED_FOLDERS or name == ".gitattributes"}

    shutil.copytree(source, folder, ignore=ignore, dirs_exist_ok=True)


def load(folder: str | os.PathLike[str], *, packed: bool = False, **kwargs: Any) -> Any:
    """Load a model, compressed or dense, in the class that it was saved from.

    :param packed: keep integer-stored tensors in their small form in memory (less memory, slower, no training).
    :param kwargs: passed to ``from_pretrained``.
    :raises CheckpointError: if the folder holds no model.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no model that transformers can load: {error}") from error
    homes = (transformers, families)
    classes = [getattr(home, name) for name in config.architectures or [] for home in homes if hasattr(home, name)]
    loader = classes[0] if classes else transformers.AutoModel
    model: nn.Module = loader.from_pretrained(folder, **kwargs)
    return pack(model) if packed else model
