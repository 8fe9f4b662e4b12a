"""Forward passes of BERT-base's shape with shared factors, end to end against the dense model.

Random weights (speed does not depend on them), fp32 and bf16, eager and compiled, 8 × 128 and 1 × 16 tokens, all models
of a table in turns. ``published order`` multiplies as the paper's code does: x·U anew for q, k and v, cores multiplied
with the right factor at every forward. ``linears for free`` is the same model with linear maps that take no time: what
no compression of them can outrun.

    python benchmarks/shared_factors_speed.py
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from common import RESULTS, TABLES, check, claims, head
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import fewfold
from fewfold.measure.environment import environment
from fewfold.measure.latency import Timing, latency
from fewfold.measure.macs import macs_per_token
from fewfold.methods.slices.modules import SlicedLinear

ASKED = {"III-64": (6.0, 8.0), "III-128": (3.5, 5.0), "III-256": (1.8, 2.5)}
PAPER = {"III-64": 2.7, "III-128": 2.05, "III-256": 1.4}
FREE = "linears for free"
SHAPES = {"8x128": (8, 128, 12), "1x16": (1, 16, 40)}


class PublishedOrder(nn.Module):
    """One weight as the paper's code multiplies it; factors and cores are shared with the module it stands for."""

    def __init__(self, member: SlicedLinear) -> None:
        super().__init__()
        self._member = (member,)

    def forward(self, states: Tensor) -> Tensor:
        """``(x U)(Σ V) + b``; first feed-forward weight ``(x Vᵀ) M``; second ``(h U) · [Σ_h V]``."""
        member = self._member[0]
        reader, writer = (leaf.weight for leaf in member.store.sides(member))  # type: ignore[attr-defined]
        right = member.store.core(member) @ writer  # type: ignore[attr-defined]  # (tiles, rank, width), every time
        if member.cut.tiled == "in":
            read = (states.unflatten(-1, (member.cut.tiles, -1)) @ reader.t()).flatten(-2)
            return read @ right.flatten(0, 1) + member.bias
        read = states @ reader.t()
        return read @ right.transpose(0, 1).flatten(1) + member.bias


class Free(nn.Module):
    """A linear map that takes no time: the same random outputs for every input of a shape."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self._outputs: dict[tuple[int, ...], Tensor] = {}

    def forward(self, states: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        shape = (*states.shape[:-1], self.out_features)
        if shape not in self._outputs:
            self._outputs[shape] = torch.randn(shape)
        return self._outputs[shape]


def replaced(model: nn.Module, by: Callable[[SlicedLinear], nn.Module]) -> nn.Module:
    """A model with something else in the place of each sliced weight."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SlicedLinear):
                setattr(parent, name, by(child))
    return model


def models() -> dict[str, nn.Module]:
    """Dense, every rank in our order and in the published, and the bound."""
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {"dense": BertModel(BertConfig()).eval()}
    for name in ASKED:
        model = fewfold.compress(copy.deepcopy(found["dense"]), name, fit=False)
        found[name] = model
        found[f"{name}, published order"] = replaced(copy.deepcopy(model), PublishedOrder)
    found[FREE] = replaced(copy.deepcopy(found["III-64"]), lambda member: Free(member.out_features))
    return found


def rows(found: dict[str, nn.Module], title: str) -> list[dict[str, Any]]:
    """Time all models, interleaved, at every shape."""
    table: dict[str, dict[str, Any]] = {name: {"name": f"{name}{title}"} for name in found}
    for shape, (batch, length, repeats) in SHAPES.items():
        timings: dict[str, Timing] = latency(found, batch=batch, length=length, repeats=repeats, warmup=3)
        for name, timing in timings.items():
            table[name][shape] = {**asdict(timing), "faster": timing.speedup["dense"]}
            print(f"{name}{title} {shape}: {timing.median:.1f} ms, {timing.speedup['dense']:.2f}×", flush=True)
    return list(table.values())


def main() -> None:
    """Eager fp32, then bf16 against dense fp32, then compiled."""
    found = models()
    macs = {name: macs_per_token(model, batch=8, length=128) for name, model in found.items() if name != FREE}
    table = rows(found, "")
    small = {name: copy.deepcopy(found[name]).bfloat16() for name in ("dense", "III-64")}
    half = rows({"dense": found["dense"], **{f"{name}, bf16": model for name, model in small.items()}}, "")
    table += half[1:]
    if "--no-compile" not in sys.argv:
        compiled: dict[str, nn.Module] = {"dense": found["dense"]}
        for name in ("dense", "III-64"):
            compiled[f"{name}, compiled"] = torch.compile(copy.deepcopy(found[name]))  # type: ignore[assignment]
        table += rows(compiled, "")[1:]
    by_name = {row["name"]: row for row in table}
    checks = []
    for name, limits in ASKED.items():
        for shape, limit in zip(SHAPES, limits, strict=True):
            checks.append(
                check(f"{name} at {shape}: times faster than dense", by_name[name][shape]["faster"], limit, digits=2)
            )
    checks.append(
        check(
            "III-64 in bf16 at 8x128: times faster than dense fp32",
            by_name["III-64, bf16"]["8x128"]["faster"],
            15,
            digits=2,
        )
    )
    counted = {name: asdict(value) for name, value in macs.items()}
    content = {"environment": environment(), "paper": PAPER, "checks": checks, "macs": counted, "rows": table}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "shared_factors_speed.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    lines = head("shared_factors_speed", "Speed of shared factors on BERT-base's shape", content["environment"])
    lines += ["| model | 8×128 ms | times faster | 1×16 ms | times faster |", "|---|---|---|---|---|"]
    for row in table:
        cells = [
            f"{row[s]['median']:.1f} ({row[s]['low']:.1f}–{row[s]['high']:.1f}) | {row[s]['faster']:.2f}"
            for s in SHAPES
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    dense, least = macs["dense"], macs["III-64"]
    lines += [
        "",
        f"Dense, a token costs {dense.weights / 1e6:.1f} M multiply-accumulates in products with weights and "
        f"{dense.attention / 1e6:.1f} M in attention at 128 tokens; with III-64, {least.weights / 1e6:.1f} M and "
        f"{least.attention / 1e6:.1f} M. Attention, GELU, norms and Python's own time are the same in "
        "both: linear maps that took no time at all would make the model "
        f"{by_name[FREE]['8x128']['faster']:.1f} and {by_name[FREE]['1x16']['faster']:.1f} "
        "times faster.",
        "", *claims(checks),
    ]  # fmt: skip
    TABLES.mkdir(parents=True, exist_ok=True)
    (TABLES / "shared_factors_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
