"""Load a checkpoint that fewfold wrote for those who do not have fewfold.

This file stands in the checkpoint's folder and needs torch, transformers and safetensors only. ``assembly.json`` says
which operations turn the stored tensors into dense weights; they run once, while loading, and the model that results is
a plain one: small on disk, and in memory as large as before compression.

    AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers.utils import cached_file

VERSION = 1
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_OURS = ("trust_remote_code", "adapter_kwargs", "code_revision")


def assemble(program: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the recorded operations.

    :param program: of ``assembly.json``.
    :param tensors: the stored tensors by name.
    :return: dense tensors by name.
    """
    if program["version"] != VERSION:
        raise ValueError(
            f"assembly.json has version {program['version']}, this file reads {VERSION}: copy both together"
        )
    values: dict[int, torch.Tensor] = {}
    for number, (name, dtype) in enumerate(program["inputs"]):
        values[-1 - number] = tensors[name].to(getattr(torch, dtype))
    last = _last_uses(program)

    def read(argument: Any) -> Any:
        if isinstance(argument, dict):
            ((kind, value),) = argument.items()
            if kind == "t":
                return values[value]
            if kind == "empty":
                return torch.empty(value[0], dtype=getattr(torch, value[1]))
            return getattr(torch, value)
        return [read(one) for one in argument] if isinstance(argument, list) else argument

    with torch.no_grad():
        for step, (operation, arguments, keywords, outputs) in enumerate(program["steps"]):
            packet, overload = operation.split(".")
            function = getattr(getattr(torch.ops.aten, packet), overload)
            result = function(*(read(one) for one in arguments), **{key: read(one) for key, one in keywords.items()})
            for place, value in zip(outputs, result if isinstance(result, (tuple, list)) else (result,), strict=True):
                values[place] = value
            for place in last.get(step, ()):
                values.pop(place, None)
    return {name: values[place].contiguous() for name, place in program["outputs"].items()}


def _last_uses(program: dict[str, Any]) -> dict[int, list[int]]:
    """By step: the values that nothing reads afterwards."""
    last: dict[int, int] = {}

    def note(argument: Any, step: int) -> None:
        if isinstance(argument, dict) and "t" in argument:
            last[argument["t"]] = step
        elif isinstance(argument, list):
            for one in argument:
                note(one, step)

    for step, (_, arguments, keywords, outputs) in enumerate(program["steps"]):
        note([*arguments, *keywords.values()], step)
        last.update({place: step for place in outputs})
    free: dict[int, list[int]] = {}
    kept = set(program["outputs"].values())
    for place, step in last.items():
        if place not in kept:
            free.setdefault(step, []).append(place)
    return free


class _Standalone:
    """Answers to an Auto class: gives the plain model, with its weights assembled."""

    auto = ""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to do: what is loaded is a plain model, which saves as one."""

    @classmethod
    def from_pretrained(cls, folder: str, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """The plain model."""
        hub = {key: kwargs.pop(key) for key in _HUB if key in kwargs}
        for key in [*_OURS, *(key for key in kwargs if key.startswith("_"))]:
            kwargs.pop(key, None)
        with open(str(cached_file(folder, "assembly.json", **hub)), encoding="utf-8") as handle:
            program = json.load(handle)
        tensors = load_file(str(cached_file(folder, "model.safetensors", **hub)))
        for key in ("auto_map", "fewfold_standalone"):
            config.__dict__.pop(key, None)
        classes = getattr(transformers, cls.auto)._model_mapping[type(config)]
        classes = classes if isinstance(classes, (tuple, list)) else (classes,)
        chosen = next((one for one in classes if one.__name__ in (config.architectures or [])), classes[0])
        model = chosen.from_pretrained(None, config=config, state_dict=assemble(program, tensors), **kwargs)
        if getattr(model, "generation_config", None) is not None:  # how it ends, beams: a file of its own
            with contextlib.suppress(OSError):
                model.generation_config = transformers.GenerationConfig.from_pretrained(folder, **hub)
        return model


for _name in dir(transformers):
    if _name.startswith("AutoModel"):
        globals()[f"Standalone{_name}"] = type(f"Standalone{_name}", (_Standalone,), {"auto": _name})
