"""Heads are matched by what they compute, permuted and turned without a change of it."""

from itertools import permutations, product

import pytest
import torch
from tiny_models import make, outputs

from fewfold.linalg.heads import Heads, match_heads, rotate_heads, rows_of_heads

SIZE, VALUE, INPUTS, OUTPUTS = 3, 2, 5, 6


def _heads(heads, kv_heads, seed=0):
    torch.manual_seed(seed)
    return Heads(
        torch.randn(heads * SIZE, INPUTS).double(), torch.randn(kv_heads * SIZE, INPUTS).double(),
        torch.randn(kv_heads * VALUE, INPUTS).double(), torch.randn(OUTPUTS, heads * VALUE).double(), heads, kv_heads,
    )  # fmt: skip


def _maps(heads):
    """``Q^T K`` and ``O V`` of every query head, in a loop."""
    found = []
    for head in range(heads.heads):
        group = head // (heads.heads // heads.kv_heads)
        query = heads.query[head * SIZE : (head + 1) * SIZE]
        key = heads.key[group * SIZE : (group + 1) * SIZE]
        value = heads.value[group * VALUE : (group + 1) * VALUE]
        output = heads.output[:, head * VALUE : (head + 1) * VALUE]
        found.append((query.T @ key, output @ value))
    return found


def _orders(heads, kv_heads):
    """All orders that keep groups together."""
    size = heads // kv_heads
    for groups in permutations(range(kv_heads)):
        for inner in product(permutations(range(size)), repeat=kv_heads):
            yield [group * size + head for group, heads_ in zip(groups, inner, strict=True) for head in heads_]


def _turned(heads, seed=9):
    """Every head in a frame of its own: the same products, other numbers."""
    torch.manual_seed(seed)
    query, key, value, output = (part.clone() for part in heads.split())
    for group in range(heads.kv_heads):
        turn, other = (torch.linalg.qr(torch.randn(n, n).double())[0] for n in (SIZE, VALUE))
        key[group], value[group] = turn @ key[group], other @ value[group]
        for head in range(group * heads.per_group, (group + 1) * heads.per_group):
            query[head], output[head] = turn @ query[head], other @ output[head]
    return heads._joined(query, key, value, output)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_permuted_heads_compute_the_same_in_another_order(kv_heads):
    heads = _heads(4, kv_heads)
    for order in list(_orders(4, kv_heads))[::5]:
        for got, head in zip(_maps(heads.permuted(torch.tensor(order))), order, strict=True):
            for one, wanted in zip(got, _maps(heads)[head], strict=True):
                torch.testing.assert_close(one, wanted)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("with_metric", [False, True])
def test_products_are_matched_best_of_all_orders(kv_heads, with_metric):
    first, second = _heads(4, kv_heads), _heads(4, kv_heads, seed=1)
    rows = torch.randn(30, INPUTS).double()
    metric = rows.T @ rows if with_metric else None
    root = torch.linalg.cholesky(metric) if with_metric else torch.eye(INPUTS).double()
    kinds = [
        [[root.T @ looks @ root, brings @ root] for looks, brings in _maps(heads)] for heads in (first, second)
    ]  # fmt: skip
    norms = [[sum(float(head[kind].square().sum()) for head in maps) ** 0.5 for kind in (0, 1)] for maps in kinds]

    def score(order):
        return sum(
            float((kinds[0][i][kind] * kinds[1][p][kind]).sum()) / norms[0][kind] / norms[1][kind]
            for i, p in enumerate(order)
            for kind in (0, 1)
        )

    found = match_heads(first, second, metric)
    assert score(found.tolist()) == pytest.approx(max(map(score, _orders(4, kv_heads))), rel=1e-9)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_rows_are_matched_closest_of_all_orders(kv_heads):
    first, second = _heads(4, kv_heads), _heads(4, kv_heads, seed=1)

    def distance(order):
        other = second.permuted(torch.as_tensor(order))
        return sum(
            float((getattr(first, part) - getattr(other, part)).square().sum())
            for part in ("query", "key", "value", "output")
        )

    found = match_heads(first, second, scores="rows")
    assert distance(found) == pytest.approx(min(map(distance, _orders(4, kv_heads))), rel=1e-9)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_shuffled_and_turned_heads_come_back(kv_heads):
    heads = _heads(4, kv_heads)
    order = torch.tensor([2, 3, 1, 0])
    other = _turned(heads.permuted(order))
    found = rotate_heads(heads, other.permuted(match_heads(heads, other)))
    for part in ("query", "key", "value", "output"):
        torch.testing.assert_close(getattr(found, part), getattr(heads, part))


@pytest.mark.parametrize("query_key", [False, True])
def test_a_rotation_keeps_products_and_brings_numbers_closest(query_key):
    first, second = _heads(4, 2), _heads(4, 2, seed=1)
    turned = rotate_heads(first, second, query_key)
    for got, wanted in zip(_maps(turned), _maps(second), strict=True):
        torch.testing.assert_close(got[0], wanted[0])
        torch.testing.assert_close(got[1], wanted[1])

    def distance(other):
        return sum(
            float((getattr(first, part) - getattr(other, part)).square().sum())
            for part in ("query", "key", "value", "output")
        )

    assert distance(turned) < distance(second)
    if query_key:
        assert all(distance(_turned(turned, seed)) > distance(turned) for seed in range(20))
    else:
        torch.testing.assert_close(turned.query, second.query, rtol=0, atol=0)
        torch.testing.assert_close(turned.key, second.key, rtol=0, atol=0)


def _with_bias(linear):
    weight = linear.weight.detach()
    return weight if linear.bias is None else torch.cat([weight, linear.bias.detach()[:, None]], 1)


@torch.no_grad()
def _take(linear, rows):
    linear.weight.copy_(rows[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.copy_(rows[:, -1])


@pytest.mark.parametrize("turn", [False, True])
def test_matched_and_turned_heads_leave_bert_as_it_is(turn):
    model = make("bert")
    before = outputs(model, "bert")
    found = []
    for layer in model.encoder.layer:
        own = layer.attention.self
        parts = [_with_bias(linear) for linear in (own.query, own.key, own.value)]
        found.append(Heads(*parts, layer.attention.output.dense.weight.detach(), 4))
    order = match_heads(*found)
    assert order.tolist() != [0, 1, 2, 3]
    turned = found[1].permuted(order)
    if turn:
        turned = rotate_heads(found[0], turned)
    layer = model.encoder.layer[1].attention
    for linear, rows in zip((layer.self.query, layer.self.key, layer.self.value), turned.split(), strict=False):
        _take(linear, rows.flatten(0, 1))
    with torch.no_grad():
        layer.output.dense.weight.copy_(turned.output)
    assert float((found[1].query - turned.query).abs().max()) > 0.1
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=0, atol=1e-5 if turn else 1e-6)


@pytest.mark.parametrize("query_key", [False, True])
def test_grouped_heads_under_rotary_positions_may_be_permuted_but_only_values_turned(query_key):
    model = make("llama")
    before = outputs(model, "llama")
    found = []
    for layer in model.layers:
        own = layer.self_attn
        parts = [linear.weight.detach() for linear in (own.q_proj, own.k_proj, own.v_proj, own.o_proj)]
        found.append(Heads(*parts, 4, 2))
    turned = rotate_heads(found[0], found[1].permuted(torch.tensor([3, 2, 0, 1])), query_key)
    own = model.layers[1].self_attn
    for linear, rows in zip((own.q_proj, own.k_proj, own.v_proj), turned.split(), strict=False):
        _take(linear, rows.flatten(0, 1))
    with torch.no_grad():
        own.o_proj.weight.copy_(turned.output)
    gap = float((outputs(model, "llama") - before).abs().max())
    assert gap > 1e-3 if query_key else gap < 1e-5


def test_rows_follow_their_heads():
    assert rows_of_heads(torch.tensor([2, 0, 1]), 6).tolist() == [4, 5, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="7 rows"):
        rows_of_heads(torch.tensor([1, 0]), 7)


@pytest.mark.parametrize(
    ("sizes", "counts", "word"),
    [
        ((6, 6, 6, 6), (3, 2), "evenly"),
        ((7, 6, 6, 6), (3, 3), "query: 7 numbers"),
        ((6, 3, 6, 6), (3, 3), r"heads of \[2, 1, 2, 2\]"),
        ((6, 6, 6, 3), (3, 3), r"heads of \[2, 2, 2, 1\]"),
    ],
)
def test_weights_that_do_not_fall_into_heads_are_refused(sizes, counts, word):
    query, key, value = (torch.ones(size, 4) for size in sizes[:3])
    with pytest.raises(ValueError, match=word):
        Heads(query, key, value, torch.ones(4, sizes[3]), *counts)


def test_different_layers_are_refused():
    with pytest.raises(ValueError, match="different heads"):
        match_heads(_heads(4, 2), _heads(4, 4))
