import numpy as np
import pytest
import torch

from fewfold import TaskError
from fewfold.lm.judge import _stretches
from fewfold.lm.streams import Streams


@pytest.mark.parametrize(("tokens", "batch", "length"), [(50, 3, 4), (13, 3, 4), (13, 4, 1), (100, 1, 7), (7, 6, 5)])
def test_windows_against_a_loop(tokens, batch, length):
    ids = np.arange(100, 100 + tokens)
    streams = Streams(ids, batch, length)
    each = (tokens - 1) // batch
    expected = [[] for _ in range(batch)]
    for row in range(batch):
        for place in range(each):
            expected[row].append((100 + row * each + place, 100 + row * each + place + 1))
    found = [[] for _ in range(batch)]
    for step in range(len(streams)):
        inputs, labels, fresh = streams.window(step)
        assert fresh == (step == 0)
        assert inputs.shape == labels.shape
        assert inputs.shape[1] <= length
        for row in range(batch):
            found[row] += list(zip(inputs[row].tolist(), labels[row].tolist(), strict=True))
    assert found == expected
    assert streams.tokens == batch * each


def test_the_next_epoch_starts_afresh():
    streams = Streams(np.arange(50), 3, 4)
    for step in range(len(streams)):
        first, again = streams.window(step), streams.window(step + 2 * len(streams))
        assert torch.equal(first.inputs, again.inputs)
        assert first.fresh == again.fresh


def test_a_text_that_is_too_short():
    with pytest.raises(TaskError, match="valid has 4 tokens, too few for 5 streams"):
        Streams(np.arange(4), 5, 3, "valid")


@pytest.mark.parametrize("streams", [1, 3, 10, 40])
def test_stretches_foretell_every_token_once(streams):
    ids = np.arange(20, 43)
    inputs, labels = _stretches(ids, 7, streams)
    seen = {
        int(label): int(token) for token, label in zip(inputs.flatten(), labels.flatten(), strict=True) if label >= 0
    }
    assert seen == {20: 7} | {token: token - 1 for token in range(21, 43)}
    assert int((labels >= 0).sum()) == len(ids)
    widths = (labels >= 0).sum(1)
    assert int(widths.max() - widths.min()) <= 1
