"""Training on the grids of few-bit tensors, with floats behind them."""

import copy
import sys

import pytest
import torch
from distill_models import Killed, config, kill_at, make_student, make_teacher, make_tokenizer, parameters, sentences
from torch import nn

from fewfold.distill.run import distil
from fewfold.errors import DistillError
from fewfold.linalg.quantize import codes_on, followed_scales, quantize_matrix, round_onto_
from fewfold.stored import StoredDtype
from fewfold.stored.kept import round_stored
from fewfold.stored.modules import StoredLinear
from fewfold.training.rounding import REFRESH, Rounding


def layer(stored="int3", group=8, columns=24, seed=0):
    torch.manual_seed(seed)
    found = StoredLinear(columns, 6, True, StoredDtype(stored, group))
    found.round_()
    return found


@pytest.mark.parametrize(("bits", "group", "columns"), [(4, 8, 24), (3, 8, 21), (2, 32, 7), (8, 24, 24)])
def test_the_nearest_points_of_a_grid(bits, group, columns):
    values = torch.randn(5, columns, generator=torch.Generator().manual_seed(bits))
    grid = quantize_matrix(values, bits, group)
    moved = values + 0.3 * torch.randn(5, columns, generator=torch.Generator().manual_seed(9))
    scales = grid.scales.float()
    lowest = -(2 ** (bits - 1)) + (bits == 8)
    points = torch.arange(lowest, 2 ** (bits - 1)).double()
    expected = torch.empty(5, columns, dtype=torch.float64)
    for row in range(5):
        for column in range(columns):
            choices = points * float(scales[row, column // min(group, columns)])
            expected[row, column] = choices[(choices - moved[row, column].double()).abs().argmin()]
    found = round_onto_(moved.clone(), scales, bits, min(group, columns))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(codes_on(moved, scales, bits, min(group, columns)).dequantize(), found)


def test_scales_follow_what_grows_and_begin_where_there_was_nothing():
    torch.manual_seed(0)
    values = torch.randn(4, 16)
    scales = quantize_matrix(values, 3, 8).scales.float()
    grown = values * 2
    for _ in range(30):
        scales = followed_scales(grown, scales, 3, 8)
    best = quantize_matrix(grown, 3, 8)
    error = (codes_on(grown, scales, 3, 8).dequantize() - grown).square().sum()
    assert error < 1.1 * (best.dequantize() - grown).square().sum()
    assert torch.equal(scales, scales.bfloat16().float())
    fresh = followed_scales(values, torch.zeros_like(scales), 3, 8)
    assert (fresh != 0).all()
    assert torch.equal(followed_scales(torch.zeros(4, 16), torch.zeros_like(scales), 3, 8), torch.zeros(4, 2))


def test_a_step_has_the_gradient_at_the_grid_and_moves_the_floats():
    found, inputs = layer(), torch.randn(9, 24)
    rounding = Rounding(found)
    with torch.no_grad():
        found.weight.add_(0.02 * torch.randn_like(found.weight))
    floats = found.weight.detach().clone()
    rounding.apply_(1)
    rounding.apply_(1)  # parts of a batch
    grid = found.weight.detach().clone()
    assert not torch.equal(grid, floats)
    (found(inputs) - 1).square().sum().backward()
    gradient = found.weight.grad.clone()
    rounding.restore_()
    assert torch.equal(found.weight, floats)
    independent = 2 * (inputs.double() @ grid.double().t() + found.bias.double() - 1).t() @ inputs.double()
    torch.testing.assert_close(gradient.double(), independent, rtol=1e-4, atol=1e-4)
    torch.optim.SGD(found.parameters(), lr=1e-3).step()
    rounding.settle_(found)
    copied = copy.deepcopy(found)
    copied.load_state_dict(found.state_dict())
    assert torch.equal(copied.weight, found.weight)  # it is what a file of it holds
    nearest = round_onto_((floats - 1e-3 * gradient).clone(), rounding.scales_0, 3, 8)
    assert torch.equal(found.weight, nearest)


def test_only_few_bits_that_train_are_rounded():
    frozen, int8, plain = layer(), layer("int8"), nn.Linear(3, 3)
    frozen.weight.requires_grad_(False)
    assert Rounding(nn.ModuleList([frozen, int8, plain])).leaves == ()
    assert len(Rounding(nn.ModuleList([layer("int4"), layer("int2")])).leaves) == 2


def test_floats_come_back_after_an_error():
    found = layer()
    rounding = Rounding(found)
    with torch.no_grad():
        found.weight.add_(0.02)
    before = found.weight.detach().clone()

    def fail():
        with rounding.applied():
            assert not torch.equal(found.weight, before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(found.weight, before)


def rounded_loss(teacher, aware, texts, tokenizer):
    student = make_student(teacher, "int2", rank=8)
    settings = config(steps=120, quantization_aware=aware, log_steps=20, validation=16)
    outcome = distil(teacher, student, texts, config=settings, tokenizer=tokenizer)
    kept = copy.deepcopy(student)
    round_stored(kept)
    with torch.no_grad():
        inputs = tokenizer(texts[:40], return_tensors="pt", padding=True)
        mask = inputs["attention_mask"].bool()
        error = (kept(**inputs).last_hidden_state - teacher(**inputs).last_hidden_state)[mask].square().mean()
    return student, kept, outcome, float(error)


def test_what_is_kept_in_two_bits_learns_to_live_with_it():
    teacher, tokenizer, texts = make_teacher(), make_tokenizer(), sentences(96)
    student, kept, outcome, aware = rounded_loss(teacher, True, texts, tokenizer)
    assert torch.equal(parameters(student), parameters(kept))  # it ends on the grid
    *_, blind = rounded_loss(teacher, False, texts, tokenizer)
    assert aware < 0.8 * blind
    # losses, in training and on held-out texts, are those of what will be saved
    assert outcome.histories[0].held_out[-1]["loss"] == pytest.approx(aware, rel=0.5)


def test_a_killed_run_goes_on_with_its_scales(tmp_path, monkeypatch):
    teacher, tokenizer, texts = make_teacher(), make_tokenizer(), sentences(96)
    start = make_student(teacher, "int3")
    settings = config(steps=3 * REFRESH, checkpoint_minutes=1e-6, learning_rate=3e-2)
    straight, killed, resumed = (copy.deepcopy(start) for _ in range(3))
    distil(teacher, straight, texts, config=settings, tokenizer=tokenizer)
    live = kill_at(monkeypatch, 2 * REFRESH + 3)
    with pytest.raises(Killed):
        distil(teacher, killed, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    live()
    distil(teacher, resumed, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    assert float((parameters(resumed) - parameters(straight)).abs().max()) < 1e-6
    assert not torch.equal(parameters(straight), parameters(start))


def test_trouble_leaves_the_floats(monkeypatch):
    teacher, tokenizer, texts = make_teacher(), make_tokenizer(), sentences(96)
    student = make_student(teacher, "int3")
    before = parameters(student)
    monkeypatch.setattr(sys.modules["fewfold.distill.trainer"], "finite", lambda losses: False)
    with pytest.raises(DistillError):
        distil(teacher, student, texts, config=config(), tokenizer=tokenizer)
    assert torch.equal(parameters(student), before)
