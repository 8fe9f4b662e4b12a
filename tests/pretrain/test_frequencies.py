"""The floor of pretraining against counting by hand."""

import math
from collections import Counter

import torch

from fewfold.pretrain.frequencies import frequency_loss
from fewfold.pretrain.masking import IGNORED, Masking
from fewfold.pretrain.run import collate, held_out_loss

MASKING = Masking(mask=3, vocabulary=12, special=(0, 1, 2, 3), share=0.4)


def windows(count, seed):
    drawn = torch.multinomial(
        torch.arange(1.0, 9.0), count * 10, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    rows = drawn.view(count, 10) + 4
    rows[:, 0], rows[:, -1] = 1, 2
    return rows


def test_counts_with_one_more_each_and_no_special_token():
    rows, judged = windows(20, 0), windows(7, 1)
    counted = Counter(int(token) for token in rows.flatten() if token > 3)
    total = sum(counted.values()) + 8  # entries 4 … 11, once more each
    losses = []
    for place, row in enumerate(judged):
        _, labels = MASKING(row, torch.Generator().manual_seed(place))
        losses += [-math.log((counted[int(label)] + 1) / total) for label in labels if label != IGNORED]
    assert math.isclose(frequency_loss(MASKING, rows, judged), sum(losses) / len(losses), rel_tol=1e-12)


class Frequencies(torch.nn.Module):
    """A model that knows nothing else."""

    def __init__(self, rows):
        super().__init__()
        counts = torch.bincount(rows.flatten(), minlength=12) + 1.0
        counts[:4] = 1e-30
        self.logits = torch.nn.Parameter(counts.log())

    def forward(self, input_ids, labels):
        logits = self.logits.expand(*input_ids.shape, -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return type("Output", (), {"loss": loss})


def test_a_model_of_frequencies_alone_scores_that():
    rows, judged = windows(20, 0), windows(50, 1)  # more than a batch of judging
    found = held_out_loss(Frequencies(rows), MASKING, judged)
    assert math.isclose(found, frequency_loss(MASKING, rows, judged), rel_tol=1e-5)
    assert collate([MASKING(judged[0], torch.Generator().manual_seed(0))])["labels"].ne(IGNORED).sum() == 3
