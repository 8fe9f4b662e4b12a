import numpy as np
import pytest

from fewfold.distill.batches import GroupedBatches

LENGTHS = np.random.default_rng(0).integers(3, 120, size=1003)


def whole(**values):
    return list(GroupedBatches(LENGTHS, 12, 200, **values))


def test_each_pass_holds_every_text_once_but_the_last_few():
    sampler = GroupedBatches(LENGTHS, 12, 200)
    first, second = sampler.one_pass(0), sampler.one_pass(1)
    assert first.shape == (83, 12)
    assert len(set(first.flatten())) == 83 * 12
    assert set(first.flatten()) != set(second.flatten())
    assert not np.array_equal(first, second)
    assert sampler.steps_a_pass == 83


def test_passes_follow_each_other():
    sampler, batches = GroupedBatches(LENGTHS, 12, 100), list(GroupedBatches(LENGTHS, 12, 100))
    assert len(batches) == len(sampler) == 100
    expected = np.concatenate([sampler.one_pass(0), sampler.one_pass(1)])[:100]
    assert batches == expected.tolist()


def test_little_is_padded():
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in whole()[:83])
    real = sum(LENGTHS[batch].sum() for batch in whole()[:83])
    random = np.random.default_rng(1).permutation(996).reshape(-1, 12)
    unsorted = sum(12 * LENGTHS[batch].max() for batch in random) / LENGTHS[random].sum()
    assert padded / real < 1.06 < 1.5 < unsorted


def test_the_order_is_random_and_repeats_with_the_seed():
    assert whole() == whole()
    assert whole() != whole(seed=1)
    means = [LENGTHS[batch].mean() for batch in whole()[:83]]
    assert abs(np.corrcoef(means, range(83))[0, 1]) < 0.4


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 3), (2, 3), (4, 1)])
def test_parts_make_up_the_same_batches(processes, accumulation):
    parts = [whole(rank=rank, processes=processes, accumulation=accumulation) for rank in range(processes)]
    for number, batch in enumerate(whole()):
        span = slice(number * accumulation, (number + 1) * accumulation)
        shared = [text for own in parts for part in own[span] for text in part]
        assert sorted(shared) == sorted(batch)
        assert all(len(part) == 12 // processes // accumulation for own in parts for part in own[span])
