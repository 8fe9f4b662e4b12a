"""Time and training memory of ShareBERT-small, against expanding the whole table and copying slices at every layer.

Random weights (neither depends on them), the published layout of 2048 columns for both. ``published order`` is a path
of this file only: at each forward pass it expands the whole vocabulary to all columns, and each layer cuts, copies and
reshapes its weights anew, as the published code does. It is checked to give the same outputs and gradients before it is
timed.

    python benchmarks/sharebert_speed.py [--preset small] [--repeats 15]
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict
from typing import Any

import torch
from common import check, publish_checks
from processes import in_a_process
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.measure.latency import latency
from fewfold.measure.memory import peak_resident_bytes, resident_bytes
from fewfold.measure.parameters import unique_parameters
from fewfold.models import ShareBertConfig, ShareBertModel, materialize
from fewfold.models.sharebert.layers import CarvedMap

KEPT, ANEW, PLAIN, PUBLISHED = "carved once, kept", "carved once a forward", "materialized", "published order"
READ = "reading the kept weights, no more"  # what any order takes at least that does not keep them in fewer bytes
MODES = {"ours": KEPT, "published": PUBLISHED}


class SlicedMap(nn.Module):
    """A carved map that cuts its weight out of the whole expanded table at every call."""

    def __init__(self, owner: PublishedOrder, carved: CarvedMap) -> None:
        super().__init__()
        self._owner, self.slot, self.bias = (owner,), carved._store[0].slots[carved.slot], carved.bias

    def forward(self, states: Tensor) -> Tensor:
        """``x · W + b``; the slice of columns does not lie together, so that reading it row by row copies it."""
        slot, whole = self.slot, self._owner[0].whole
        assert whole is not None
        weight = whole[:, slot.offset : slot.end].reshape(-1)[: slot.numel].view(slot.shape)
        return F.linear(states, weight.t(), self.bias)


class PublishedOrder(nn.Module):
    """A ShareBERT body that expands all rows to all columns at every forward pass."""

    def __init__(self, body: ShareBertModel) -> None:
        super().__init__()
        self.body, self.whole, self.config = body, None, body.config
        for parent in list(body.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, CarvedMap):
                    setattr(parent, name, SlicedMap(self, child))

    def forward(self, **inputs: Any) -> Any:
        """As the body's."""
        self.whole = self.body.store.expansion(self.body.store.table.weight)
        try:
            return self.body(**inputs)
        finally:
            self.whole = None


class Forgetful(nn.Module):
    """A body that carves anew at every forward pass, as in training."""

    def __init__(self, body: ShareBertModel) -> None:
        super().__init__()
        self.body, self.config = body, body.config

    def forward(self, **inputs: Any) -> Any:
        """As the body's."""
        self.body.store.forget()
        return self.body(**inputs)


class Reading(nn.Module):
    """Adds up the carved weights of every layer: no multiplication, no other work."""

    def __init__(self, body: ShareBertModel) -> None:
        super().__init__()
        self.body, self.config = body, body.config
        self.maps = [(map._store[0], map.slot) for map in body.modules() if isinstance(map, CarvedMap)]

    def forward(self, **_: Any) -> Tensor:
        """One number."""
        return torch.stack([store(slot).sum() for store, slot in self.maps]).sum()


def body(preset: str) -> ShareBertModel:
    """A fresh body in the published layout."""
    torch.manual_seed(0)
    return ShareBertModel(
        ShareBertConfig.preset(preset, layout="reference" if preset != "tiny" else "packed",
                               hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )  # fmt: skip


def step(model: nn.Module, config: ShareBertConfig) -> float:
    """One training step's forward and backward pass at 2 × 16 tokens.

    :return: bytes that were saved for the backward pass, each storage once, parameters left out.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, config.vocab_size, (2, 16), generator=generator)
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=ids)
        loss = output.last_hidden_state.pow(2).mean() + output.pooler_output.pow(2).mean()
    loss.backward()
    return float(sum(saved.values()))


def measure_memory(preset: str, mode: str) -> dict[str, float]:
    """In a process of its own: saved bytes, and how much resident memory a step adds at its peak."""
    model: nn.Module = body(preset).train()
    if mode == "published":
        model = PublishedOrder(model)  # type: ignore[arg-type]
    before = resident_bytes()
    saved = step(model, model.config)  # type: ignore[arg-type]
    return {"saved": saved, "peak": float(peak_resident_bytes() - before)}


def differences(preset: str) -> dict[str, float]:
    """Between both orders: the largest difference of outputs, the norm of all gradients' difference; both relative."""
    ours = body(preset).train()
    rival = PublishedOrder(copy.deepcopy(ours))
    step(ours, ours.config), step(rival, ours.config)
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        one, other = ours(input_ids=ids).last_hidden_state, rival(input_ids=ids).last_hidden_state
    theirs = dict(rival.body.named_parameters())
    apart = sum(float((p.grad - theirs[n].grad).pow(2).sum()) for n, p in ours.named_parameters())  # type: ignore
    whole = sum(float(p.grad.pow(2).sum()) for p in theirs.values())  # type: ignore[union-attr]
    return {"outputs": float((one - other).abs().max() / other.abs().max()), "gradients": (apart / whole) ** 0.5}


def main() -> None:
    """Check, time, and measure memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", choices=MODES, help="only measure this, and print it as JSON")
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(measure_memory(given.preset, given.memory)))
        return
    close = differences(given.preset)
    print(f"largest differences between both orders: {close}", flush=True)
    kept = body(given.preset).eval()
    models = {
        KEPT: kept, ANEW: Forgetful(copy.deepcopy(kept)), PLAIN: materialize(kept),
        PUBLISHED: PublishedOrder(copy.deepcopy(kept)), READ: Reading(kept),
    }  # fmt: skip
    ids = {"input_ids": torch.arange(1, 17)[None]}
    timings = latency(models, batch=1, length=16, repeats=given.repeats, inputs=dict.fromkeys(models, ids))
    rows = []
    for name, timing in timings.items():
        row = {"name": name, **asdict(timing), "faster": timing.speedup[PUBLISHED]}
        rows.append(row)
        print(f"{name}: {timing.median:.1f} ms, {row['faster']:.1f}×", flush=True)
    memory = {}
    for mode, name in MODES.items():
        memory[name] = in_a_process(__file__, "--preset", given.preset, "--memory", mode)
        print(f"{name}: {memory[name]['saved'] / 2**20:.0f} MiB saved, peak {memory[name]['peak'] / 2**20:.0f} MiB")
    ratio = {kind: memory[PUBLISHED][kind] / memory[KEPT][kind] for kind in ("saved", "peak")}
    checks = [
        check("eval, 1×16 tokens: times faster than published", timings[KEPT].speedup[PUBLISHED], 10, digits=1),
        check("training, 2×16 tokens: times fewer bytes saved", ratio["saved"], 5, digits=1),
    ]  # fmt: skip
    lines = [
        f"ShareBERT-{given.preset}, {unique_parameters(kept):,} parameters, fp32, one text of 16 tokens, all "
        "contenders in turns. Spread: 10th to 90th percentile.", "",
        "| forward pass | ms | spread | times faster |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {r['name']} | {r['median']:.1f} | {r['low']:.1f}–{r['high']:.1f} | {r['faster']:.1f} |" for r in rows]
    lines += ["", "One training step of 2×16 tokens, each in a process of its own:", ""]
    lines += ["| order | saved for backward | most resident memory that the step adds |", "|---|---|---|"]
    lines += [
        f"| {name} | {found['saved'] / 2**20:.0f} MiB | {found['peak'] / 2**20:.0f} MiB |"
        for name, found in memory.items()
    ]
    lines += [
        "",
        f"Both orders agree: outputs to {close['outputs']:.1e} of the largest number, gradients to "
        f"{close['gradients']:.1e} of their norm.", "",
    ]  # fmt: skip
    extra = {"preset": given.preset, "differences": close, "rows": rows, "memory": memory, "ratios": ratio}
    title = "ShareBERT: time and memory of carving"
    publish_checks("sharebert_speed", title, checks, extra, lines)


if __name__ == "__main__":
    main()
