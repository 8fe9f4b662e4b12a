"""A saved model may be read by whom the user lets read new files."""

import os
import stat

import pytest
from tiny_models import make

import fewfold

pytestmark = [pytest.mark.checkpoint, pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such bits")]


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)])
@pytest.mark.parametrize("again", [False, True])
def test_modes_are_those_of_new_files(tmp_path, mask, folder, file, again):
    before = os.umask(mask)
    try:
        for _ in range(1 + again):
            fewfold.save(make("bert"), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {file}
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == folder
