"""Bytes of a saved model on disk."""

from __future__ import annotations

from os import PathLike
from pathlib import Path


def file_bytes(folder: str | PathLike[str]) -> int:
    """Count the bytes of a saved model's weight files, headers included.

    All `*.safetensors` directly in the folder count, so a sharded model is counted whole; sub-folders (other
    exports, training checkpoints) do not.

    :param folder: The folder that `save_pretrained` wrote, or one weight file.
    :return: Number of bytes.
    :raises FileNotFoundError: If there is no safetensors file.
    """
    path = Path(folder)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path}: no *.safetensors file here; give the folder that save_pretrained wrote")
    return sum(file.stat().st_size for file in files)


def folder_bytes(folder: str | PathLike[str]) -> int:
    """Count the bytes of all files in a folder and below it: weights, config, tokenizer and the rest.

    :param folder: An existing folder.
    :return: Number of bytes.
    :raises NotADirectoryError: If the folder does not exist.
    """
    path = Path(folder)
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: not a folder")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
