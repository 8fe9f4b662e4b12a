"""The common table of quality: the same columns for every model, the floor among the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from fewfold.measure.environment import environment
from fewfold.measure.fidelity import Fidelity, Reference, sentence_embeddings
from fewfold.measure.macs import macs_per_token
from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.measure.static import rare_word_weights, static_embeddings
from fewfold.tasks.data import SentencePair, distinct_sentences
from fewfold.tasks.sts import StsScore, score_embeddings


@dataclass(frozen=True)
class QualityRow:
    """One model in the table of quality.

    :param name: The recipe in a few words; rows whose names agree up to a comma are drawn as one family.
    :param calibration: Name of the calibration text, "-" where none was used.
    :param sts: Spearman's correlation on pairs of sentences with its 95 % interval; None if not measured.
    :param neighbour_overlap: Share of nearest neighbours in common with dense, 0…1.
    :param cosine: Mean cosine of sentence vectors to the dense ones.
    :param hidden_error: Relative error of the last hidden states; None where there are none.
    :param bytes: Stored bytes of the whole model.
    :param parameters: Numbers stored as parameters, shared ones once.
    :param macs: Multiply-accumulates per token at length 128, attention included; 0 marks a floor.
    :param seconds: Seconds that the compression took; None if not told.
    :param neighbours: Size of the neighbourhoods, 10 for the column nn10.
    """

    name: str
    calibration: str
    sts: StsScore | None
    neighbour_overlap: float
    cosine: float
    hidden_error: float | None
    bytes: int
    parameters: int
    macs: float
    seconds: float | None = None
    neighbours: int = 10


def quality_row(
    name: str,
    model: nn.Module,
    reference: Reference,
    pairs: Sequence[SentencePair] | None = None,
    calibration: str = "-",
    seconds: float | None = None,
) -> QualityRow:
    """Measure one model against the dense reference.

    :param name: The recipe in a few words.
    :param model: The model, or the dense model itself for the top row.
    :param reference: What the dense model says about the texts.
    :param pairs: Pairs to score; sentences among the reference's texts are not run twice.
    :param calibration: Name of the calibration text.
    :param seconds: Seconds that the compression took.
    :return: The row.
    """
    embeddings, hidden_states = reference.encode(model)
    fidelity = reference.compare_encoded(embeddings, hidden_states)
    sts = None
    if pairs:
        texts = distinct_sentences(list(pairs))
        known = _rows_of(reference.texts, embeddings, texts)
        found = known if known is not None else sentence_embeddings(model, reference.tokenizer, texts)
        sts = score_embeddings(found, texts, pairs)
    sizes = stored_bytes(model), unique_parameters(model), macs_per_token(model).total
    return _row(name, calibration, sts, fidelity, sizes, seconds, reference)


def floor_rows(
    dense: nn.Module,
    tokenizer: Any,
    reference: Reference,
    pairs: Sequence[SentencePair] | None = None,
    counted_on: Sequence[str] | None = None,
    calibration: str = "-",
) -> list[QualityRow]:
    """Measure what is left without any encoder: the average of the dense model's word table.

    An encoder that scores no higher is worth nothing, whatever its own figures.

    :param dense: The dense model, whose input embeddings are averaged.
    :param tokenizer: Its tokenizer.
    :param reference: What the dense model says about the texts.
    :param pairs: Pairs to score.
    :param counted_on: Texts to count tokens in; they add a second, stronger row that weighs frequent words
        down (see `rare_word_weights`).
    :param calibration: Name of those texts.
    :return: One or two rows, with the bytes of the word table alone and no work.
    """
    table: Tensor = dense.get_input_embeddings().weight  # type: ignore[operator]
    kinds: list[tuple[str, str, Tensor | None]] = [("word-table average, no encoder", "-", None)]
    if counted_on is not None:
        weights = rare_word_weights(tokenizer, counted_on, len(table))
        kinds.append(("word-table average, rare words weighted, no encoder", calibration, weights))
    rows = []
    for name, counted, weights_of_rows in kinds:
        embeddings = static_embeddings(table, tokenizer, reference.texts, weights_of_rows)
        fidelity = reference.compare_encoded(embeddings)
        sts = None
        if pairs:
            texts = distinct_sentences(list(pairs))
            known = _rows_of(reference.texts, embeddings, texts)
            found = known if known is not None else static_embeddings(table, tokenizer, texts, weights_of_rows)
            sts = score_embeddings(found, texts, pairs)
        sizes = table.numel() * table.element_size(), table.numel(), 0.0
        rows.append(_row(name, counted, sts, fidelity, sizes, None, reference))
    return rows


def rows_to_table(rows: Sequence[QualityRow], title: str | None = None) -> Table:
    """Draw rows as a rich table.

    :param rows: The rows.
    :param title: A line above the table.
    :return: The table, to be printed on a rich console.
    """
    table = Table(title=title)
    for place, header in enumerate(_headers(rows)):
        table.add_column(header, justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def rows_to_markdown(rows: Sequence[QualityRow]) -> str:
    """Draw rows as a Markdown table; megabytes are millions of bytes, and "-" stands for what is unknown.

    :param rows: The rows.
    :return: The table, one line a row, ending in a line feed.
    """
    headers = _headers(rows)
    ruler = ["---"] * 2 + ["---:"] * (len(headers) - 2)
    drawn = [headers, ruler, *(_cells(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in drawn)


def rows_to_json(rows: Sequence[QualityRow]) -> str:
    """Write rows and the environment they were measured in as JSON.

    :param rows: The rows.
    :return: An object of `environment` and `rows`, numbers in full.
    """
    content = {"environment": environment(), "rows": [asdict(row) for row in rows]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _row(
    name: str,
    calibration: str,
    sts: StsScore | None,
    fidelity: Fidelity,
    sizes: tuple[int, int, float],
    seconds: float | None,
    reference: Reference,
) -> QualityRow:
    nearness = (fidelity.neighbour_overlap, fidelity.cosine, fidelity.hidden_error)
    neighbours = reference.neighbours.shape[1]
    return QualityRow(name, calibration, sts, *nearness, *sizes, seconds, neighbours)


def _rows_of(known: list[str], embeddings: Tensor, texts: list[str]) -> Tensor | None:
    """Pick the embeddings of texts that were embedded before; None if one was not."""
    place = {text: index for index, text in enumerate(known)}
    if not all(text in place for text in texts):
        return None
    return embeddings[[place[text] for text in texts]]


def _headers(rows: Sequence[QualityRow]) -> list[str]:
    sizes = sorted({row.neighbours for row in rows}) or [10]
    overlap = "nn" + "/".join(str(size) for size in sizes)
    return [
        *("model", "calibration", "STS (95 % interval)", overlap, "cosine", "hidden error"),
        *("MB", "parameters (M)", "MACs/token (M)", "seconds"),
    ]


def _cells(row: QualityRow) -> list[str]:
    sts = f"{row.sts.spearman:.3f} ({row.sts.low:.3f}…{row.sts.high:.3f})" if row.sts else "-"
    return [
        row.name,
        row.calibration,
        sts,
        f"{row.neighbour_overlap:.3f}",
        f"{row.cosine:.3f}",
        "-" if row.hidden_error is None else f"{row.hidden_error:.3f}",
        f"{row.bytes / 1e6:.2f}",
        f"{row.parameters / 1e6:.2f}",
        f"{row.macs / 1e6:.2f}",
        "-" if row.seconds is None else f"{row.seconds:.1f}",
    ]
