"""Losses in chunks against naive ones in float64: values, gradients, memory."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewfold.linalg.chunked_softmax import called_softmax_loss, coded_softmax_loss, dense_softmax_loss
from fewfold.linalg.gather_sum import GatherSum
from fewfold.models import SlimSoftmax

TOKENS, ROWS, COLUMNS, SCALE = 150, 40, 12, 0.37


def naive(states, table, bias, labels):
    """Token by token, in numpy: loss and gradients of states, table and bias."""
    states, table, bias = (t.detach().numpy() for t in (states, table, bias))
    loss, ds, dt, db = 0.0, np.zeros_like(states), np.zeros_like(table), np.zeros_like(bias)
    for token, label in enumerate(labels.tolist()):
        logits = table @ states[token] + bias
        logits -= logits.max()
        shares = np.exp(logits) / np.exp(logits).sum()
        loss -= np.log(shares[label]) * SCALE
        shares[label] -= 1
        shares *= SCALE
        ds[token] = shares @ table
        dt += np.outer(shares, states[token])
        db += shares
    return loss, ds, dt, db


@pytest.fixture
def case():
    head = SlimSoftmax(COLUMNS, ROWS, {"positions": 3, "words": 7}, std=0.5).double()
    nn.init.normal_(head.bias)
    states = torch.randn(TOKENS, COLUMNS, dtype=torch.float64, requires_grad=True)
    return head, states, torch.randint(ROWS, (TOKENS,))


def coded(head, states, labels, chunk):
    return coded_softmax_loss(
        states, head.matrix.book(0), head.bias, labels, head.matrix.plan(), head.codes.positions, chunk, SCALE
    )


def rebuilt(head, states, labels, chunk):
    return dense_softmax_loss(states, head.matrix(), head.bias, labels, chunk, SCALE)


def called(head, states, labels, chunk):
    return called_softmax_loss(states, head, labels, chunk, SCALE)


@pytest.mark.parametrize("chunk", [1, 64, 149, 1000])
@pytest.mark.parametrize("compute", [coded, rebuilt, called])
def test_values_and_gradients_are_exact(case, compute, chunk):
    head, states, labels = case
    loss, ds, dt, db = naive(states, head.matrix(), head.bias, labels)
    found = compute(head, states, labels, chunk)
    np.testing.assert_allclose(float(found.detach()), loss, rtol=1e-12)
    (found * 2.0).backward()
    np.testing.assert_allclose(states.grad.numpy(), 2 * ds, atol=1e-10)
    np.testing.assert_allclose(head.bias.grad.numpy(), 2 * db, atol=1e-10)
    book, codes = np.zeros((3, 7, 4)), head.matrix.codes(0)
    for row in range(ROWS):
        for position in range(3):
            book[position, codes[row, position]] += 2 * dt[row, 4 * position : 4 * position + 4]
    np.testing.assert_allclose(head.coded.codebooks["0"].weight.grad.numpy().reshape(3, 7, 4), book, atol=1e-10)


@pytest.mark.parametrize("compute", [coded, rebuilt])
def test_logits_far_apart_stay_finite(case, compute):
    """The label can be thousands of nats less likely than another word."""
    head, states, labels = case
    big = (states.detach() * 3000).float().requires_grad_()
    head.float()
    found = compute(head, big, labels, 64)
    logits = F.linear(big.detach().double(), head.matrix().double(), head.bias.double())
    wanted = F.cross_entropy(logits, labels, reduction="sum") * SCALE
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-3)
    found.backward()
    assert big.grad.isfinite().all()


@pytest.mark.parametrize("compute", [coded, rebuilt])
def test_runs_are_equal_bit_by_bit(case, compute):
    head, states, labels = case
    runs = []
    for _ in range(2):
        states.grad = None
        head.zero_grad()
        loss = compute(head, states, labels, 64)
        loss.backward()
        runs.append([loss.detach(), states.grad, *[p.grad for p in head.parameters()]])
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.parametrize("compute", [coded, rebuilt])
def test_without_gradients_only_the_value_is_computed(case, compute):
    head, states, labels = case
    with torch.no_grad():
        assert float(compute(head, states, labels, 7)) == pytest.approx(
            float(compute(head, states, labels, 1000)), rel=1e-12
        )
    made, zeros = [], torch.zeros_like
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "zeros_like", lambda *args, **kwargs: made.append(args[0].shape) or zeros(*args, **kwargs))
        compute(head, states, labels, 64)
    assert not {(ROWS, COLUMNS), tuple(head.matrix.book(0).shape)} & {tuple(shape) for shape in made}
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    compute(head, states, labels, 64).backward()
    wanted = naive(states, head.matrix(), head.bias, labels)[1]
    np.testing.assert_allclose(states.grad.numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("compute", [coded, rebuilt])
def test_a_second_backward_pass_is_refused(case, compute):
    head, states, labels = case
    loss = compute(head, states, labels, 64)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call the model again"):
        loss.backward()


@pytest.mark.parametrize("compute", [coded, rebuilt])
def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_table(case, compute):
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor))
            return found

    head, states, labels = case
    with Watch():
        compute(head, states, labels, 10).backward()
    assert max(sizes) <= max(TOKENS * (COLUMNS + 1), ROWS * COLUMNS) < TOKENS * ROWS


def test_the_transposed_sum_is_the_transposed_matrix():
    indices = torch.randint(9, (13, 4))
    plan, matrix = GatherSum(indices, 9), np.zeros((13, 9))
    for row, chosen in enumerate(indices.tolist()):
        for index in chosen:
            matrix[row, index] += 1
    values = torch.randn(13, 5, dtype=torch.float64)
    np.testing.assert_allclose(plan.spread(values).numpy(), matrix.T @ values.numpy(), atol=1e-12)
    np.testing.assert_allclose(plan.sum_of(plan.spread(values)).numpy(), matrix @ matrix.T @ values.numpy(), atol=1e-12)


@pytest.mark.parametrize("compute", [coded, rebuilt])
def test_bf16_and_autocast_stay_near(case, compute):
    head, states, labels = case
    wanted = float(compute(head, states, labels, 64).detach())
    head.float()
    plain = states.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = compute(head, plain, labels, 64)
    mixed.backward()
    assert float(mixed.detach()) == pytest.approx(wanted, rel=0.02)
    assert plain.grad.dtype == torch.float32
    head.bfloat16()
    low = states.detach().bfloat16().requires_grad_()
    found = compute(head, low, labels, 64)
    found.backward()
    assert float(found.detach()) == pytest.approx(wanted, rel=0.02)
    assert low.grad.dtype == torch.bfloat16
    assert torch.cosine_similarity(low.grad.float().flatten(), plain.grad.flatten(), dim=0) > 0.99
