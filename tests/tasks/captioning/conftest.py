"""A toy flickr8k-1k: the colour of a picture decides what is written of it."""

import gzip
import io
import zipfile

import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "flickr8k-1k"
    folder.mkdir(parents=True)
    rows = ["image,caption"]
    with zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for place in range(30):
            name, (word, colour) = f"{place:03}.jpg", list(COLOURS.items())[place % 3]
            held = io.BytesIO()
            Image.new("RGB", (40, 30), colour).save(held, "JPEG")
            packed.writestr(name, held.getvalue())
            rows += [f'{name},"A {word} wall , all {word} ."', f"{name},Everything here is {word} ."]
    (folder / "captions.txt.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path / "data"))
    return folder
