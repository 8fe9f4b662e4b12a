import copy

import pytest
import torch
from distill_models import Killed, config, kill_at, make_student, make_teacher, make_tokenizer, parameters, sentences

import fewfold
from fewfold import DistillError, LowRank, SharedFactors
from fewfold.calibration.inputs import calibration_batches
from fewfold.distill import local
from fewfold.distill.local import local_recover
from fewfold.distill.run import distil
from fewfold.stored.modules import decode, encode

TEXTS = sentences(64)
NAMES = ["query", "key", "value"]


def rows(model, batches, module):
    """What enters and leaves a module, real tokens only, in float64."""
    inputs, outputs = [], []

    def record(_, args, output):
        inputs.append(args[0])
        outputs.append(output)

    handle = model.get_submodule(module).register_forward_hook(record)
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    return [torch.cat([x[m] for x, m in zip(xs, masks, strict=True)]).double() for xs in (inputs, outputs)]


def errors(teacher, student, batches, modules):
    return {
        name: float(((rows(teacher, batches, name)[1] - rows(student, batches, name)[1]) ** 2).mean())
        for name in modules
    }


def test_it_keeps_to_its_time(teacher):
    student = make_student(teacher)
    before = parameters(student)
    with pytest.warns(UserWarning, match="was given 0 s, and 12 of 12 linears were not reached"):
        assert local_recover(teacher, student, TEXTS, make_tokenizer(), seconds=0.0) == []
    assert torch.equal(parameters(student), before)
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "local_recover", lambda *_, seconds, **options: given.append(seconds) or [])
        distil(teacher, student, TEXTS, config=config(local_steps=2, minutes=1), tokenizer=make_tokenizer())
    assert 0 < given[0] < 30


def test_a_run_begins_with_it(teacher, tmp_path, monkeypatch):
    """As if it had been called before; a run that was killed goes on without it."""
    tokenizer = make_tokenizer()
    start, settings = make_student(teacher, rank=6), config(steps=4)  # what was fitted is kept at once
    straight = copy.deepcopy(start)
    gains = {gain.target: gain.gain for gain in local_recover(teacher, straight, TEXTS, tokenizer, steps=7)}
    distil(teacher, straight, TEXTS, config=settings, tokenizer=tokenizer)
    live = kill_at(monkeypatch, 3)
    options = {"config": settings.changed(local_steps=7), "tokenizer": tokenizer, "checkpoints": tmp_path}
    with pytest.raises(Killed):
        distil(teacher, copy.deepcopy(start), TEXTS, **options)
    live()
    monkeypatch.setattr(local, "local_recover", None)
    found = copy.deepcopy(start)
    history = distil(teacher, found, TEXTS, **options).histories[0]
    assert history.local == pytest.approx(gains, rel=1e-6)
    assert sum(gains.values()) > 0.1
    assert float((parameters(found) - parameters(straight)).abs().max()) < 1e-6
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistillError, match="in one process"):
        local.Local(settings.changed(local_steps=7), TEXTS, tokenizer).recover(teacher, start)


@pytest.mark.parametrize("stored", ["fp32", "int8"])
def test_layers_come_nearer_to_the_dense_ones(stored, teacher):
    student = make_student(teacher, stored, rank=6)
    batches = calibration_batches(TEXTS, make_tokenizer(), teacher, pieces=True)
    before = copy.deepcopy(student)
    gains = local_recover(teacher, student, TEXTS, make_tokenizer())
    assert len(gains) == 12
    assert all(gain.gain >= 0 for gain in gains)
    assert sum(gain.gain > 0.01 for gain in gains) >= 9
    modules = [gain.target for gain in gains]
    old, new = (errors(teacher, model, batches, modules) for model in (before, student))
    assert sum(new[name] < old[name] for name in modules) >= 10
    assert sum(new.values()) < 0.75 * sum(old.values())
    if stored == "int8":
        leaf = student.encoder.layer[0].output.dense.down
        grid = decode(*encode(leaf.weight, leaf.stored), leaf.weight.shape[1], leaf.stored, torch.float32)
        torch.testing.assert_close(leaf.weight, grid, atol=1e-6, rtol=1e-6)


def test_a_first_layers_fit_is_the_best_of_its_rank(teacher):
    """Where inputs have not drifted: weighted low rank, by an SVD in float64 of the whitened weight."""
    name = "encoder.layer.0.attention.self.query"
    student = fewfold.compress(copy.deepcopy(teacher), LowRank(rank=6, weighting="none", targets=[name]))
    batches = calibration_batches(TEXTS, make_tokenizer(), teacher, pieces=True)
    local_recover(teacher, student, TEXTS, make_tokenizer(), steps=300)
    inputs, wanted = rows(teacher, batches, name)
    found = float((rows(student, batches, name)[1] - wanted).square().sum())
    energy = (inputs.square().sum(0) / len(inputs)).mean()
    padded = torch.cat([inputs, (0.01 * energy * len(inputs)).sqrt() * torch.eye(16, dtype=torch.float64)])
    centred = padded - torch.cat([inputs.mean(0).expand(len(inputs), -1), torch.zeros(16, 16)])
    weight = teacher.get_submodule(name).weight.detach().double()
    lower = torch.linalg.qr(centred).R.T
    u, s, v = torch.linalg.svd(weight @ lower)
    best = (u[:, :6] * s[:6]) @ v[:6] @ torch.linalg.inv(lower)
    residual = (inputs - inputs.mean(0)) @ (weight - best).T
    assert found == pytest.approx(float(residual.square().sum()), rel=0.02)


def test_shared_tensors_stay(teacher):
    student = fewfold.compress(copy.deepcopy(teacher), SharedFactors(rank=6, weighting="none"))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    gains = local_recover(teacher, student, TEXTS, make_tokenizer())
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert max(gain.gain for gain in gains) > 0
    assert changed
    assert all(name.endswith("bias") for name in changed)


def test_nothing_is_made_worse(teacher):
    student = fewfold.compress(copy.deepcopy(teacher), LowRank(rank=16, weighting="none", targets=["*.query"]))
    student.train().embeddings.eval()
    modes = [module.training for module in student.modules()]
    gains = local_recover(teacher, student, TEXTS, make_tokenizer())
    assert len(gains) == 2
    assert [module.training for module in student.modules()] == modes
    student.eval()
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        difference = teacher(ids).last_hidden_state - student(ids).last_hidden_state
    assert float(difference.abs().max()) < 1e-3


def test_distillation_goes_on_from_there(teacher):
    student = make_student(teacher, rank=6)
    losses = []
    for _ in range(2):
        start = copy.deepcopy(student)
        history = distil(teacher, start, TEXTS, config=config(steps=1), tokenizer=make_tokenizer()).histories[0]
        losses.append(history.curve[0]["loss"])
        local_recover(teacher, student, TEXTS, make_tokenizer())
    assert losses[1] < 0.9 * losses[0]


def test_dense_students_are_refused(teacher):
    with pytest.raises(DistillError, match="not compressed"):
        local_recover(teacher, make_teacher(), TEXTS, make_tokenizer())
