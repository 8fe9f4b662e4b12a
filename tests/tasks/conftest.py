"""A tiny tokenizer, tiny models, and a data root with a few written examples of every task."""

import json

import pytest
import torch
import transformers as tf

GOOD, BAD = ["fine", "lovely", "great"], ["dull", "poor", "awful"]
PLACES = ["rome", "paris", "oslo", "lima"]
WORDS = ["the", "a", "film", "play", "is", "was", "in", "where", "?", ".", "he", "she", "lives", *GOOD, *BAD, *PLACES]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS, *"abcdefghijklmnopqrstuvwxyz"[1:], *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]]


@pytest.fixture(scope="session")
def tokenizer():
    return tf.BertTokenizerFast(vocab={word: place for place, word in enumerate(VOCABULARY)})


@pytest.fixture
def make_body():
    """A random BERT without dropout; keywords change its config, `auto` its class."""

    def make(auto=tf.AutoModel, **changes):
        torch.manual_seed(0)
        config = tf.BertConfig(
            vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, initializer_range=0.1, **changes,
        )  # fmt: skip
        return auto.from_config(config).eval()

    return make


@pytest.fixture
def body(make_body):
    return make_body()


def sentences(count):
    """Reviews whose one adjective decides the label."""
    words = [word for pair in zip(GOOD, BAD, strict=True) for word in pair]
    return [
        (f"{'the' if i % 3 else 'a'} {'film' if i % 5 else 'play'} {'is' if i % 2 else 'was'} {words[i % 6]} .",
         int(words[i % 6] in GOOD))
        for i in range(count)
    ]  # fmt: skip


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def squad_json(count):
    """Paragraphs of two sentences, each with a question on where somebody lives."""
    paragraphs = []
    for i in range(count):
        first, second = PLACES[i % 4], PLACES[(i // 4 + 1 + i) % 4]
        context = f"he lives in {first} . she lives in {second} ."
        she = i % 2 == 1
        answer = {"text": second, "answer_start": context.rindex(second)} if she else {
            "text": first, "answer_start": context.index(first)}  # fmt: skip
        asked = {"id": f"q{i}", "question": f"where {'she' if she else 'he'} lives ?", "answers": [answer]}
        paragraphs.append({"context": context, "qas": [asked]})
    return json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}], "version": "1.1"})


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with SST-2, STS-B, MNLI and SQuAD."""
    folder = tmp_path / "data"
    monkeypatch.setenv("FEWFOLD_DATA", str(folder))
    for split, count in (("train", 96), ("dev", 30)):
        rows = "".join(f"{text}\t{label}\n" for text, label in sentences(count))
        write(folder / f"glue/sst2/{split}.tsv", "sentence\tlabel\n" + rows)
        rows = "".join(
            f"g\tf\ty\t{i}\t{5.0 if label else i % 4}\t{text}\tthe film is fine .\n"
            for i, (text, label) in enumerate(sentences(count))
        )
        write(folder / f"glue/stsb/{split}.tsv", rows)
        write(folder / f"squad/{split}-v1.1.json", squad_json(count))
    names = ("entailment", "neutral", "contradiction")
    for split, count in (("train", 30), ("dev_matched", 9), ("dev_mismatched", 12)):
        rows = "".join(f"{i}\tthe film is fine .\t{t}\t{names[i % 3]}\n" for i, (t, _) in enumerate(sentences(count)))
        write(folder / f"MNLI/{split}.tsv", "index\tsentence1\tsentence2\tgold_label\n" + rows)
    return folder
