from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from distill_models import make_tokenizer, sentences

from fewfold import DistillError
from fewfold.distill.examples import Examples, normalised, read_examples
from fewfold.distill.tokens import tokenise
from fewfold.tasks.data import SentencePair


def test_texts_and_rows():
    assert read_examples(["a cat", "  ", "a dog"], False).texts == ["a cat", "a dog"]
    rows = [{"premise": "a", "hypothesis": "b", "label": 1, "idx": 7}, {"premise": "c", "hypothesis": "d", "label": 0}]
    found = read_examples(rows, True)
    assert (found.texts, found.pairs, found.labels) == (["a", "c"], ["b", "d"], [1.0, 0.0])
    found = read_examples([SentencePair("a", "b", 3.5)], True)
    assert (found.texts, found.pairs, found.labels) == (["a"], ["b"], [3.5])
    table = datasets.Dataset.from_dict({"sentence": ["x", "y"], "label": [0, 1]})
    assert read_examples(table, True).labels == [0.0, 1.0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        ([" ", ""], "blank"),
        ("a cat", "one string"),
        ({"text": ["a"]}, "is a dictionary"),
        ([1, 2], "data holds int"),
        ([{"body": "x"}], "has the columns body"),
        ([{"text": "x", "label": 1}, {"text": None, "label": 0}], "row 1 of the data has no 'text'"),
        ([{"text": "x"}, {"text": ["y", "z"]}], "row 1 of the data has .* as 'text', a list"),
        ([{"text": "x"}, {"text": float("nan")}], "row 1 of the data has 'nan' as 'text', a float"),
    ],
)
def test_data_that_cannot_be_read(data, message):
    with pytest.raises(DistillError, match=message):
        read_examples(data, False)


def test_labels_are_asked_for():
    with pytest.raises(DistillError, match="no column label"):
        read_examples(["a cat"], True)


@pytest.mark.parametrize(
    ("label", "message"), [("good", "the label 'good'"), (float("nan"), "nan"), (None, "no 'label'")]
)
def test_labels_are_numbers(label, message):
    with pytest.raises(DistillError, match=f"row 1 of the data has .*{message}"):
        read_examples([{"text": "x", "label": 1}, {"text": "y", "label": label}], True)
    assert read_examples([{"text": "x", "label": "1"}], True).labels == [1.0]


def test_evaluation_sentences_are_kept_out():
    forbidden = ["The cat  sleeps.", "A DOG runs!", "Straße", ""]
    texts = [
        "the cat sleeps",
        "A dog runs",
        "a dog runs away",
        "It rains. The cat sleeps. It stops.",
        "It rains\nThe cat sleeps\nIt stops",
        "“The cat sleeps.” That is so.",
        "strasse",
        "a cat",
    ]
    found = read_examples(texts, False, forbidden)
    assert found.texts == ["a dog runs away", "a cat"]
    assert found.excluded == 6
    rows = [SentencePair("a", "the cat sleeps", 1.0), SentencePair("b", "c", 2.0)]
    found = read_examples(rows, True, forbidden)
    assert (found.texts, found.pairs, found.labels, found.excluded) == (["b"], ["c"], [2.0], 1)
    with pytest.raises(DistillError, match="exclude is one string; pass a list"):
        read_examples(texts, False, "the cat sleeps")
    with pytest.raises(DistillError, match="all 1 texts hold sentences"):
        read_examples(["The cat sleeps"], False, forbidden)


def test_normalised_sentences():
    assert normalised(" “The cat,” she said… ") == "thecatshesaid"


@pytest.mark.parametrize(
    "text",
    [
        "It's a charming journey.", "Seen twice. IT 'S a charming journey!", "It's a\ncharming journey. The end.",
        "Intro. The cat sleeps. The dog runs. End.", "The cat sleeps.\nThe dog\nruns.",
    ],
)  # fmt: skip
def test_variants_of_evaluation_sentences_are_kept_out(text):
    forbidden = ["it 's a charming journey .", "The cat sleeps. The dog runs."]
    kept = ["The cat sleeps.", "The dog runs. The cat sleeps.", "It's a charming journey to us."]
    assert read_examples([text, *kept], False, forbidden).texts == kept


def test_batches_are_what_the_tokenizer_gives():
    tokenizer, texts = make_tokenizer(), sentences(9)
    tokens = tokenise(Examples(texts, sentences(9, seed=1), [float(n) for n in range(9)]), tokenizer, 16)
    places = [4, 0, 7]
    batch = tokens.batch(places)
    expected = tokenizer(
        [texts[p] for p in places], [sentences(9, seed=1)[p] for p in places], truncation=True, max_length=16,
        padding=True, return_tensors="pt",
    )  # fmt: skip
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == expected[name].tolist(), name
    assert batch["labels"].tolist() == [4.0, 0.0, 7.0]
    assert batch["index"].tolist() == places
    assert tokens.batch(places, lambda longest: 30)["input_ids"].shape == (3, 30)
    part = tokens.part(places)
    for name, tensor in part.batch(range(3)).items():
        assert name == "index" or tensor.tolist() == batch[name].tolist(), name
    assert part.fingerprint() != tokens.fingerprint() == tokens.part(range(9)).fingerprint()
    assert part.lengths.tolist() == np.diff(tokens.offsets)[places].tolist()


def test_texts_are_tokenised_once():
    calls = []
    tokenizer = make_tokenizer()

    def counting(texts, **options):
        calls.append(len(texts))
        return tokenizer(texts, **options)

    counting.pad_token_id = 0
    tokenise(Examples(sentences(1500)), counting, 16)
    assert calls == [1024, 476]


def test_a_tokenizer_that_cannot_pad():
    with pytest.raises(DistillError, match="no padding token"):
        tokenise(Examples(["a"]), SimpleNamespace(pad_token_id=None, eos_token_id=None), 16)


def test_labels_that_no_loss_asks_for_are_left_alone():
    rows = [{"sentence1": "a cat", "sentence2": "the cat", "label": 3.4}, {"sentence1": "a", "sentence2": "b"}]
    assert read_examples(rows, needs_labels=False).labels is None
    with pytest.raises(DistillError, match="row 1 of the data has no 'label'"):
        read_examples(rows, needs_labels=True)
