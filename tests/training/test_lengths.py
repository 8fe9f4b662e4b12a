"""Lengths that bfloat16 batches are padded to, and that trainings ask for them."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from fewfold import LowRank, compress
from fewfold.distill.run import distil
from fewfold.distill.trainer import DistillTrainer
from fewfold.tasks import FineTuning, fine_tune
from fewfold.tasks.tuner import Tuner
from fewfold.training import lengths
from fewfold.training.lengths import even_length, length_stride

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
POSITIONS = 22


@pytest.mark.parametrize(
    ("longest", "stride", "limit", "length"),
    [(1, 8, None, 8), (8, 8, None, 8), (9, 8, None, 16), (9, 1, None, 9), (9, 8, 12, 12), (17, 8, 16, 17)],
)
def test_lengths(longest, stride, limit, length):
    assert even_length(longest, stride, limit) == length


def test_models_of_many_shapes_in_bfloat16_have_a_stride():
    alike = nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)))
    various = nn.Sequential(*(nn.Linear(8, 4 + place) for place in range(30)))
    assert [length_stride(model, bf16) for model in (alike, various) for bf16 in (False, True)] == [1, 1, 1, 8]


def model_of(kind):
    torch.manual_seed(0)
    return kind(BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=POSITIONS, num_labels=2,
    ))  # fmt: skip


@pytest.fixture
def tokenizer():
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})


def seen_by(monkeypatch, trainer):
    """Shapes of the batches that a trainer's steps get."""
    shapes, step = [], trainer.training_step
    monkeypatch.setattr(
        trainer, "training_step",
        lambda self, model, inputs, *rest: shapes.append(tuple(inputs["input_ids"].shape))
        or step(self, model, inputs, *rest),
    )  # fmt: skip
    return shapes


@pytest.mark.parametrize("bf16", [False, True])
def test_trainings_pad_to_them(bf16, tokenizer, monkeypatch):
    monkeypatch.setattr(lengths, "SHAPES", 3)
    texts = [" ".join(["cat"] * count) for count in (3, 12, 18, 40)]  # 5, 14, 20 and, cut, 22 tokens
    expected = [(1, 8), (1, 16), (1, 22), (1, 22)] if bf16 else [(1, 5), (1, 14), (1, 20), (1, 22)]
    teacher, student = model_of(BertModel), compress(model_of(BertModel), LowRank(rank=4, weighting="none"))
    shapes = seen_by(monkeypatch, DistillTrainer)
    config = {"hidden": {"layers": "last"}, "batch_size": 1, "epochs": 1, "validation": 0, "bf16": bf16}
    distil(teacher, student, texts, config=config, tokenizer=tokenizer)
    assert sorted(shapes) == expected
    shapes = seen_by(monkeypatch, Tuner)
    ids = [tokenizer(text, truncation=True, max_length=POSITIONS)["input_ids"] for text in texts]
    rows = [{"input_ids": row, "labels": number % 2} for number, row in enumerate(ids)]
    classifier = model_of(BertForSequenceClassification)
    fine_tune(classifier, tokenizer, rows, FineTuning(epochs=1, batch_size=1, bf16=bf16))
    assert sorted(shapes) == expected
