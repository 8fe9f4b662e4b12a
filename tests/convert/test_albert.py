"""ALBERT and BERT, there and back, with equal outputs."""

import pytest
import torch
import transformers as tf
from tiny_models import VOCAB, make

import fewfold
from fewfold import SharedLayers, TargetError
from fewfold.measure.parameters import unique_parameters

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip
STRICT = {"norms_and_biases": "shared", "weighting": "none", "delta_rank": 0}


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    return model.eval()


def bert(kind="Model", layers=4, **values):
    torch.manual_seed(0)
    config = tf.BertConfig(**SIZES, num_hidden_layers=layers, hidden_act="gelu_new", layer_norm_eps=1e-7, **values)
    return randomised(getattr(tf, f"Bert{kind}")(config))


def albert(kind="Model", **values):
    torch.manual_seed(0)
    config = tf.AlbertConfig(**{**SIZES, "embedding_size": 16, "num_hidden_layers": 4, **values})
    return randomised(getattr(tf, f"Albert{kind}")(config))


@torch.no_grad()
def outputs(model):
    ids = torch.randint(3, VOCAB, (2, 3, 7) if "Choice" in type(model).__name__ else (2, 7),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    mask = torch.ones_like(ids)
    mask[..., 0, -2:] = 0
    found = model(input_ids=ids, attention_mask=mask, token_type_ids=ids % 2)
    return [value for value in found.values() if isinstance(value, torch.Tensor)]


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "kind",
    ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
     "ForMultipleChoice"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, (4, 4, 1)),
        ({"map": "all"}, (4, 1, 1)),
        ({"map": "pairs"}, (4, 2, 1)),
        ({"map": "cycle", "blocks": 2}, (2, 1, 2)),
    ],
)
def test_a_bert_becomes_an_albert_and_a_bert_again(kind, config, expected):
    model = bert(kind)
    if config is not None:
        fewfold.compress(model, SharedLayers(**config, **STRICT))
    dense = outputs(model)
    found = fewfold.to_albert(model)
    sizes = found.config
    assert (sizes.num_hidden_layers, sizes.num_hidden_groups, sizes.inner_group_num) == expected
    assert type(found).__name__ == f"Albert{kind}"
    assert_equal(outputs(found), dense)
    assert_equal(outputs(model), dense)
    mapping = 16 * 16 + 16
    assert unique_parameters(found) == unique_parameters(model) + mapping
    again = fewfold.from_albert(found, shared=config is not None)
    assert type(again).__name__ == f"Bert{kind}"
    assert_equal(outputs(again), dense)
    assert unique_parameters(again) == unique_parameters(model)


def test_an_albert_with_a_real_map_becomes_an_electra():
    model = albert(embedding_size=8, num_hidden_groups=2, hidden_act="gelu")
    found = fewfold.from_albert(model)
    assert isinstance(found, tf.ElectraModel)
    assert_equal(outputs(found)[:1], outputs(model)[:1])
    assert [name for name, _ in found.named_parameters() if "embeddings_project" in name]


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(TargetError, match="RobertaModel is none of BertModel"):
        fewfold.to_albert(make("roberta"))
    with pytest.raises(TargetError, match="is a decoder"):
        fewfold.to_albert(bert(is_decoder=True))
    with pytest.raises(TargetError, match="embeddings of 8 to layers of 16, which no BERT with a head does"):
        fewfold.from_albert(albert("ForMaskedLM", embedding_size=8))
    with pytest.raises(TargetError, match="a matrix that is not the identity"):
        fewfold.from_albert(albert())


def test_differences_keep_layers_apart():
    model = bert()
    fewfold.compress(model, SharedLayers(map="all", **{**STRICT, "delta_rank": 2}))
    found = fewfold.to_albert(model)
    assert found.config.num_hidden_groups == 4
    assert_equal(outputs(found), outputs(model))


def test_a_converted_model_is_saved_and_loaded(tmp_path):
    model = bert("ForMaskedLM")
    found = fewfold.to_albert(model)
    found.save_pretrained(tmp_path)
    assert_equal(outputs(tf.AutoModelForMaskedLM.from_pretrained(tmp_path)), outputs(model))
