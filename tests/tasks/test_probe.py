"""The linear probe, against features from a loop and scikit-learn by hand."""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from fewfold import TaskError
from fewfold.tasks import probe
from fewfold.tasks.glue import read_glue
from fewfold.tasks.interval import confusion_interval
from fewfold.tasks.metrics import _accuracy


def by_loop(model, tokenizer, texts, length=128):
    """Each text alone, without padding."""
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rows.append(model.base_model(ids).last_hidden_state[0].double().mean(0).numpy())
    return np.array(rows)


def fitted(inputs, labels, judged, strength=1.0):
    """Predictions of a regression on standardized features."""
    mean, std = inputs.mean(0), inputs.std(0)
    learner = LogisticRegression(C=strength, max_iter=5000).fit((inputs - mean) / std, labels)
    return learner.predict((judged - mean) / std)


@pytest.mark.parametrize("auto", [tf.AutoModel, tf.AutoModelForMaskedLM])
def test_texts(make_body, tokenizer, root, auto):
    model = make_body(auto)
    before = copy.deepcopy(model.state_dict())
    train, dev = (read_glue("sst2", split).examples for split in ("train", "dev"))
    inputs, judged = (by_loop(model, tokenizer, [example.first for example in part]) for part in (train, dev))
    predicted = fitted(inputs, [example.label for example in train], judged)
    found = probe(model, "sst2", tokenizer=tokenizer, batch_size=7, resamples=300)
    assert [item["prediction"] for item in found.runs[0].judged.predictions] == predicted.tolist()
    labels = np.array([example.label for example in dev])
    score = found.runs[0].judged.metrics["accuracy"]
    assert score.value == pytest.approx(np.mean(predicted == labels))
    assert (score.low, score.high) == confusion_interval(_accuracy, labels, predicted, 300)
    assert found.data["train"]["examples"] == 96
    assert found.data["dev"]["examples"] == 30
    assert found.runs[0].judged.by == "probe"
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_random_labels_are_not_foretold(body, tokenizer, root):
    """A probe that saw the examples it is judged on would tell them apart."""
    file = root / "glue/sst2/dev.tsv"
    head, *rows = file.read_text().splitlines()
    swapped = [row[:-1] + str(1 - int(row[-1])) for row in rows]
    file.write_text("\n".join([head, *swapped]))
    assert probe(body, "sst2", tokenizer=tokenizer).metrics["accuracy"]["mean"] < 0.5


def test_pairs_and_limits(body, tokenizer, root):
    texts = [f"the {word} is {kind} ." for word in ("film", "play") for kind in ("fine", "great", "dull", "poor")]
    pairs = [(first, second) for first in texts for second in texts]
    rows = "".join(f"{int(a.split()[3] == b.split()[3])}\t1\t2\t{a}\t{b}\n" for a, b in pairs)
    for split in ("train", "dev"):
        (root / "MRPC").mkdir(exist_ok=True)
        (root / f"MRPC/{split}.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + rows)
    found = probe(body, "mrpc", tokenizer=tokenizer, limit=50, eval_limit=20, strength=0.3)
    labels = np.array([int(a.split()[3] == b.split()[3]) for a, b in pairs])
    first, second = (by_loop(body, tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    inputs = np.concatenate([np.abs(first - second), first * second], axis=1)
    # features that are the same in every example are left as they are
    predicted = fitted(inputs[:50], labels[:50], inputs[:20], 0.3)
    assert [item["prediction"] for item in found.runs[0].judged.predictions] == predicted.tolist()
    assert found.metrics["f1"]["mean"] == pytest.approx(f1_score(labels[:20], predicted))
    assert found.settings["probe"] == {"limit": 50, "strength": 0.3}


def test_refusals(body, tokenizer, root):
    with pytest.raises(TaskError, match=r"'stsb'.*choose one of cola, sst2"):
        probe(body, "stsb", tokenizer=tokenizer)
    with pytest.raises(TaskError, match="limit=0"):
        probe(body, "sst2", tokenizer=tokenizer, limit=0)
    with pytest.raises(TaskError, match="one class"):
        probe(body, "sst2", tokenizer=tokenizer, limit=1)
    with pytest.raises(TaskError, match="strength=0"):
        probe(body, "sst2", tokenizer=tokenizer, strength=0)
