"""Heads around dense and compressed bodies: outputs, gradients, and reloading with plain Auto classes."""

import copy

import pytest
import torch
import transformers as tf
from cases import METHODS, copied
from tiny_models import inputs, make

import fewfold
from fewfold import Dense, LowRank, TaskError
from fewfold.checkpoint.config import structure_of
from fewfold.models import ShareBertConfig, ShareBertForMaskedLM
from fewfold.tasks import has_head, with_head

pytestmark = pytest.mark.checkpoint
AUTO = {
    "classification": tf.AutoModelForSequenceClassification,
    "question-answering": tf.AutoModelForQuestionAnswering,
}


def logits(model, name):
    given = {key: value for key, value in inputs(name).items() if key != "decoder_input_ids"}
    with torch.no_grad():
        found = model(**given)
    return found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], dim=-1)


def states(model, name):
    with torch.no_grad():
        return model.base_model(**inputs(name)).last_hidden_state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert", "classification"),
        ("bert_mlm", "classification"),
        ("gpt2", "classification"),
        ("bert_cls", "question-answering"),
        ("distilbert", "question-answering"),
    ],
)
def test_compressed_bodies_keep_their_outputs_train_and_reload(name, method, kind, tmp_path):
    model = copied(name, method, "int8")
    model.config.pad_token_id = 1
    expected = states(model, name)
    head = with_head(copy.deepcopy(model), 3, kind)
    assert has_head(head, 3, kind)
    torch.testing.assert_close(states(head, name), expected, rtol=0, atol=1e-6)
    assert structure_of(head).provenance == structure_of(model).provenance
    result = logits(head, name)
    assert result.shape[-1] == (3 if kind == "classification" else 2)
    head.save_pretrained(tmp_path)
    again, info = AUTO[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(head)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(again, name), result, rtol=0, atol=1e-6)
    assert all(parameter.requires_grad for parameter in head.parameters())
    found = head(**inputs("bert"))
    (found[0].square().sum() + (found[1].square().sum() if kind == "question-answering" else 0)).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None and p.numel()] == []
    fewfold.densify(head)
    torch.testing.assert_close(logits(head, name), result, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("name", ["bert", "bert_mlm", "roberta", "distilbert_mlm", "bart"])
def test_dense_bodies_equal_transformers_own_heads(name, kind, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    head = with_head(model, 3, kind)
    own = AUTO[kind].from_pretrained(tmp_path, **({"num_labels": 3} if kind == "classification" else {}))
    fresh = set(own.state_dict()) - {f"{own.base_model_prefix}.{key}" for key in own.base_model.state_dict()}
    pooler = {key for key in own.state_dict() if "pooler" in key and name == "bert_mlm"}
    assert list(own.state_dict()) == list(head.state_dict())
    own.load_state_dict({key: head.state_dict()[key] for key in (*fresh, *pooler)}, strict=False)
    given = inputs("bert")
    if name == "bart":
        given["input_ids"][:, -1] = head.config.eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(**given)[0], head(**given)[0], rtol=0, atol=1e-6)
    assert head.config.num_labels == own.config.num_labels


def test_the_body_moves_and_its_old_config_stays():
    model = fewfold.compress(make("bert"), LowRank(targets="linears", rank=3, weighting="none"))
    tensors = {id(parameter) for parameter in model.parameters()}
    config = model.config
    head = with_head(model, 4)
    assert head.bert is model
    assert {id(parameter) for parameter in head.bert.parameters()} == tensors
    assert model.config is head.config
    assert config.num_labels == 2
    assert (head.config.num_labels, head.config.problem_type) == (4, "single_label_classification")
    assert with_head(make("bert"), 1).config.problem_type == "regression"


def test_a_pooler_is_carved_out_of_the_bodys_own_table(tmp_path):
    sizes = {"vocab_size": 50, "max_position_embeddings": 16}
    language_model = ShareBertForMaskedLM(ShareBertConfig.preset("tiny", **sizes)).eval()
    body, ids = language_model.sharebert, torch.randint(50, (2, 8))
    states = body(input_ids=ids).last_hidden_state
    head = with_head(language_model, 3)
    expected = head.classifier(states[:, 0] @ body.store("pooler") + head.sharebert.pooler.dense.bias)
    torch.testing.assert_close(head(input_ids=ids).logits, expected)
    head(input_ids=ids, labels=torch.tensor([0, 2])).loss.backward()
    assert body.store.table.weight.grad is not None
    head.save_pretrained(tmp_path)
    again = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, expected)


def test_fresh_weights_follow_the_seed_alone():
    one, two, other = (with_head(make("bert"), 3, seed=seed).classifier.weight.detach() for seed in (1, 1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.02, rel=0.5)
    model, before = make("bert"), torch.get_rng_state()
    with_head(model, 3, seed=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compressed_pooler_goes_where_questions_are_answered(tmp_path):
    model = fewfold.compress(make("bert"), LowRank(targets=["pooler.dense", "*query"], rank=4, weighting="none"))
    head = with_head(model, kind="question-answering")
    assert head.bert.pooler is None
    names = [record.module for record in structure_of(head).targets]
    assert names == [f"bert.encoder.layer.{layer}.attention.self.query" for layer in range(2)]
    head.save_pretrained(tmp_path)
    assert "bert.pooler" not in " ".join(fewfold.load(tmp_path).state_dict())


def test_only_the_old_head_was_compressed():
    model = fewfold.compress(make("bert_cls"), Dense(targets=["classifier"]))
    head = with_head(model, 5)
    assert structure_of(head) is None
    assert isinstance(head.classifier, torch.nn.Linear)


def test_what_is_a_fitting_head():
    model = make("bert_cls")
    assert has_head(model, 3)
    assert not has_head(model, 2)
    assert not has_head(model, kind="question-answering")
    assert not has_head(make("bert"), 2)
    assert not has_head(torch.nn.Linear(2, 2))


def test_models_without_such_a_head():
    with pytest.raises(TaskError, match="ViTModel: transformers has no AutoModelForQuestionAnswering"):
        with_head(make("vit"), kind="question-answering")
    model = make("t5")
    with pytest.raises(TaskError, match="no T5Model of its own"):
        with_head(model, kind="question-answering")
    with pytest.raises(TaskError, match="num_labels=0"):
        with_head(make("bert"), 0)
    with pytest.raises(TaskError, match="Linear: transformers has no"):
        with_head(torch.nn.Linear(2, 2))
