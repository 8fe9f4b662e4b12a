"""Every loss against a naive computation in numpy and float64."""

import numpy as np
import pytest
import torch

from fewfold.distill import losses

LENGTHS = (5, 2, 7)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask():
    real = torch.zeros(3, 7, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        real[row, :length] = True
    return real


def numpy(tensor):
    return tensor.double().numpy()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mean(lists, reduction):
    """Lists of values by text: of all alike, or of each text's mean."""
    if reduction == "tokens":
        return np.mean([value for values in lists for value in values])
    return np.mean([np.mean(values) for values in lists])


def close(found, expected):
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert expected > 1e-3


@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_hidden_states(reduction):
    student, teacher = rand(3, 7, 4), rand(3, 7, 4, seed=1)
    s, t = numpy(student), numpy(teacher)
    plain = [[((s[b, i] - t[b, i]) ** 2).mean() for i in range(n)] for b, n in enumerate(LENGTHS)]
    close(losses.hidden_mse(student, teacher, mask(), reduction), mean(plain, reduction))
    relative = [
        [((s[b, i] - t[b, i]) ** 2).sum() / (t[b, i] ** 2).sum() for i in range(n)] for b, n in enumerate(LENGTHS)
    ]
    close(losses.hidden_relative(student, teacher, mask(), reduction), mean(relative, reduction))


@pytest.mark.parametrize("loss", [losses.hidden_mse, losses.hidden_relative])
def test_padding_changes_nothing(loss):
    student, teacher = rand(3, 7, 4), rand(3, 7, 4, seed=1)
    before = loss(student, teacher, mask())
    student[~mask()], teacher[~mask()] = 1e9, float("inf")
    assert float(loss(student, teacher, mask())) == float(before)


def test_padding_gives_no_gradient():
    student = rand(3, 7, 4).requires_grad_()
    losses.hidden_mse(student, rand(3, 7, 4, seed=1), mask()).backward()
    assert student.grad is not None
    assert (student.grad[~mask()] == 0).all()
    assert (student.grad[mask()] != 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logits_of_classes(temperature):
    student, teacher = 3 * rand(3, 5), 3 * rand(3, 5, seed=1)
    p, q = softmax(numpy(teacher) / temperature), softmax(numpy(student) / temperature)
    kl = temperature**2 * np.mean([(p[b] * np.log(p[b] / q[b])).sum() for b in range(3)])
    close(losses.logits_kl(student, teacher, temperature), kl)
    close(losses.soft_cross_entropy(student, teacher, temperature), -(p * np.log(q)).mean())


@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_logits_of_tokens(reduction):
    student, teacher = rand(3, 7, 6), rand(3, 7, 6, seed=1)
    p, q = softmax(numpy(teacher) / 2), softmax(numpy(student) / 2)
    kl = [[4 * (p[b, i] * np.log(p[b, i] / q[b, i])).sum() for i in range(n)] for b, n in enumerate(LENGTHS)]
    close(losses.logits_kl(student, teacher, 2.0, mask(), reduction), mean(kl, reduction))


def allowed(causal):
    pairs = mask()[:, None, None, :] & mask()[:, None, :, None]
    return pairs & torch.ones(7, 7).tril().bool() if causal else pairs


def keys(query, length, causal):
    return range(query + 1 if causal else length)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_attention_scores(reduction, causal):
    student, teacher = rand(3, 2, 7, 7), rand(3, 2, 7, 7, seed=1)
    squares = (numpy(student) - numpy(teacher)) ** 2
    lists = [
        [squares[b, h, i, j] for h in range(2) for i in range(n) for j in keys(i, n, causal)]
        for b, n in enumerate(LENGTHS)
    ]
    found = losses.attention_scores_mse(student, teacher, allowed(causal), reduction)
    close(found, mean(lists, reduction))
    counted = losses.attention_scores_mse(student, teacher, allowed(causal), reduction, count_masked=True)
    close(counted, sum(sum(values) for values in lists) / squares.size)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_attention_probabilities(reduction, causal):
    student, teacher = 2 * rand(3, 2, 7, 7), 2 * rand(3, 2, 7, 7, seed=1)
    s, t = numpy(student), numpy(teacher)
    lists = []
    for b, n in enumerate(LENGTHS):
        values = []
        for h in range(2):
            for i in range(n):
                seen = list(keys(i, n, causal))
                p, q = softmax(t[b, h, i, seen]), softmax(s[b, h, i, seen])
                values.append((p * np.log(p / q)).sum())
        lists.append(values)
    close(losses.attention_kl(student, teacher, allowed(causal), reduction), mean(lists, reduction))


def test_gradients_of_masked_attention_are_finite():
    student = rand(3, 2, 7, 7).requires_grad_()
    losses.attention_kl(student, rand(3, 2, 7, 7, seed=1), allowed(True)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[~allowed(True).expand_as(student)] == 0).all()


def test_sentence_vectors():
    student, teacher = rand(3, 7, 4), rand(3, 7, 4, seed=1)
    pooled = [
        [numpy(x)[b, :n].mean(0) for b, n in enumerate(LENGTHS)] for x in (student, teacher)
    ]  # fmt: skip
    np.testing.assert_allclose(losses.mean_pooled(student, mask()).numpy(), pooled[0], rtol=1e-5, atol=1e-6)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*pooled, strict=True)]
    vectors = losses.mean_pooled(student, mask()), losses.mean_pooled(teacher, mask())
    close(losses.sentence_cosine(*vectors), 1 - np.mean(cosines))


def test_similarities_to_anchors():
    student, teacher, anchors = rand(3, 4), rand(3, 4, seed=1), rand(6, 4, seed=2)
    anchors[2] = teacher[1] * 5  # the second text is an anchor itself
    units = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in map(numpy, (student, teacher, anchors))]
    divergences = []
    for row in range(3):
        others = [place for place in range(6) if (row, place) != (1, 2)]
        q, p = (softmax(units[2][others] @ units[side][row] / 0.3) for side in (0, 1))
        divergences.append((p * np.log(p / q)).sum())
    given = torch.nn.functional.normalize(anchors, dim=-1)
    close(losses.anchor_kl(student, teacher, given, 0.3), np.mean(divergences))
    with torch.autocast("cpu", torch.bfloat16):  # cosines differ by less than bfloat16 tells apart
        close(losses.anchor_kl(student, teacher, given, 0.3), np.mean(divergences))
    vector = teacher[1:2].clone().requires_grad_()
    losses.anchor_kl(vector, teacher[1:2], given).backward()
    assert vector.grad is not None
    assert vector.grad.isfinite().all()


def test_labels():
    logits, classes = rand(3, 5), torch.tensor([1.0, 4.0, 0.0])
    p = softmax(numpy(logits))
    close(losses.label_loss(logits, classes), -np.mean([np.log(p[b, int(c)]) for b, c in enumerate(classes)]))
    scores = torch.tensor([0.5, 2.0, -1.0])
    close(losses.label_loss(logits[:, :1], scores), ((numpy(logits[:, 0]) - numpy(scores)) ** 2).mean())


@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_equal_tensors_have_no_loss(reduction):
    states, scores = rand(3, 7, 4), rand(3, 2, 7, 7)
    assert float(losses.hidden_relative(states, states, mask(), reduction)) == 0
    assert float(losses.logits_kl(states, states, 2.0, mask(), reduction)) == pytest.approx(0, abs=1e-6)
    assert float(losses.attention_kl(scores, scores, allowed(False), reduction)) == pytest.approx(0, abs=1e-6)
