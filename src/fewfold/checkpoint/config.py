"""The transformers quantization config that carries a structure through config.json."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from fewfold.checkpoint.structure import Structure, parse_structure
from fewfold.surgery.replace import Replaced


class FewfoldConfig(QuantizationConfigMixin):
    """What stands under ``quantization_config`` in the config.json of a compressed model."""

    quant_method: Any = "fewfold"

    def __init__(self, structure: Structure | None = None, **fields: Any) -> None:
        fields.pop("quant_method", None)
        self.quant_method = "fewfold"
        self.structure = structure if structure is not None else parse_structure(fields)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the structure's fields beside ``quant_method``."""
        return {"quant_method": "fewfold", **self.structure.model_dump(mode="json", exclude_defaults=False)}

    def to_diff_dict(self) -> dict[str, Any]:
        """As :meth:`to_dict`."""
        return self.to_dict()


def structure_of(model: nn.Module) -> Structure | None:
    """The structure that a compressed model carries, or None for a dense one, whosever config that has."""
    config = getattr(model, "config", None)
    carried = getattr(config, "quantization_config", None) if config is not None else None
    if carried is None:
        carried = model.__dict__.get("fewfold_structure")
    structure: Structure | None = None
    if isinstance(carried, FewfoldConfig):
        structure = carried.structure
    elif isinstance(carried, dict) and carried.get("quant_method") == "fewfold":
        structure = parse_structure({key: value for key, value in carried.items() if key != "quant_method"})
    if structure is None or not structure.targets:
        return structure
    return structure if any(isinstance(module, Replaced) for module in model.modules()) else None


def carry(model: nn.Module, structure: Structure) -> None:
    """Let a model carry its structure, where saving finds it: in a config of its own, which no other model uses."""
    config = getattr(model, "config", None)
    held = [(module, name) for module in model.modules() for name, value in vars(module).items() if value is config]
    if config is None or not held:
        model.__dict__["fewfold_structure"] = FewfoldConfig(structure)
        return
    own = copy.copy(config)
    own.quantization_config = FewfoldConfig(structure)
    for module, name in held:
        setattr(module, name, own)
