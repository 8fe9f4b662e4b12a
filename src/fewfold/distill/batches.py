"""The order of batches: lengths grouped, the same for every number of processes, endless."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

POOL = 32  # batches whose texts are sorted by length together


class GroupedBatches(Sampler[list[int]]):
    """Parts of batches, for one process.

    Every pass over the texts draws a new order, sorts pools of it by length, cuts them into whole batches and
    shuffles those. A batch is dealt to ``processes · accumulation`` parts: which texts a step sees does not depend
    on how many processes share it. Texts that fill no whole batch wait for the next pass.

    :param lengths: tokens of every text.
    :param batch_size: texts a step.
    :param steps: how many steps to give.
    :param accumulation: parts of a process's batch.
    :param rank: this process.
    :param processes: how many there are.
    """

    def __init__(
        self,
        lengths: NDArray,
        batch_size: int,
        steps: int,
        seed: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.steps, self.seed = lengths, batch_size, steps, seed
        self.accumulation, self.rank, self.processes = accumulation, rank, processes

    def __len__(self) -> int:
        return self.steps * self.accumulation

    @property
    def steps_a_pass(self) -> int:
        """Whole batches in one pass over the texts."""
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        done, number = 0, 0
        while done < self.steps:
            for batch in self.one_pass(number):
                own = batch[self.rank :: self.processes]
                for part in np.array_split(own, self.accumulation):
                    yield part.tolist()
                done += 1
                if done == self.steps:
                    return
            number += 1

    def one_pass(self, number: int) -> NDArray:
        """The batches of one pass, ``(batches, batch_size)``, each sorted by length."""
        random = np.random.default_rng((self.seed, number))
        order = random.permutation(len(self.lengths))
        pool = POOL * self.batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        # texts left over at the end are random ones: the last pool drops before it sorts
        kept = [texts[: len(texts) - len(texts) % self.batch_size] for texts in pools]
        ordered = np.concatenate([texts[np.argsort(self.lengths[texts], kind="stable")] for texts in kept])
        return random.permutation(ordered.reshape(-1, self.batch_size))
