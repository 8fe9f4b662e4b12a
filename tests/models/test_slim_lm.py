"""The recurrent language model: state, loss, generation, checkpoints, training, composition."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

import fewfold
from fewfold import CheckpointError, LowRank, ModelError, SubvectorCodes, TargetError
from fewfold.methods.low_rank.modules import LowRankLinear
from fewfold.models import SlimCodes, SlimEmbedding, SlimLMConfig, SlimLMForCausalLM, SlimSoftmax

VOCAB = 53
CODES = {"positions": 4, "ratio": 3}
KINDS = {
    "dense": {},
    "slim": {"input_codes": CODES, "output_codes": CODES},
    "tied": {"input_codes": CODES, "tie_word_embeddings": True},
    "dense_tied": {"tie_word_embeddings": True},
    "free_gru": {"input_codes": {**CODES, "pool": "free"}, "cell": "gru"},
    "projected": {"output_codes": CODES, "projection_size": 8, "embedding_size": 12},
}


def make(kind="slim", seed=0, **kwargs):
    torch.manual_seed(seed)
    config = SlimLMConfig(vocab_size=VOCAB, hidden_size=16, num_layers=2, **{**KINDS[kind], **kwargs})
    model = SlimLMForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def ids_of(batch=3, length=8):
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_carried_state_equals_one_long_pass(kind):
    model, ids = make(kind), ids_of()
    whole = model(ids)
    first = model(ids[:, :5])
    second = model(ids[:, 5:], state=first.state)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits, atol=1e-5, rtol=1e-5)
    for layer, wanted in zip(second.state, whole.state, strict=True):
        for part, other in zip(layer, wanted, strict=True):
            torch.testing.assert_close(part, other)
    detached = model.detach_state(first.state)
    assert not any(part.requires_grad for layer in detached for part in layer)
    assert first.state[0][0].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_cross_entropy_of_the_next_words(kind):
    model, ids = make(kind), ids_of()
    labels = ids.clone()
    labels[0, 3:] = -100
    output = model(ids, labels=labels)
    assert output.logits is None
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    wanted = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)
    moved = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
    assert torch.equal(model(ids, shift_labels=moved).loss, output.loss)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=torch.tensor(7)).loss * 7, wanted * 16)
    assert model(ids, labels=labels, return_logits=True).logits.shape == (3, 8, VOCAB)
    assert model(ids, logits_to_keep=2).logits.shape == (3, 2, VOCAB)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_gradients_of_slim_and_dense_twin_agree():
    model, ids = make("slim").double(), ids_of()
    twin = copy.deepcopy(model).unslim()
    model(ids, labels=ids).loss.backward()
    twin(ids, labels=ids).loss.backward()
    for name, parameter in twin.model.layers.named_parameters():
        torch.testing.assert_close(model.model.layers.get_parameter(name).grad, parameter.grad, atol=1e-12, rtol=1e-9)
    for slim, dense in ((model.model.embed_tokens, twin.model.embed_tokens), (model.lm_head, twin.lm_head)):
        codes, found = slim.coded.codes(0), torch.zeros(4, slim.codes.words, 4, dtype=torch.float64)
        for word in range(VOCAB):
            for position in range(4):
                found[position, int(codes[word, position])] += dense.weight.grad[word, 4 * position : 4 * position + 4]
        book = slim.coded.codebooks["0"].weight.grad.unflatten(0, (4, -1))
        torch.testing.assert_close(book, found, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_equals_a_loop_over_words(kind):
    model, ids = make(kind), ids_of()
    found = model.generate(ids, max_new_tokens=6, do_sample=False)
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, expected)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False), expected)


def test_generation_reads_one_word_at_a_time():
    model, lengths = make(), []
    model.model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model.generate(ids_of(), max_new_tokens=4, do_sample=False)
    assert lengths == [8, 1, 1, 1]


def test_generation_goes_on_from_a_state():
    model, ids = make(), ids_of()
    state = model(ids[:, :5]).state
    on = model.generate(ids[:, 5:], state=state, max_new_tokens=4, do_sample=False)
    assert torch.equal(on[:, 3:], model.generate(ids, max_new_tokens=4, do_sample=False)[:, 8:])


def test_beams_and_samples_go_on_from_a_state():
    model, ids = make(), ids_of()
    state = model(ids[:, :5]).state
    on = model.generate(ids[:, 5:], state=state, max_new_tokens=4, num_beams=3, do_sample=False)
    assert torch.equal(on[:, 3:], model.generate(ids, max_new_tokens=4, num_beams=3, do_sample=False)[:, 8:])
    several = model.generate(ids[:, 5:], state=state, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert several.shape == (2 * len(ids), 7)


def test_left_padding_does_not_change_what_follows():
    model, ids = make(pad_token_id=0), ids_of(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = (padded != 0).long()
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:], model(ids).logits)
    both = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(both[:, 3:], model.generate(ids, max_new_tokens=5, do_sample=False))


def test_beam_search_finds_the_best_of_all_short_continuations():
    model, ids = make("slim"), ids_of(2, 4)
    found = model.generate(ids, max_new_tokens=2, num_beams=VOCAB, do_sample=False, length_penalty=0.0)
    for row in range(2):
        first = model(ids[row : row + 1]).logits[0, -1].log_softmax(-1)
        longer = torch.cat([ids[row].expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)
        both = first[:, None] + model(longer).logits[:, -1].log_softmax(-1)
        best = int(both.argmax())
        assert found[row, 4:].tolist() == [best // VOCAB, best % VOCAB]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_load_by_auto_classes_with_equal_logits(kind, tmp_path):
    model, ids = make(kind), ids_of()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SlimLMConfig)
    assert config.to_dict().keys() == model.config.to_dict().keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = copy.deepcopy(loaded)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids).logits, model(ids).logits)
    half = SlimLMForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(ids).logits.dtype == torch.bfloat16
    torch.testing.assert_close(half(ids).logits.float(), model(ids).logits, atol=0.5, rtol=0.1)
    torch.testing.assert_close(half(ids, labels=ids).loss.float(), model(ids, labels=ids).loss, atol=0.1, rtol=0)


def test_a_file_holds_codes_in_bits_and_each_tensor_once(tmp_path):
    model = make("tied")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    words = model.config.input_codes["words"]
    assert tensors["model.embed_tokens.coded.codes_0"].numel() == math.ceil(VOCAB * 4 * math.ceil(math.log2(words)) / 8)
    assert not any(name.startswith("lm_head") for name in tensors if name != "lm_head.bias")


def test_damaged_codes_are_named(tmp_path):
    make("slim").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, name = load_file(file), "lm_head.coded.codes_0"
    save_file({**tensors, name: torch.full_like(tensors[name], 255)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head.coded.codes_0 holds 31, a code outside the pool of 17 words"):
        SlimLMForCausalLM.from_pretrained(tmp_path)
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match=rf"codes_0: {VOCAB - 1} of {VOCAB} rows have the codes of an earlier row"):
        SlimLMForCausalLM.from_pretrained(tmp_path)(ids_of())
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no lm_head.coded.codes_0"):
        SlimLMForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_sub_vectors_can_be_kept_in_fewer_bits(stored, tmp_path):
    codes = {**CODES, "stored_dtype": stored}
    model, ids = make("slim", input_codes=codes, output_codes=codes), ids_of()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=0.2, rtol=0.1)
    assert isinstance(loaded.lm_head, SlimSoftmax)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = [t for name, t in tensors.items() if "codebooks" in name and not name.endswith("scales")]
    assert {t.element_size() for t in kept} == {2 if stored == "fp16" else 1}


def test_the_dense_twin_gives_equal_outputs_and_stands_alone(tmp_path):
    for kind in ("slim", "tied", "free_gru"):
        model, ids = make(kind, pad_token_id=0), ids_of()
        wanted = model(ids).logits
        twin = fewfold.densify(model)
        assert twin is model
        assert type(model.model.embed_tokens) is nn.Embedding
        assert type(model.lm_head) is nn.Linear
        torch.testing.assert_close(model(ids).logits, wanted, atol=1e-5, rtol=1e-5)
        model.save_pretrained(tmp_path / kind)
        saved = json.loads((tmp_path / kind / "config.json").read_text())
        assert saved.get("input_codes") is None
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == (kind == "tied")
    with pytest.raises(TargetError, match="not compressed"):
        fewfold.densify(model)


@pytest.mark.parametrize("weighting", ["none", "inputs and outputs"])
@pytest.mark.parametrize("kind", ["slim", "tied", "projected", "free_gru"])
def test_low_rank_on_the_recurrent_matrices(kind, weighting, tmp_path):
    model, ids = make(kind), ids_of()
    wanted = model(ids).logits
    full = copy.deepcopy(model)
    texts = [{"input_ids": ids_of(2, 9 + i)} for i in range(4)]
    given = {} if weighting == "none" else {"calibration": texts}
    fewfold.compress(full, LowRank(rank=8, weighting="none"))
    replaced = [m for m in full.modules() if isinstance(m, LowRankLinear)]
    assert len(replaced) == (6 if kind == "projected" else 4)
    low = model
    kwargs = {"weighting": "none"} if weighting == "none" else {}
    fewfold.compress(low, LowRank(rank=6, **kwargs), **given)
    assert not torch.allclose(low(ids).logits, wanted)
    rebuilt = fewfold.set_form(copy.deepcopy(low), "rebuilt")
    torch.testing.assert_close(rebuilt(ids).logits, fewfold.set_form(low, "chained")(ids).logits, atol=1e-4, rtol=1e-4)
    loss = low(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in low.parameters())
    low.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, low(ids).logits, atol=1e-5, rtol=1e-5)
    now = low(ids).logits
    torch.testing.assert_close(fewfold.densify(low)(ids).logits, now, atol=1e-4, rtol=1e-4)


def test_trained_dense_tables_convert_to_codes(tmp_path):
    for kind in ("dense", "dense_tied"):
        model, ids = make(kind), ids_of()
        targets = ["model.embed_tokens"] if kind == "dense_tied" else ["model.embed_tokens", "lm_head"]
        for target in targets:
            fewfold.compress(model, SubvectorCodes(targets=[target], width=4, words=32, weighting="none"))
        logits, loss = model(ids).logits, model(ids, labels=ids).loss
        plain = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(loss, plain)
        model.save_pretrained(tmp_path / kind)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / kind)(ids).logits, logits)


def test_int8_on_top_of_slim_layers(tmp_path):
    from fewfold import Dense

    model, ids = make("slim"), ids_of()
    wanted = model(ids).logits
    fewfold.compress(model, Dense(targets="linears", stored_dtype="int8"))
    torch.testing.assert_close(model(ids).logits, wanted, atol=0.3, rtol=0.1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_trainer_trains_resumes_and_evaluates(tmp_path):
    data = [{"input_ids": row, "labels": row} for row in ids_of(16, 8)]

    def trainer(steps, where):
        torch.manual_seed(0)
        model = make("slim", hidden_dropout=0.2, variational=True)
        arguments = TrainingArguments(
            str(where), max_steps=steps, save_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, seed=1,
            report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant",
        )  # fmt: skip
        return Trainer(model, arguments, train_dataset=data, eval_dataset=data)

    whole = trainer(6, tmp_path / "whole")
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    resumed = trainer(6, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(resumed.model.get_parameter(name), parameter, atol=1e-6, rtol=0)


def test_a_tied_slim_output_follows_another_input():
    model, ids = make("tied"), ids_of()
    with torch.no_grad():
        model.lm_head.bias.uniform_()
    old = model.get_input_embeddings()
    fresh = SlimEmbedding(old.num_embeddings, old.embedding_dim, old.codes)
    model.set_input_embeddings(fresh)
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        table = fresh(torch.arange(VOCAB))
        torch.testing.assert_close(model(ids).logits, hidden @ table.T + model.lm_head.bias, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"tied to a slim table, Embedding is none: call unslim"):
        model.set_input_embeddings(torch.nn.Embedding(VOCAB, old.embedding_dim))


def test_codes_are_given_as_a_dict_or_as_such():
    codes = SlimCodes.sized(VOCAB, 16, 4, ratio=5)
    assert SlimLMConfig(VOCAB, hidden_size=16, input_codes=codes).input_codes == codes.to_dict()


def test_trainer_gets_logits_where_the_config_asks(tmp_path):
    rows = ids_of(6, 8)
    model, seen = make("slim", return_logits=True), []

    def metrics(found):
        seen.append(found)
        return {"hits": float((found.predictions[:, :-1].argmax(-1) == found.label_ids[:, 1:]).mean())}

    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    data = [{"input_ids": row, "labels": row} for row in rows]
    found = Trainer(model, arguments, eval_dataset=data, compute_metrics=metrics).evaluate()
    with torch.no_grad():
        expected = model(rows).logits
    torch.testing.assert_close(torch.from_numpy(seen[0].predictions), expected, atol=1e-5, rtol=1e-5)
    assert found["eval_hits"] == float((expected[:, :-1].argmax(-1) == rows[:, 1:]).float().mean())
    model.config.return_logits = False
    assert model(rows, labels=rows).logits is None


def test_dropouts_keep_the_mean_and_follow_the_seed():
    from fewfold.models.slim_lm.dropout import sequence_dropout, word_dropout

    ones = torch.ones(200, 30, 10)
    assert torch.equal(sequence_dropout(ones, 0.4, False, True), ones)
    plain, fixed = (sequence_dropout(ones, 0.4, True, variational) for variational in (False, True))
    for dropped in (plain, fixed):
        assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
        assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert torch.equal(fixed, fixed[:, :1].expand_as(fixed))
    assert not torch.equal(plain, plain[:, :1].expand_as(plain))
    ids = torch.randint(500, (200, 30))
    words = word_dropout(ones, ids, 500, 0.3, True)[..., 0]
    assert float(words.mean()) == pytest.approx(1.0, abs=0.1)
    for word in range(20):
        assert len(words[ids == word].unique()) <= 1
    rates = {f"{where}_dropout": 0.3 for where in ("embedding", "input", "hidden", "output", "weight")}
    model, ids = make("slim", variational=True, **rates).train(), ids_of()
    torch.manual_seed(5)
    first = model(ids).logits
    torch.manual_seed(5)
    assert torch.equal(first, model(ids).logits)
    assert not torch.equal(first, model(ids).logits)


def test_fresh_models_start_small_and_codes_ignore_the_global_seed():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = SlimLMConfig(vocab_size=VOCAB, hidden_size=16, **KINDS["slim"])
        models.append(SlimLMForCausalLM(config))
    codes = [m.lm_head.coded.codes(0) for m in models]
    assert torch.equal(*codes)
    assert not torch.equal(codes[0], models[0].model.embed_tokens.coded.codes(0))
    book = models[0].lm_head.coded.codebooks["0"].weight
    assert float(book.detach().std()) == pytest.approx(0.05, rel=0.2)
    assert not models[0].lm_head.bias.any()
    ids = ids_of()
    assert float(models[0](ids, labels=ids).loss) == pytest.approx(math.log(VOCAB), abs=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cell": "rnn"}, "cell='rnn'.*: allowed are lstm, gru"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_dropout": 1.0}, "hidden_dropout=1.0"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"tie_word_embeddings": True, "embedding_size": 8}, "the table has 8 columns, the last layer gives 16"),
        ({"projection_size": 16}, "projects to fewer numbers"),
        ({"output_codes": {**CODES, "pool": "free"}}, "pool='positions'"),
        ({"input_codes": {"positions": 3, "ratio": 3}}, "input_codes.*positions=3; it must divide"),
        ({"input_codes": 8}, "input_codes=8"),
        ({"tie_word_embeddings": True, "output_codes": CODES}, "there is one table"),
    ],
)
def test_unusable_configs_are_refused_with_the_mend(values, message):
    with pytest.raises(ModelError, match=message):
        SlimLMConfig(**{"vocab_size": VOCAB, "hidden_size": 16, **values})


def test_unusable_inputs_are_refused_with_the_mend():
    model, ids = make(), ids_of()
    with pytest.raises(ModelError, match=r"labels hold .*99; they must be 0…52"):
        model(ids, labels=torch.full_like(ids, 99))
    with pytest.raises(ModelError, match="not both"):
        model(ids, labels=ids, shift_labels=ids)
    with pytest.raises(ModelError, match="the batch 2 rows"):
        model(ids[:2], state=model(ids).state)
    with pytest.raises(ModelError, match="attention_mask has shape"):
        model(ids, attention_mask=torch.ones(3, 2))
    with pytest.raises(ModelError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(ModelError, match="choose vocab_size before training"):
        model.resize_token_embeddings(60)
    assert isinstance(model.get_input_embeddings(), SlimEmbedding)
