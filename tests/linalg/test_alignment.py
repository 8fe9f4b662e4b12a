"""The order of neurons: the best of all orders, and one that changes nothing."""

from itertools import permutations

import numpy as np
import pytest
import torch
from tiny_models import make, outputs

from fewfold.linalg.alignment import best_assignment, inner_products, match_neurons


def test_the_assignment_is_the_best_of_all():
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    best = max(sum(float(scores[i, p]) for i, p in enumerate(order)) for order in permutations(range(6)))
    found = best_assignment(scores)
    assert sorted(found.tolist()) == list(range(6))
    assert float(scores.gather(1, found[:, None]).sum()) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(("scores", "word"), [(torch.ones(2, 3), "square"), (torch.full((2, 2), torch.nan), "NaN")])
def test_bad_scores(scores, word):
    with pytest.raises(ValueError, match=word):
        best_assignment(scores)


def test_shuffled_neurons_are_found_again():
    torch.manual_seed(0)
    inner, outer = torch.randn(40, 9), torch.randn(7, 40)
    shuffled = torch.randperm(40)
    order = match_neurons([inner, outer.T], [inner[shuffled], outer[:, shuffled].T])
    torch.testing.assert_close(inner[shuffled][order], inner, rtol=0, atol=0)
    torch.testing.assert_close(outer[:, shuffled][:, order], outer, rtol=0, atol=0)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_order_has_the_smallest_distance_of_all(weighed):
    rng = np.random.default_rng(3)
    pairs = [(rng.normal(size=(6, width)), rng.normal(size=(6, width))) for width in (4, 3)]
    metrics = [(lambda a: a @ a.T)(rng.normal(size=(width, width))) if weighed else np.eye(width) for width in (4, 3)]

    def distance(order):
        gaps = [(a - b[list(order)], m) for (a, b), m in zip(pairs, metrics, strict=True)]
        return sum(float(np.einsum("ni,ij,nj->", gap, metric, gap)) for gap, metric in gaps)

    firsts, seconds = ([torch.from_numpy(pair[side]) for pair in pairs] for side in (0, 1))
    order = match_neurons(firsts, seconds, [torch.from_numpy(m) for m in metrics] if weighed else None)
    assert distance(order.tolist()) == pytest.approx(min(map(distance, permutations(range(6)))), rel=1e-9)


def test_matching_never_raises_what_a_mean_leaves():
    """The squared distance of two layers to their mean, with the second in the matched order."""
    for seed in range(5):
        torch.manual_seed(seed)
        first, second = torch.randn(12, 5).double(), torch.randn(12, 5).double()
        order = match_neurons([first], [second])

        def left(other, first=first):
            mean = (first + other) / 2
            return float((first - mean).square().sum() + (other - mean).square().sum())

        assert left(second[order]) <= left(second)


def test_a_metric_is_the_moment_of_real_inputs():
    """In the metric of the inputs, an inner product of rows is that of the neurons' values."""
    torch.manual_seed(0)
    inputs, first, second = torch.randn(50, 6).double(), torch.randn(4, 6), torch.randn(4, 6)
    values = (inputs @ first.double().T).T @ (inputs @ second.double().T)
    torch.testing.assert_close(inner_products(first, second, inputs.T @ inputs), values)


def test_neurons_in_another_order_leave_bert_as_it_is():
    model, other = make("bert"), make("bert", seed=1)
    before = outputs(model, "bert")
    layer, wanted = model.encoder.layer[0], other.encoder.layer[0]
    inner, outer = layer.intermediate.dense, layer.output.dense
    order = match_neurons(
        [torch.cat([wanted.intermediate.dense.weight, wanted.intermediate.dense.bias[:, None]], 1)],
        [torch.cat([inner.weight, inner.bias[:, None]], 1)],
    )
    assert order.tolist() != list(range(24))
    with torch.no_grad():
        inner.weight.copy_(inner.weight[order].clone())
        inner.bias.copy_(inner.bias[order].clone())
        outer.weight.copy_(outer.weight[:, order].clone())
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("references", "others", "metrics", "word"),
    [
        ([], [], None, "at least one"),
        ([torch.ones(3, 2)], [torch.ones(3, 2)], [], "0 metrics"),
        ([torch.ones(3, 2)], [torch.ones(4, 2)], None, r"matrices 0, \(3, 2\) and \(4, 2\)"),
        ([torch.ones(3, 2), torch.ones(4, 2)], [torch.ones(3, 2), torch.ones(4, 2)], None, "matrices 1"),
        ([torch.ones(3, 2)], [torch.ones(3, 2)], [torch.ones(3, 3)], r"metric \(3, 3\)"),
    ],
)
def test_what_does_not_go_together_is_refused(references, others, metrics, word):
    with pytest.raises(ValueError, match=word):
        match_neurons(references, others, metrics)
