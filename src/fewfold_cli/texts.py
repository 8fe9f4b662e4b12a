"""Calibration texts by name or file."""

from __future__ import annotations

from pathlib import Path

NAMED = ("mixed-512", "wiki-512")
MANUAL = "python-manual"
HELP = (
    "Texts like those the model will see: a file with one a line (.txt, also packed as .gz or .xz), "
    f"'{MANUAL}' (prose of Python's own manual, on every machine), or {' or '.join(NAMED)} from FEWFOLD_DATA."
)


def calibration_texts(source: str) -> tuple[list[str], str]:
    """Read calibration texts.

    :param source: a file's path or one of the names in :data:`HELP`.
    :return: the texts and the name that records call them by.
    :raises CalibrationError: if there is no such file or name, or nothing in it.
    """
    from fewfold import CalibrationError
    from fewfold.tasks.data import calibration_texts as named_texts
    from fewfold.tasks.data import lines

    if source in NAMED:
        return named_texts(source), source
    if source == MANUAL:
        from fewfold.tasks.pydoc_text import pydoc_sentences

        sentences = pydoc_sentences()
        return sentences[:: max(1, len(sentences) // 512)][:512], MANUAL
    path = Path(source).expanduser()
    if not path.is_file():
        raise CalibrationError(
            f"--calibration {source}: no such file; give a text file, {MANUAL}, {' or '.join(NAMED)}"
        )
    try:
        texts = [line for line in lines(path) if line.strip()]
    except (UnicodeDecodeError, EOFError) as error:
        raise CalibrationError(f"--calibration {source} is no UTF-8 text: {error}") from error
    if not texts:
        raise CalibrationError(f"--calibration {source} holds no text")
    return texts, path.name
