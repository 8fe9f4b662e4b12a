"""Chosen rows: values and gradients against torch's own, and plans that follow the codes."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fewfold.linalg.chosen_rows import ChosenRows
from fewfold.stored import codes as coded
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.stages import StageSpec


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_torchs(dtype):
    torch.manual_seed(0)
    numbers = torch.randint(0, 9, (40, 6))  # rows 9 and 10 are chosen by nobody
    table, other = (torch.randn(11, 3).to(dtype).requires_grad_() for _ in range(2))
    other.data.copy_(table.data)
    chosen = ChosenRows(numbers, 11)
    weights = torch.randn(40, 6, 3).to(dtype)
    for _ in range(2):
        found, expected = chosen(table), F.embedding(numbers, other)
        assert torch.equal(found, expected)
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
    near = 0.1 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(table.grad, other.grad, atol=near, rtol=near)
    assert not table.grad[9:].any()


def test_gradients_by_differences_and_of_functions():
    numbers, table = torch.tensor([[0, 2], [2, 2]]), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    chosen = ChosenRows(numbers, 4)
    assert torch.autograd.gradcheck(lambda given: chosen(given) ** 2, (table,))
    by_function = torch.func.grad(lambda given: (chosen(given) ** 3).sum())(table.detach())
    (chosen(table) ** 3).sum().backward()
    torch.testing.assert_close(by_function, table.grad)


@pytest.mark.parametrize("shared", [False, True])
def test_an_assembled_matrix_learns_through_it(shared, monkeypatch):
    """Two stages, one of some rows; against a plain loop, before and after other codes are set."""
    torch.manual_seed(0)
    stages = [StageSpec(width=4, words=5, shared=shared), StageSpec(width=3, words=7, rows=6, shared=shared)]
    matrix = CodedMatrix(9, 10, stages, scales=True)
    matrix.reset_parameters(1.0)
    weights, calls = torch.randn(9, 10), []
    plans = ChosenRows.__call__
    monkeypatch.setattr(ChosenRows, "__call__", lambda self, table: calls.append(1) or plans(self, table))
    for turn in range(2):
        slow = copy.deepcopy(matrix)
        monkeypatch.setattr(coded.CodedMatrix, "_all_words", lambda self, index: self.words(index, self.codes(index)))
        (slow.matrix() * weights).sum().backward()
        monkeypatch.undo()
        monkeypatch.setattr(ChosenRows, "__call__", lambda self, table: calls.append(1) or plans(self, table))
        matrix.zero_grad()
        (matrix.matrix() * weights).sum().backward()
        assert len(calls) == 2 * (turn + 1)
        for (name, found), expected in zip(matrix.named_parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=name)
        assert float(sum(parameter.grad.abs().sum() for parameter in matrix.parameters())) > 1
        changed = [(matrix.codes(index) + 1) % stage.words for index, stage in enumerate(stages)]
        matrix.set_codes_(changed, matrix.order().flip(0))
    with torch.no_grad():
        matrix.matrix()
    assert len(calls) == 4


@pytest.mark.parametrize("learns", [False, True])
def test_a_codebook_is_asked_for_once(learns, monkeypatch):
    """It may have to be decoded, or called."""
    matrix = CodedMatrix(9, 8, [StageSpec(width=4, words=5)])
    matrix.reset_parameters(1.0)
    asked, book = [], CodedMatrix._book
    monkeypatch.setattr(CodedMatrix, "_book", lambda self, index: asked.append(index) or book(self, index))
    with torch.set_grad_enabled(learns):
        matrix.matrix()
    assert asked == [0]


def test_tracing_while_it_learns():
    matrix = CodedMatrix(9, 8, [StageSpec(width=4, words=5)])
    matrix.reset_parameters(1.0)

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = matrix

        def forward(self, states):
            return F.linear(states, self.matrix.matrix())

    states = torch.randn(3, 8)
    traced = torch.jit.trace(Linear(), states)
    torch.testing.assert_close(traced(states), F.linear(states, matrix.matrix()))
    assert not any("_Choose" in node.kind() for node in traced.graph.nodes())
