"""A body loaded from a head's checkpoint, a head around a body's, and loads in another dtype."""

import pytest
import torch
import transformers as tf
from cases import METHODS, copied
from tiny_models import auto_class, inputs, make, outputs

import fewfold
from fewfold import LowRank
from fewfold.assembled import Assembled
from fewfold.surgery.ties import TiedHead

pytestmark = pytest.mark.checkpoint


def hidden(model, name):
    with torch.no_grad():
        return model(**inputs(name)).last_hidden_state


HEADED = ("bert_mlm", "bert_cls", "roberta_mlm", "distilbert_mlm", "gpt2_lm", "llama_lm", "llama_untied", "t5_lm",
          "bart_lm", "vit_cls")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method", "stored"),
    [  # in an ordinary run each method meets some models, in one of the two dtypes
        pytest.param(name, method, stored, marks=() if (i + j) % 3 == 0 and (i + j // 3 + k) % 2 else pytest.mark.full)
        for i, name in enumerate(HEADED)
        for j, method in enumerate(METHODS)
        for k, stored in enumerate(("fp32", "int8"))
    ],
)  # fmt: skip
def test_a_body_from_a_heads_checkpoint(name, method, stored, tmp_path):
    model = copied(name, method, stored)
    model.save_pretrained(tmp_path)
    body, info = tf.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    if name == "t5_lm":  # its body is the model itself, head apart
        assert body.shared.num_embeddings == model.shared.num_embeddings
        reference = tf.T5Model(model.config)
        for child in ("shared", "encoder", "decoder"):
            setattr(reference, child, getattr(model, child))
        expected = hidden(reference.eval(), name)
    else:
        base = model.base_model
        expected = hidden(base, name)
        assert [row.target for row in fewfold.summary(base)] == [row.target for row in fewfold.summary(body)]
        fewfold.save(base, tmp_path / "base")
        torch.testing.assert_close(hidden(fewfold.load(tmp_path / "base"), name), expected, rtol=0, atol=1e-6)
    if hasattr(body, "pooler") and name == "bert_mlm":
        assert all("pooler" in key for key in info["missing_keys"])
    torch.testing.assert_close(hidden(body, name), expected, rtol=0, atol=1e-6)
    body.save_pretrained(tmp_path / "body")
    again = tf.AutoModel.from_pretrained(tmp_path / "body")
    torch.testing.assert_close(hidden(again, name), expected, rtol=0, atol=1e-6)
    again.resize_token_embeddings(70) if name != "vit_cls" else None
    fewfold.densify(again)
    torch.testing.assert_close(hidden(again, name), expected, rtol=1e-4, atol=5e-5)


def test_the_store_of_a_head_stays_behind(tmp_path):
    model = make("bert_mlm")
    head = fewfold.SharedFactors(targets="cls.predictions.transform.dense", rank=(4, 4), weighting="none")
    fewfold.compress(model, [head, LowRank(rank=4, weighting="none")])
    model.save_pretrained(tmp_path)
    body = tf.AutoModel.from_pretrained(tmp_path)
    found = fewfold.summary(body)
    assert [row.method for row in found] == ["low_rank"] * 12
    assert found.parameters == sum(parameter.numel() for parameter in body.parameters())


@pytest.mark.parametrize("method", [method for method, case in METHODS.items() if case.tables])
@pytest.mark.parametrize(
    ("name", "auto", "head"),
    [
        ("bert", "AutoModelForMaskedLM", "cls.predictions.decoder"),
        ("distilbert", "AutoModelForMaskedLM", "vocab_projector"),
        ("gpt2", "AutoModelForCausalLM", "lm_head"),
        ("bart", "AutoModelForSeq2SeqLM", "lm_head"),
        ("t5", "AutoModelForSeq2SeqLM", "lm_head"),
    ],
)
def test_a_head_around_a_bodys_checkpoint_ties_to_the_assembled_table(name, auto, head, method, tmp_path):
    body = copied(name, method, "int8")
    body.save_pretrained(tmp_path / "body")
    model, info = getattr(tf, auto).from_pretrained(tmp_path / "body", output_loading_info=True)
    assert f"{head}.weight" not in info["missing_keys"]
    tied = model.get_submodule(head)
    assert isinstance(tied, TiedHead)
    assert isinstance(model.get_input_embeddings(), Assembled)
    assert tied.table is model.get_input_embeddings()
    with torch.no_grad():
        states = torch.randn(2, 3, 16)
        bias = 0 if tied.bias is None else tied.bias
        expected = states @ tied.table.assembled_weight().T + bias
        torch.testing.assert_close(tied(states), expected, rtol=1e-5, atol=1e-5)
    result = model(**inputs(name)).logits
    model.save_pretrained(tmp_path / "head")
    again = getattr(tf, auto).from_pretrained(tmp_path / "head")
    torch.testing.assert_close(again(**inputs(name)).logits, result, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "head"), [("bert", "cls.predictions.decoder"), ("distilbert", "vocab_projector")])
def test_the_bias_of_a_fresh_head_begins_at_zero(name, head, tmp_path):
    copied(name, "low_rank", "int8").save_pretrained(tmp_path)
    torch.use_deterministic_algorithms(True)  # memory that nobody filled then holds NaN
    try:
        model = tf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(model.get_submodule(head).bias, torch.zeros(model.config.vocab_size))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert_mlm", "t5_lm", "llama_lm"])
def test_loading_in_another_dtype_equals_casting(name, dtype, stored, tmp_path):
    model = copied(name, "low_rank", stored)
    model.save_pretrained(tmp_path)
    loaded = auto_class(name).from_pretrained(tmp_path, dtype=dtype)
    kept = {n for n, p in loaded.named_parameters() if p.dtype == torch.float32}
    if name == "t5_lm":  # transformers keeps T5's wo in fp32 in half precision
        assert all(".wo." in n for n in kept)
    else:
        assert not kept
    assert torch.isfinite(outputs(loaded, name)).all()
    if not kept:
        # a cast also rounds Llama's rotary frequencies, which a load leaves in fp32
        tolerance = 0.02 if name == "llama_lm" else 0
        torch.testing.assert_close(outputs(loaded, name), outputs(model.to(dtype), name), rtol=0, atol=tolerance)


def test_packed_models_run_in_every_dtype_and_save_the_same_file(tmp_path):
    for stored in ("int8", "int4"):
        copied("bert_mlm", "low_rank", stored).save_pretrained(tmp_path / stored)
        model = fewfold.load(tmp_path / stored, packed=True)
        expected = outputs(fewfold.load(tmp_path / stored), "bert_mlm")
        torch.testing.assert_close(outputs(model, "bert_mlm"), expected, rtol=0, atol=1e-6)
        for cast in ("bfloat16", "half", "float"):
            getattr(model, cast)()
            assert torch.isfinite(outputs(model, "bert_mlm")).all()
        torch.testing.assert_close(  # codes and scales did not suffer from the casts, biases and norms did
            model.bert.embeddings.word_embeddings.assembled_weight(),
            fewfold.load(tmp_path / stored).bert.embeddings.word_embeddings.assembled_weight(),
            rtol=0, atol=1e-6,
        )  # fmt: skip


def test_further_compression_of_a_loaded_model(tmp_path):
    model = make("bert_mlm")
    fewfold.compress(model, LowRank(targets="linears", rank=6, weighting="none"))
    model.save_pretrained(tmp_path / "one")
    model = tf.AutoModelForMaskedLM.from_pretrained(tmp_path / "one")
    fewfold.compress(model, LowRank(targets="embeddings", rank=5, weighting="none", stored_dtype="int8"))
    expected = outputs(model, "bert_mlm")
    model.save_pretrained(tmp_path / "two")
    again = tf.AutoModelForMaskedLM.from_pretrained(tmp_path / "two")
    torch.testing.assert_close(outputs(again, "bert_mlm"), expected, rtol=0, atol=1e-6)
    ranks = {row.target: row.rank for row in fewfold.summary(again)}
    assert ranks["bert.embeddings.word_embeddings"] == "5"
    assert ranks["bert.encoder.layer.0.attention.self.query"] == "6"
