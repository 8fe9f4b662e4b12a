import copy
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from fewfold.measure.environment import environment
from fewfold.measure.fidelity import Reference
from fewfold.measure.macs import macs_per_token
from fewfold.measure.quality import (
    QualityRow,
    floor_rows,
    quality_row,
    rows_to_json,
    rows_to_markdown,
    rows_to_table,
)
from fewfold.measure.static import rare_word_weights, static_embeddings
from fewfold.tasks.data import SentencePair, distinct_sentences
from fewfold.tasks.sts import StsScore, sts_score

PAIRS = [
    SentencePair("A man plays a flute.", "A man is playing a flute.", 5.0),
    SentencePair("Two dogs run.", "A cat sleeps on the sofa.", 1.0),
    SentencePair("Prices rose again.", "Costs went up once more.", 4.0),
    SentencePair("She sings a song.", "Snow fell on the hills.", 0.0),
]
TEXTS = distinct_sentences(PAIRS)


@pytest.fixture
def reference(tiny_bert, tokenizer):
    return Reference(tiny_bert, tokenizer, TEXTS, neighbours=3)


def test_dense_row(tiny_bert, tokenizer, reference):
    row = quality_row("dense", tiny_bert, reference, PAIRS)
    assert (row.name, row.calibration, row.seconds, row.neighbours) == ("dense", "-", None, 3)
    assert row.cosine == pytest.approx(1)
    assert row.neighbour_overlap == 1
    assert row.hidden_error == 0
    assert row.sts == sts_score(tiny_bert, tokenizer, PAIRS)
    assert row.parameters == tiny_bert.num_parameters()
    assert row.bytes == 4 * row.parameters
    assert row.macs == macs_per_token(tiny_bert).total


def test_row_of_another_model_and_pairs_outside_the_texts(tiny_bert, tokenizer, reference):
    other = copy.deepcopy(tiny_bert).half().float()
    with torch.no_grad():
        other.encoder.layer[0].output.dense.weight.zero_()
    unseen = [*PAIRS, SentencePair("A new sentence.", "Another new one.", 3.0)]
    row = quality_row("cut", other, reference, unseen, calibration="mixed-512", seconds=1.5)
    assert row.sts == sts_score(other, tokenizer, unseen)
    assert row.hidden_error == reference.compare(other).hidden_error > 0
    assert (row.calibration, row.seconds) == ("mixed-512", 1.5)
    assert quality_row("cut", other, reference).sts is None


def test_static_embeddings_against_a_loop(tiny_bert, tokenizer):
    table = tiny_bert.get_input_embeddings().weight
    weights = torch.rand(len(table))
    rows = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        mean = np.mean([float(weights[i]) * table[i].detach().numpy() for i in ids], axis=0)
        rows.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(static_embeddings(table, tokenizer, TEXTS, weights), np.stack(rows), atol=1e-5)
    assert not static_embeddings(table, tokenizer, [""]).any()


def test_frequent_words_weigh_less(tokenizer):
    weights = rare_word_weights(tokenizer, ["a a a b"], len(tokenizer), a=0.25)
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    assert weights[[a, b, c]].tolist() == pytest.approx([0.25, 0.5, 1.0])


def test_floor_rows(tiny_bert, tokenizer, reference):
    (plain,) = floor_rows(tiny_bert, tokenizer, reference, PAIRS)
    table = tiny_bert.get_input_embeddings().weight
    assert (plain.macs, plain.hidden_error, plain.calibration) == (0, None, "-")
    assert (plain.parameters, plain.bytes) == (table.numel(), 4 * table.numel())
    assert plain.cosine < 1
    both = floor_rows(tiny_bert, tokenizer, reference, None, counted_on=TEXTS, calibration="these")
    assert [row.calibration for row in both] == ["-", "these"]
    assert both[0].sts is None
    assert both[0].cosine != both[1].cosine


ROWS = [
    QualityRow("dense", "-", StsScore(0.8672, 0.85, 0.88), 1.0, 1.0, 0.0, 90_852_864, 22_713_216, 11.2e6),
    QualityRow("a|b", "mixed-512", None, 0.5, 0.25, None, 1_500_000, 1_000_000, 0.0, 12.34),
]


def test_markdown():
    head, ruler, dense, other = rows_to_markdown(ROWS).splitlines()
    assert head == (
        "| model | calibration | STS (95 % interval) | nn10 | cosine | hidden error "
        "| MB | parameters (M) | MACs/token (M) | seconds |"
    )
    assert ruler.count("---") == 10
    assert dense == "| dense | - | 0.867 (0.850…0.880) | 1.000 | 1.000 | 0.000 | 90.85 | 22.71 | 11.20 | - |"
    assert other == r"| a\|b | mixed-512 | - | 0.500 | 0.250 | - | 1.50 | 1.00 | 0.00 | 12.3 |"


def test_rich_table_has_the_same_cells():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rows_to_table(ROWS, title="All models"))
    text = console.export_text()
    assert "All models" in text
    for cell in ("0.867 (0.850…0.880)", "22.71", "mixed-512", "nn10"):
        assert cell in text


def test_json_keeps_all_digits_and_the_environment():
    content = json.loads(rows_to_json(ROWS))
    assert content["rows"][0]["sts"] == {"spearman": 0.8672, "low": 0.85, "high": 0.88}
    assert content["rows"][1]["seconds"] == 12.34
    assert content["environment"]["torch"] == torch.__version__
    assert set(environment()) == set(content["environment"])
    assert content["environment"]["cpu"]
