"""Give each matrix of a group a rank so that their errors, summed, are least for a number of parameters."""

from collections.abc import Mapping
from heapq import heapify, heapreplace
from typing import TypeVar

from torch import Tensor

Name = TypeVar("Name")


def allocate_ranks(
    gains: Mapping[Name, Tensor],
    costs: Mapping[Name, int],
    budget: int,
    floor: int = 1,
    multiple: int = 1,
) -> dict[Name, int]:
    """Spend a budget on the directions that remove most error per parameter.

    Greedy on ``gain / cost``, which is the Lagrangian optimum as gains fall within each matrix. The
    gains of different matrices must be in one unit: errors in an output metric taken from gradients,
    or errors divided by output energy.

    :param gains: per matrix, the squared error that each further direction removes, descending, ``(k,)``.
        Its length bounds the rank: cut it where a direction would cost more than the dense matrix.
    :param costs: per matrix, parameters per direction (``in + out``).
    :param budget: parameters in all.
    :param floor: least rank of every matrix, or its bound if that is smaller.
    :param multiple: ranks above the floor grow by so many directions at a time.
    :return: rank per matrix, in the order of ``gains``.
    :raises ValueError: if the floor alone exceeds the budget.
    """
    values = {name: gain.tolist() for name, gain in gains.items()}
    ranks = {name: min(floor, len(gain)) for name, gain in values.items()}
    left = budget - sum(ranks[name] * costs[name] for name in ranks)
    if left < 0:
        raise ValueError(
            f"budget={budget}: rank {floor} for each of {len(ranks)} matrices takes {budget - left}"
        )

    order = list(ranks)

    def next_entry(index: int) -> tuple[float, int]:
        name = order[index]
        step = values[name][ranks[name] : ranks[name] + multiple]
        return (-sum(step) / (len(step) * costs[name]) if step else float("inf"), index)

    heap = [next_entry(index) for index in range(len(order))]
    heapify(heap)
    while heap and heap[0][0] != float("inf"):
        index = heap[0][1]
        name = order[index]
        step = min(multiple, len(values[name]) - ranks[name])
        if step * costs[name] <= left:
            left -= step * costs[name]
            ranks[name] += step
            heapreplace(heap, next_entry(index))
        else:
            heapreplace(heap, (float("inf"), index))
    return ranks
