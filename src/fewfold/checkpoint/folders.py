"""Folders that appear whole or not at all, and what is copied into them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from fewfold.errors import CheckpointError, FewfoldWarning

WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.ot", "*.pt",
    "*.pth", "*.gguf",
)  # fmt: skip
_SKIPPED = ("onnx", "openvino", "checkpoint-*", ".git", ".gitattributes", ".cache", "__pycache__", ".*.partial-*")


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Refuse to write over what is no model, or where nothing can be written; to be asked before any work.

    :return: the folder, resolved.
    :raises CheckpointError: saying what stands there and what to do.
    """
    given, folder = folder, Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{given} is a file; give a folder to save into")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{given} holds files and no model (no config.json), and saving would remove them: give another folder"
        )
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        raise CheckpointError(f"{given} cannot be written: no permission in {nearest}")
    return folder


def write_whole(file: Path, text: str) -> None:
    """Write a file that others see as it was before or as it is now, never in part.

    A link, what is no regular file, and a file in a folder that cannot be written to are written through, in place.
    """
    if file.is_symlink() or (file.exists() and not file.is_file()) or not os.access(file.parent, os.W_OK):
        file.write_text(text, encoding="utf-8")
        return
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into, that takes its place only when the block ends without an error.

    What was there before is replaced as a whole, if it is a model or empty. A folder that cannot be renamed (a mount,
    the working directory, in a parent without permission) is filled file by file at the end.

    :raises CheckpointError: as of :func:`check_writable`.
    """
    folder = check_writable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stays = folder.exists() and (
        os.path.ismount(folder) or folder == Path.cwd().resolve() or not os.access(folder.parent, os.W_OK)
    )
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder if stays else folder.parent))
    try:
        yield partial
        _open_as_usual(partial)
        if stays:
            _fill(folder, partial)
        elif folder.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
            os.rename(folder, retired / "old")
            os.rename(partial, folder)
            shutil.rmtree(retired)
        else:
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(folder: Path, partial: Path) -> None:
    """Put everything in its place, the config last; then remove what was there before."""
    new = sorted(partial.iterdir(), key=lambda path: path.name == "config.json")
    names = {path.name for path in new}
    for path in new:
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    for old in [path for path in folder.iterdir() if path.name not in names and path != partial]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


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
    """Copy what stands beside the weights: tokenizer, sentence-transformers modules, generation config, card.

    Modules that follow the transformer (a dense map, say) keep their own weights.
    """
    if not source.is_dir():
        warnings.warn(
            f"source={str(source)!r} is no folder: no tokenizer, pooling or card is copied. Give the folder that the "
            "model came from, or tokenizer=",
            FewfoldWarning,
            stacklevel=3,
        )
        return
    further = [source / path for path in _modules_with_weights(source)]

    def ignore(place: str, names: list[str]) -> set[str]:
        skipped = {name for name in names if any(fnmatch(name, pattern) for pattern in _SKIPPED)}
        if any(Path(place) == one or one in Path(place).parents for one in further):
            return skipped
        return skipped | {name for name in names if any(fnmatch(name, pattern) for pattern in WEIGHTS)}

    shutil.copytree(source, folder, ignore=ignore, dirs_exist_ok=True)


def _modules_with_weights(source: Path) -> list[str]:
    """The folders of sentence-transformers' modules, but for the transformer's own."""
    try:
        modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        found = [(module["path"], module["type"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [path for path, kind in found if path and not kind.endswith("Transformer")]
