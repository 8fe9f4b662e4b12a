import pytest
import torch

from fewfold import CalibrationError
from fewfold.calibration.inputs import calibration_batches, fingerprint
from tests.models import make


class Words:
    """A tokenizer in ten lines: one id a character."""

    pad_token = "_"

    def __call__(self, texts, truncation, max_length, padding, return_tensors):
        rows = [[1 + ord(letter) % 90 for letter in text][:max_length] for text in texts]
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


def test_fingerprint_follows_the_numbers(bert):
    one = calibration_batches([{"input_ids": [1, 2, 3]}], None, bert)
    same = calibration_batches([{"input_ids": torch.tensor([[1, 2, 3]])}], None, bert)
    other = calibration_batches([{"input_ids": [1, 2, 4]}], None, bert)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
