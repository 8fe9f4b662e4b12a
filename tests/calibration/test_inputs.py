import pytest
import torch
from tiny_models import make
from transformers import BatchEncoding

from fewfold import CalibrationError
from fewfold.calibration.inputs import calibration_batches, count_rows, count_tokens, cut_to_pieces, fingerprint


class Words:
    """A tokenizer in ten lines: one id a character."""

    pad_token = "_"

    def __call__(self, texts, truncation, max_length, padding=False, return_tensors=None):
        rows = [[1 + ord(letter) % 90 for letter in text][:max_length] for text in texts]
        if return_tensors is None:
            return {"input_ids": rows}
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }


@pytest.fixture
def bert():
    return make("bert")


def test_texts_are_batched_by_length_and_all_kept(bert):
    texts = ["a" * n for n in (5, 1, 3, 9)]
    batches = calibration_batches(texts, Words(), bert, batch_size=2)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 3), (2, 9)]
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == 18


def test_dicts_of_lists_become_batches(bert):
    (batch,) = calibration_batches([{"input_ids": [1, 2, 3]}], None, bert)
    assert batch["input_ids"].tolist() == [[1, 2, 3]]


def test_a_decoder_gets_the_same_text_shifted():
    model = make("t5")
    (batch,) = calibration_batches([{"input_ids": [[5, 6, 7]]}], None, model)
    start = model.config.decoder_start_token_id
    assert batch["decoder_input_ids"].tolist() == [[start, 5, 6]]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "empty"),
        (["  ", ""], "blank"),
        ("one long string", "one string"),
        ([1, 2], "int"),
        (["text"], "tokenizer is needed"),
        ([{"input_ids": "words"}], "input_ids"),
        ([{}], "empty dict"),
    ],
)
def test_mistakes_are_named(bert, calibration, message):
    tokenizer = None if message == "tokenizer is needed" else Words()
    with pytest.raises(CalibrationError, match=message):
        calibration_batches(calibration, tokenizer, bert)


def test_a_tokenised_batch_is_one_batch(bert):
    given = BatchEncoding({"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.ones(2, 3)})
    (batch,) = calibration_batches(given, None, bert)
    assert torch.equal(batch["input_ids"], given["input_ids"])
    with pytest.raises(CalibrationError, match=r"calibration\['train'\]"):
        calibration_batches({"train": object(), "test": object()}, None, bert)


def test_half_precision_inputs_have_a_fingerprint():
    one, other = (torch.full((2, 2), value, dtype=torch.bfloat16) for value in (1.0, 2.0))
    assert fingerprint([{"pixel_values": one}]) != fingerprint([{"pixel_values": other}])


def test_fingerprint_follows_the_numbers(bert):
    one = calibration_batches([{"input_ids": [1, 2, 3]}], None, bert)
    same = calibration_batches([{"input_ids": torch.tensor([[1, 2, 3]])}], None, bert)
    other = calibration_batches([{"input_ids": [1, 2, 4]}], None, bert)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_fingerprint_follows_shapes_and_dtypes():
    ids = torch.arange(64)
    long, short = ({"input_ids": ids.view(-1, length)} for length in (32, 8))
    assert fingerprint([long]) != fingerprint([short])
    whole, real = (torch.zeros(2, 3, dtype=dtype) for dtype in (torch.int64, torch.float64))
    assert fingerprint([{"x": whole}]) != fingerprint([{"x": real}])


def test_a_label_may_be_a_bare_number(bert):
    batches = calibration_batches([{"labels": 1, "input_ids": [2, 6, 7, 3]}], None, bert)
    assert count_rows(batches) == (1, 4)


def test_texts_are_cut_at_the_last_position_that_a_model_can_use():
    model = make("roberta")  # its 40 positions begin behind the padding token's
    (batch,) = calibration_batches(["a" * 60], Words(), model, max_length=64)
    assert batch["input_ids"].shape == (1, 38)
    model(**batch)


def test_pieces_keep_every_word_in_order_and_vary_in_length():
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (1, 5, 40, 300)]
    pieces = cut_to_pieces(texts, seed=1)
    assert " ".join(pieces).split() == " ".join(texts).split()
    lengths = [len(piece.split()) for piece in pieces]
    assert max(lengths) <= 32
    assert sum(length < 4 for length in lengths) <= 1  # only the text that is shorter itself
    assert len(set(lengths)) > 8
    assert pieces == cut_to_pieces(texts, seed=1) != cut_to_pieces(texts, seed=2)


def test_a_limit_of_tokens_is_kept(bert):
    texts = ["abcdefgh"] * 100
    batches = calibration_batches(texts, Words(), bert, max_tokens=80)
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == 80


def test_counting_reads_every_text():
    counts = count_tokens(["aab", "b"], Words(), 100)
    assert counts[1 + ord("a") % 90] == 2
    assert counts[1 + ord("b") % 90] == 2
    assert counts.sum() == 4
    assert count_tokens([{"input_ids": [1]}], Words(), 100) is None
