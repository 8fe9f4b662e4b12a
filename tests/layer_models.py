"""Tiny models of several layers, and what tests of shared layers ask of them."""

import tiny_models as models
import torch
from tiny_models import VOCAB, make

from fewfold.checkpoint.config import structure_of
from fewfold.surgery.layouts import FusedLinear
from fewfold.surgery.targets import find_targets, read_weight, split_fused

PLAIN = {"weighting": "none", "delta_rank": 0}


def deep(name="bert", layers=6, seed=0):
    """A tiny model of several layers, all numbers random."""
    small = dict(models._SMALL)
    try:
        models._SMALL["num_hidden_layers"] = layers
        return make(name, seed)
    finally:
        models._SMALL.clear()
        models._SMALL.update(small)


def weights_of(model):
    return {
        target.name: read_weight(model, target).double().numpy()
        for whole in find_targets(model)
        if whole.kind == "linear" and not whole.head
        for target in split_fused(model, whole)
    }


def modules_of(model):
    for record in structure_of(model).targets:
        module = model.get_submodule(record.module)
        yield record, module.parts[record.part] if isinstance(module, FusedLinear) else module


def texts(count=6):
    generator = torch.Generator().manual_seed(5)
    return [{"input_ids": torch.randint(3, VOCAB, (4, 12), generator=generator)} for _ in range(count)]
