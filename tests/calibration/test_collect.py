import copy

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_models import VOCAB, inputs, make, randomized

from fewfold import CalibrationError
from fewfold.calibration.cache import Cache, model_fingerprint
from fewfold.calibration.collect import collect
from fewfold.calibration.inputs import calibration_batches
from fewfold.surgery.targets import find_targets


def seen_by(model, batches, module_name, mask_key="attention_mask"):
    """All rows a module reads, padding left out, gathered one by one."""
    rows = []

    def hook(module, args):
        mask = current[mask_key].bool()
        rows.extend(args[0][i, j].double().numpy() for i, j in mask.nonzero().tolist())

    handle = model.get_submodule(module_name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for current in batches:
            model(**current)
    handle.remove()
    return np.array(rows)


@pytest.fixture
def bert():
    return make("bert")


@pytest.fixture
def batches(bert):
    rows = [inputs("bert"), inputs("bert", batch=3, length=5)]
    return calibration_batches(rows, None, bert)


def test_moments_equal_a_naive_sum(bert, batches):
    targets = find_targets(bert)
    statistics = collect(bert, targets, batches, gradients=False)
    for name in ("encoder.layer.1.attention.self.query", "encoder.layer.0.output.dense"):
        target = next(t for t in targets if t.module == name)
        moments = statistics.input_moments(target)
        rows = seen_by(bert, batches, name)
        assert moments.count == len(rows) == sum(int(b["attention_mask"].sum()) for b in batches)
        np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(moments.covariance.numpy(), np.cov(rows.T, bias=True), atol=1e-4)


def test_modules_with_one_input_share_one_moment(bert, batches):
    statistics = collect(bert, find_targets(bert), batches, gradients=False)
    block = "encoder.layer.0.attention.self."
    assert {statistics.leader[block + part] for part in ("query", "key", "value")} == {block + "query"}
    assert block + "key" not in statistics.inputs


def test_token_counts_leave_padding_out(bert, batches):
    statistics = collect(bert, find_targets(bert), batches, gradients=False)
    counts = statistics.token_counts["embeddings.word_embeddings"]
    expected = torch.zeros(len(counts), dtype=torch.long)
    for batch in batches:
        for token, kept in zip(batch["input_ids"].flatten(), batch["attention_mask"].flatten(), strict=True):
            expected[token] += int(kept)
    assert torch.equal(counts, expected)


def test_gradient_metric_predicts_the_change_of_the_output(bert, batches):
    """E over probes of (g · dy)² is the squared change of the output, in units of the output's energy."""
    name = "encoder.layer.1.output.dense"
    target = next(t for t in find_targets(bert) if t.module == name)
    probes = batches * 300
    metric = collect(bert, [target], probes, gradients=True).output_metric(target)
    change = 1e-3 * torch.randn(target.rows)
    predicted = float(change.double() @ metric @ change.double())
    with torch.no_grad():
        squares, tokens = 0.0, 0
        for batch in batches:
            mask = batch["attention_mask"].bool()
            before = bert(**batch).last_hidden_state[mask]
            bert.get_submodule(name).bias += change
            after = bert(**batch).last_hidden_state[mask]
            bert.get_submodule(name).bias -= change
            energy = (before - before.mean(0)).square().sum(-1).mean()
            squares += float((after - before).square().sum() / energy)
            tokens += len(before)
    assert predicted == pytest.approx(squares / tokens, rel=0.15)


def test_a_batch_of_one_text_counts_no_more_than_others():
    model = tf.BertForSequenceClassification(tf.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2,
    )).eval()  # fmt: skip
    ids = torch.randint(40, (65, 5), generator=torch.Generator().manual_seed(0))
    targets = [target for target in find_targets(model) if target.kind == "linear"]

    def traces(parts):
        batches = [{"input_ids": part} for part in parts]
        found = collect(model, targets, batches, gradients=True).gradients
        return {name: float(moments.product.trace()) / moments.count for name, moments in found.items()}

    even, odd = traces([ids[:64]]), traces([ids[:64], ids[64:]])
    assert even.keys() == odd.keys()
    assert all(odd[name] < 3 * even[name] for name in even)
    single = traces([ids[place : place + 1] for place in range(12)])
    assert all(single[name] < 30 * even[name] for name in even)


def test_models_that_answer_questions_have_two_scores_a_token():
    """As a classifier of tokens with the same weights, whatever the lengths of the batches."""
    answers = tf.BertForQuestionAnswering(make("bert").config).eval()
    tags = tf.BertForTokenClassification(answers.config).eval()
    tags.bert.load_state_dict(answers.bert.state_dict())
    tags.classifier.load_state_dict(answers.qa_outputs.state_dict())
    batches = []
    for length in (5, 9):
        mask = torch.ones(3, length, dtype=torch.long)
        mask[1, 3:] = 0
        batches.append({"input_ids": torch.randint(0, VOCAB, (3, length)), "attention_mask": mask})
    inner = [target for target in find_targets(answers) if "intermediate" in target.name]
    found, expected = (collect(model, inner, batches, gradients=True, seed=0) for model in (answers, tags))
    for target in inner:
        one, other = (statistics.output_metric(target) for statistics in (found, expected))
        assert float(one.diagonal().min()) > 0
        torch.testing.assert_close(one, other)


def test_gradients_that_are_no_numbers_are_named(bert, batches):
    def spoil(module, args, output):
        output.register_hook(lambda gradient: gradient * float("inf"))

    handle = bert.get_submodule("encoder.layer.0.output.dense").register_forward_hook(spoil)
    with pytest.raises(CalibrationError, match="is not finite in float32"):
        collect(bert, [t for t in find_targets(bert) if t.kind == "linear"], batches, gradients=True)
    handle.remove()


def test_a_folder_that_cannot_be_written_is_no_obstacle(bert, batches, tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache("key", tmp_path / "file" / "below")
    targets = [target for target in find_targets(bert) if target.kind == "linear"]
    with pytest.warns(UserWarning, match="FEWFOLD_CACHE"):
        found = collect(bert, targets, batches, gradients=False, cache=cache)
    assert found.inputs


def test_model_is_left_as_it_was(bert, batches):
    bert.train().encoder.layer[1].eval()
    modes = [module.training for module in bert.modules()]
    bert.encoder.layer[0].output.dense.weight.requires_grad_(False)
    flags = [p.requires_grad for p in bert.parameters()]
    collect(bert, find_targets(bert), batches)
    assert [module.training for module in bert.modules()] == modes
    assert [p.requires_grad for p in bert.parameters()] == flags
    assert all(p.grad is None for p in bert.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bert.modules())


@pytest.mark.parametrize("name", ["gpt2_lm", "llama", "t5_lm", "bart", "vit"])
def test_every_target_of_every_family_is_seen(name):
    model = make(name)
    targets = [t for t in find_targets(model) if not t.head and t.kind == "linear"]
    batches = calibration_batches([inputs(name)], None, model)
    statistics = collect(model, targets, batches)
    for target in targets:
        assert statistics.input_moments(target) is not None, target.name
        assert statistics.output_metric(target).shape == (target.rows, target.rows), target.name


def opt():
    return tf.OPTForCausalLM(tf.OPTConfig(
        vocab_size=VOCAB, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=40,
    ))  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2_lm", "llama_lm", "opt"])
def test_padding_counts_nowhere(name):
    """OPT's feed-forward layers read the tokens of all texts in one row."""
    model, batch = randomized(opt) if name == "opt" else make(name), inputs("gpt2_lm")
    targets = [target for target in find_targets(model) if not target.head and target.kind == "linear"]
    statistics = collect(model, targets, calibration_batches([batch], None, model))
    real = int(batch["attention_mask"].sum())
    assert real < batch["attention_mask"].numel()
    for target in targets:
        assert statistics.input_moments(target).count == real, target.name
        assert statistics.gradients[target.module].count == real, target.name


def test_an_interrupted_run_goes_on_where_it_stopped(bert, batches, tmp_path):
    targets = find_targets(bert)
    whole = collect(bert, targets, batches * 2)
    cache = Cache("key", tmp_path, every=0.0)

    class Killed(Exception):
        pass

    calls = 0

    def die(module, args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed

    handle = bert.register_forward_pre_hook(die)
    with pytest.raises(Killed):
        collect(bert, targets, batches * 2, cache=cache)
    handle.remove()
    calls = 0
    handle = bert.register_forward_pre_hook(die)
    resumed = collect(bert, targets, batches * 2, cache=cache)
    handle.remove()
    assert calls == 2, "the first two batches were read from disk"
    assert resumed.tokens == whole.tokens
    for kind in ("inputs", "gradients"):
        before, after = getattr(whole, kind), getattr(resumed, kind)
        assert before.keys() == after.keys()
        for name, moments in before.items():
            torch.testing.assert_close(after[name].product, moments.product, rtol=1e-5, atol=1e-7)


def test_a_models_fingerprint_follows_all_that_it_computes_with(bert):
    another = copy.deepcopy(bert)
    another.config.hidden_act = "relu"
    renamed = copy.deepcopy(bert)
    renamed.__class__ = type("Another", (type(bert),), {})
    moved = copy.deepcopy(bert)
    moved.pooler.dense.bias.data[0] += 1
    assert model_fingerprint(bert) == model_fingerprint(make("bert"))
    assert len({model_fingerprint(model) for model in (bert, another, renamed, moved)}) == 4
    assert model_fingerprint(torch.nn.Linear(2, 2)) != model_fingerprint(torch.nn.Linear(2, 2))


def test_a_damaged_cache_is_calibrated_again(bert, batches, tmp_path):
    cache = Cache("key", tmp_path)
    cache.path.write_bytes(b"not a file of tensors")
    statistics = collect(bert, find_targets(bert), batches, cache=cache)
    assert statistics.tokens == Cache("key", tmp_path).load()[0].tokens


def test_wrong_inputs_name_the_batch(bert):
    with pytest.raises(CalibrationError, match="batch 0"):
        collect(bert, find_targets(bert), [{"pixel_values": torch.zeros(1, 3, 8, 8)}])
