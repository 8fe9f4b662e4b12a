"""Translating and judging: order, search, predictions, refusals."""

import json

import pytest
import sacrebleu
import torch

import fewfold
from fewfold import TaskError
from fewfold.tasks import FineTuning, evaluate
from fewfold.tasks.translation import SlimTables, build_model, train_vocabularies, translate


@pytest.fixture
def model(vocabularies):
    return build_model("lstm", vocabularies, size=64, seed=1)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_batches_and_their_order_change_nothing(kind, corpus, vocabularies):
    model = build_model(kind, vocabularies, size=64, layers=1)
    texts = [*corpus.sources[:5], "small", corpus.sources[0] * 2]
    together = translate(model, vocabularies, texts, batch_size=3, max_length=64)
    rows = [vocabularies.source(text)["input_ids"] for text in texts]
    assert together.source_tokens == sum(map(len, rows))
    for text, row in zip(together.texts, rows, strict=True):
        ids = model.eval().generate(torch.tensor([row]), max_new_tokens=100, do_sample=False, num_beams=1)[0]
        alone = vocabularies.target.decode(ids, skip_special_tokens=True).strip()
        shortest = min(len(alone), len(text))  # a batch's longest sentence limits the length
        assert text[: shortest - 3] == alone[: shortest - 3]
    assert together.tokens > 0


def test_judged_with_predictions(model, corpus, vocabularies, tmp_path):
    found = evaluate(
        model, "multi30k-en-de", tokenizer=vocabularies.source, beams=2, eval_limit=4, resamples=20,
        predictions=tmp_path / "p.jsonl",
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    texts = translate(model, vocabularies, [record["source"] for record in records], beams=2).texts
    assert [record["prediction"] for record in records] == texts
    expected = sacrebleu.corpus_bleu(texts, [[record["reference"] for record in records]]).score
    assert found.metrics["bleu"]["mean"] == pytest.approx(expected)
    assert found.data["signature"].startswith("nrefs:1|case:mixed")
    assert found.data["test_2016_flickr"]["examples"] == 4
    assert found.settings["beams"] == 2
    assert found.runs[0].judged.by == "generation"


def test_lower_cased_models_are_judged_lower_cased(corpus):
    vocabularies = train_vocabularies(corpus, 300, lowercase=True)
    model = build_model("lstm", vocabularies, size=64)
    found = evaluate(model, "multi30k-en-de", tokenizer=vocabularies, eval_limit=2, resamples=5)
    assert "case:lc" in found.data["signature"]


def test_what_is_no_translation_model(model, vocabularies, root):
    with pytest.raises(TaskError, match="no fine-tuning"):
        evaluate(model, "multi30k-en-de", tokenizer=vocabularies, finetune=FineTuning())
    from transformers import BertConfig, BertModel

    body = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(TaskError, match="no encoder–decoder that generates"):
        evaluate(body, "multi30k-en-de", tokenizer=vocabularies)
    with pytest.raises(TaskError, match="0 sentences"):
        translate(model, vocabularies, [])


def test_models_that_there_are(vocabularies, corpus):
    state = torch.get_rng_state()
    first, again = (build_model("transformer", vocabularies, size=64, seed=3) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    separate = build_model("transformer", train_vocabularies(corpus, 280, joint=False), size=64)
    assert separate.model.encoder.embed_tokens.weight is not separate.model.decoder.embed_tokens.weight
    assert separate.lm_head.weight is separate.model.decoder.embed_tokens.weight
    with pytest.raises(TaskError, match="choose lstm, transformer"):
        build_model("gru", vocabularies)
    with pytest.raises(TaskError, match="multiple of 64"):
        build_model("lstm", vocabularies, size=100)


def test_compressed_and_judged(vocabularies, corpus):
    model = build_model("transformer", vocabularies, size=64, layers=1)
    fewfold.compress(model, fewfold.LowRank(targets="linears", rank=8, weighting="none"))
    found = evaluate(model, "multi30k-en-de", tokenizer=vocabularies, eval_limit=2, resamples=5)
    assert found.model["compressed"]


@pytest.mark.parametrize("joint", [True, False])
def test_built_from_a_recipe(corpus, joint, tmp_path):
    vocabularies = train_vocabularies(corpus, 300, joint=joint)
    sharing = fewfold.EmbeddingSharing(init_std=0.125)
    model = build_model("transformer", vocabularies, size=64, layers=2, recipe=sharing)
    layers = [*model.model.encoder.layers, *model.model.decoder.layers]
    assert not any(type(module) is torch.nn.Linear for layer in layers for module in layer.modules())
    stacks = [model.model.encoder, model.model.decoder]
    for stack in stacks:
        first, second = (layer.fc1.assembled_weight() for layer in stack.layers)
        assert torch.equal(first, second)
    assert not torch.equal(*(stack.layers[0].fc1.assembled_weight() for stack in stacks))
    dense = build_model("transformer", vocabularies, size=64, layers=2)
    assert sum(p.numel() for p in model.parameters()) < 0.6 * sum(p.numel() for p in dense.parameters())
    before = translate(model, vocabularies, corpus.sources[:3], beams=2).texts
    model.save_pretrained(tmp_path / "m")
    assert translate(fewfold.load(tmp_path / "m"), vocabularies, corpus.sources[:3], beams=2).texts == before
    with pytest.raises(TaskError, match="give one of them"):
        build_model("lstm", vocabularies, size=64, slim=SlimTables(2), recipe=sharing)
