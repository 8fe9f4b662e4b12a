import gc

import pytest
from distill_models import make_teacher, make_tokenizer, sentences
from transformers import BertForSequenceClassification


@pytest.fixture(scope="package", autouse=True)
def _frozen():
    """Every Trainer collects garbage when it starts, and finds no more than the tests make."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def texts():
    return sentences(96)


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def classifier():
    return make_teacher(BertForSequenceClassification, num_labels=3)
