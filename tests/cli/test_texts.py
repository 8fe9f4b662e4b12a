import lzma

import pytest

from fewfold.errors import CalibrationError
from fewfold_cli.texts import MANUAL, calibration_texts


def test_files_of_lines(tmp_path):
    file = tmp_path / "lines.txt.xz"
    file.write_bytes(lzma.compress("one text\n\n  \nänother\n".encode()))
    assert calibration_texts(str(file)) == (["one text", "änother"], "lines.txt.xz")


def test_manual_is_on_every_machine():
    texts, name = calibration_texts(MANUAL)
    assert name == MANUAL
    assert len(set(texts)) == 512


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_unusable_files(tmp_path, content):
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"texts\.txt"):
        calibration_texts(str(file))
