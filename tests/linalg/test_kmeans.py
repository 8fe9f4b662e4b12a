from itertools import pairwise

import numpy as np
import pytest
import torch

from fewfold.linalg import kmeans as module
from fewfold.linalg.kmeans import kmeans, nearest


def points_of(count, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, width))).float()


def clustered(count, width, clusters, seed=0):
    generator = np.random.default_rng(seed)
    middles = 4 * generator.standard_normal((clusters, width))
    return torch.from_numpy(middles[generator.integers(clusters, size=count)]).float() + points_of(count, width, 1)


def distances(points, words):
    return ((points.double().numpy()[:, None] - words.double().numpy()[None]) ** 2).sum(2)


def distortion(points, words, weights=None):
    weights = np.ones(len(points)) if weights is None else weights.double().numpy()
    return float(weights @ distances(points, words).min(1))


@pytest.mark.parametrize(("count", "width", "words"), [(1, 1, 1), (50, 3, 7), (301, 8, 64), (20, 2, 300)])
def test_nearest_is_the_closest_word(count, width, words, monkeypatch):
    monkeypatch.setattr(module, "CROSS_ENTRIES", 5 * words)  # several blocks of points, the last one short
    points, pool = points_of(count, width), points_of(words, width, seed=1)
    expected = [
        min(range(words), key=lambda place: float(((point - pool[place]).double() ** 2).sum())) for point in points
    ]
    assert nearest(points, pool).tolist() == expected


def test_of_equal_words_the_first_is_taken():
    pool = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert nearest(torch.ones(3, 2), pool).tolist() == [1, 1, 1]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("words", [2, 9, 60])
def test_iterations_never_end_above_their_start(words, weighted, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_PER_WORD", 1000)  # a sample's error may fall while that of all points rises
    points = clustered(700, 3, 12)
    weights = torch.from_numpy(np.random.default_rng(3).pareto(1.5, 700)).float() if weighted else None
    errors = [distortion(points, kmeans(points, words, weights, count), weights) for count in (0, 1, 2, 5, 20)]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_centres_are_the_weighted_means_of_their_points():
    points, weights = points_of(400, 2), torch.from_numpy(np.random.default_rng(3).random(400)).float()
    centres = kmeans(points, 6, weights, iterations=300)
    owner = distances(points, centres).argmin(1)
    for place in range(6):
        mine = owner == place
        mean = np.average(points.double().numpy()[mine], axis=0, weights=weights.double().numpy()[mine])
        np.testing.assert_allclose(centres[place].numpy(), mean, atol=0.02)  # it stops a little before it stands


def test_one_centre_is_the_weighted_mean():
    points, weights = points_of(120, 3), torch.arange(120.0)
    expected = np.average(points.double().numpy(), axis=0, weights=weights.numpy())
    np.testing.assert_allclose(kmeans(points, 1, weights)[0].numpy(), expected, atol=1e-5)


def test_points_of_weight_zero_have_no_say():
    points, weights = points_of(150, 2), torch.ones(150)
    points[100:], weights[100:] = points[100:] * 50, 0
    centres = kmeans(points, 5, weights, iterations=50)
    assert distortion(points[:100], centres) < 1.1 * distortion(points[:100], kmeans(points[:100], 5, iterations=50))
    assert float(centres.abs().max()) <= float(points[:100].abs().max())


def test_integer_weights_are_repeated_points():
    points, weights = points_of(90, 2), torch.from_numpy(np.random.default_rng(3).integers(1, 6, 90)).float()
    points[:30, 0] += 20
    points[30:60, 1] += 30
    repeated = points.repeat_interleave(weights.long(), dim=0)
    once, again = kmeans(points, 3, weights, iterations=100), kmeans(repeated, 3, iterations=100)
    assert distortion(points, once, weights) == pytest.approx(distortion(repeated, once), rel=1e-9)
    order, other = once[:, 0].argsort(), again[:, 0].argsort()
    torch.testing.assert_close(once[order], again[other], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("words", [5, 6, 40])
def test_distinct_points_are_all_found(words):
    distinct = points_of(5, 3)
    distinct[0] = 0.0
    points = distinct.repeat(30, 1)
    weights = torch.arange(1.0, 151.0)
    for given in (None, weights):
        centres = kmeans(points, words, given)
        assert centres.shape == (words, 3)
        assert distortion(points, centres) < 1e-9
    assert torch.equal(kmeans(torch.ones(4, 2), words), torch.ones(words, 2))


def test_nothing_weighs_anything():
    points = points_of(30, 2)
    centres = kmeans(points, 4, torch.zeros(30))
    assert distortion(centres, points) < 1e-9  # some of the points


def test_equal_seeds_give_equal_centres_and_the_global_generator_rests():
    points = points_of(2000, 4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = kmeans(points, 8, seed=1)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert torch.equal(kmeans(points, 8, seed=1), first)
    assert not torch.equal(kmeans(points, 8, seed=2), first)
    assert torch.equal(points, points_of(2000, 4))


@pytest.mark.parametrize(("data", "slack"), [("normal", 1.03), ("clustered", 1.25), ("heavy tails", 1.2)])
@pytest.mark.parametrize(("width", "words"), [(2, 16), (4, 64), (8, 128)])
def test_about_as_good_as_scikit_learn(data, slack, width, words):
    """Weights are near normal; elsewhere its start, which tries several points at each of many steps, is better."""
    cluster = pytest.importorskip("sklearn.cluster")
    points = {
        "normal": lambda: points_of(4000, width),
        "clustered": lambda: clustered(4000, width, words),
        "heavy tails": lambda: points_of(4000, width) * points_of(4000, 1, 5).exp(),
    }[data]()
    found = cluster.KMeans(words, n_init=1, random_state=0, tol=1e-4, max_iter=20).fit(points.numpy())
    theirs = distortion(points, torch.from_numpy(found.cluster_centers_))
    assert distortion(points, kmeans(points, words)) <= slack * theirs


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sample_is_enough_of_many_points(weighted, monkeypatch):
    points = points_of(30000, 2)
    weights = 1 / torch.arange(1.0, 30001.0) if weighted else None  # as Zipf has words
    sampled = kmeans(points, 16, weights)
    monkeypatch.setattr(module, "SAMPLE_PER_WORD", 10**9)
    everything = kmeans(points, 16, weights)
    assert not torch.equal(sampled, everything)
    assert distortion(points, sampled, weights) < 1.06 * distortion(points, everything, weights)


def test_masses_of_a_sample_stand_for_all_points():
    points, weights = points_of(500, 2), torch.from_numpy(np.random.default_rng(3).pareto(1.2, 500)).float()
    weights[:20] = 0.0
    sums = []
    for seed in range(400):
        chosen, mass = module.priority_sample(weights, 60, torch.Generator().manual_seed(seed))
        assert len(set(chosen.tolist())) == len(mass) == 60
        sums.append([float(mass.sum()), *(mass @ points[chosen]).tolist()])
    expected = [float(weights.sum()), *(weights @ points).tolist()]
    spread = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert bool((abs(np.mean(sums, axis=0) - expected) < 4 * spread).all())


def test_wrong_values_are_named():
    for points, words in ((torch.ones(3), 2), (torch.ones(0, 2), 2), (torch.ones(3, 0), 2), (torch.ones(3, 2), 0)):
        with pytest.raises(ValueError, match=r"expected \(count, width\)"):
            kmeans(points, words)
    with pytest.raises(ValueError, match=r"weights \(2,\): there are 3 points"):
        kmeans(torch.ones(3, 2), 2, torch.ones(2))
    for points, weights in (
        (torch.full((3, 2), float("nan")), torch.ones(3)),
        (torch.ones(3, 2), torch.tensor([1.0, -1.0, 1.0])),
        (torch.ones(3, 2), torch.full((3,), float("inf"))),
    ):
        with pytest.raises(ValueError, match="finite"):
            kmeans(points, 2, weights)


def test_points_drawn_with_the_same_seed_are_sampled_fairly():
    points = torch.randn(70_000, 1, generator=torch.Generator().manual_seed(0))
    words = kmeans(points, 256, iterations=5)
    assert float((points - words[nearest(points, words)]).square().mean()) < 2e-4
