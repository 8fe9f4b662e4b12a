"""Images with captions: the first thousand of Flickr8k, small, out of the data root."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewfold.errors import TaskError
from fewfold.optional import require
from fewfold.progress import track
from fewfold.tasks.captioning.cider import normalized
from fewfold.tasks.data import DataUnavailable, data_root, lines, local_file, one_of

FOLDER = "flickr8k-1k"
SHARES = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclass(frozen=True)
class Captions:
    """Images and what people wrote of them, in file order.

    :param names: Of the images' files.
    :param pixels: `(images, 3, size, size)`, uint8.
    :param captions: Of each image, as `normalized` gives them.
    :param source: Where they come from, for records.
    """

    names: list[str]
    pixels: Tensor
    captions: list[list[str]]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int | None) -> Captions:
        """Keep the first so many images; None keeps all."""
        return Captions(self.names[:count], self.pixels[:count], self.captions[:count], self.source)

    def texts(self) -> list[str]:
        """All captions, image by image."""
        return [text for captions in self.captions for text in captions]


def read_captions(split: str = "train", size: int = 64) -> Captions:
    """Read one split of the data root's `flickr8k-1k`: the first 80 % of the images, then 10 % and 10 %.

    :param split: "train" (800 images of the full file), "val" (100) or "test" (100).
    :param size: Pixels of a side; the whole picture is scaled to a square.
    :return: The images with their captions.
    :raises ValueError: If the split is another.
    :raises DataUnavailable: If the files are not there.
    :raises TaskError: If a caption's image is missing, or a file is none.
    """
    one_of(split, {name: name for name in SHARES})
    table = local_file(f"{FOLDER}/captions.txt.gz", f"{FOLDER}/captions.txt")
    archive = local_file(f"{FOLDER}/images.zip")
    if table is None or archive is None:
        raise DataUnavailable(
            f"{FOLDER}/captions.txt.gz and {FOLDER}/images.zip are not under the data root ({data_root()}): set "
            "FEWFOLD_DATA to the folder that has them"
        )
    captions = _table(table)
    names = list(captions)
    low, high = (round(share * len(names)) for share in SHARES[split])
    chosen = names[low:high]
    if not chosen:
        raise TaskError(f"{table} has {len(names)} images, which leaves none for {split}: give at least ten")
    return Captions(chosen, _pixels(archive, chosen, size), [captions[name] for name in chosen], f"{FOLDER}, {split}")


def read_image(file: Path, size: int) -> Tensor:
    """Read one image.

    :param file: In any format that Pillow knows.
    :param size: Pixels of a side; the whole picture is scaled to a square.
    :return: `(3, size, size)`, uint8.
    :raises TaskError: If it is no image.
    """
    try:
        with require("PIL.Image").open(file.expanduser()) as picture:
            return torch.from_numpy(_squared(picture, size)).permute(2, 0, 1).contiguous()
    except OSError as error:
        raise TaskError(f"{file} cannot be read as an image: {error}") from error


def _squared(picture: Any, size: int) -> np.ndarray[Any, Any]:
    """Bytes of a picture, `(size, size, 3)`."""
    from PIL.Image import Resampling

    return np.array(picture.convert("RGB").resize((size, size), Resampling.BICUBIC))


def _table(file: Path) -> dict[str, list[str]]:
    """Captions by image, in file order."""
    found: dict[str, list[str]] = {}
    rows = csv.reader(lines(file))
    if next(rows, None) != ["image", "caption"]:
        raise TaskError(f"{file}: its first line must be image,caption")
    for place, row in enumerate(rows, start=2):
        if len(row) != 2 or not normalized(row[1]):
            raise TaskError(f"{file}, line {place}: an image and a caption with words are needed, it has {row}")
        found.setdefault(row[0], []).append(normalized(row[1]))
    return found


def _pixels(archive: Path, names: list[str], size: int) -> Tensor:
    image: Any = require("PIL.Image")
    pixels = np.empty((len(names), size, size, 3), dtype=np.uint8)
    try:
        with zipfile.ZipFile(archive) as packed:
            inside = {Path(name).name: name for name in packed.namelist()}
            for place, name in enumerate(track(names, "reading images")):
                if name not in inside:
                    raise TaskError(f"{archive} has no {name}, which has captions: complete it")
                with packed.open(inside[name]) as handle, image.open(handle) as picture:
                    pixels[place] = _squared(picture, size)
    except (zipfile.BadZipFile, OSError) as error:
        raise TaskError(f"{archive} cannot be read: {error}") from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
