"""Record how dense weights are assembled: the operations that run, as data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewfold.checkpoint.densify import densify
from fewfold.errors import ModelError
from fewfold.export.alone import VERSION
from fewfold.stored.kept import Kept

CONSTANT = "fewfold_constant_"
_PLACED = ("device", "layout", "pin_memory")  # where a value lives is the loader's affair


def record_assembly(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The operations that turn a compressed model's stored tensors into a plain model's, and the stored tensors.

    Integer forms are recorded from their packed codes on, so that those are what is stored. Works for every method, as
    nothing is asked of it but that it densifies.

    :return: the program, ready for JSON (``inputs``, ``steps``, ``outputs``), and tensors by name as they are saved.
    :raises ModelError: if an operation is none of torch's own.
    """
    packed = copy.deepcopy(model).eval()
    for module in packed.modules():
        if isinstance(module, Kept):
            module.pack_()
    stored = {name: tensor.detach() for name, tensor in packed.state_dict().items()}
    held = {**dict(packed.named_buffers()), **dict(packed.named_parameters())}
    recorder = _Recorder({name: held[name].detach() for name in stored if name in held})
    with torch.no_grad(), recorder:
        densify(packed)
    outputs = {}
    for name, tensor in packed.state_dict().items():
        outputs[name] = recorder.place_of(tensor.detach())
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in stored.items():
        if tensor.numel():
            names.setdefault(_key(tensor), name)
    once = {*names.values(), *(name for name, tensor in stored.items() if not tensor.numel())}
    stored = {name: tensor for name, tensor in stored.items() if name in once} | recorder.constants
    program = {"version": VERSION, "inputs": recorder.inputs, "steps": recorder.steps, "outputs": outputs}
    return program, stored


class _Recorder(TorchDispatchMode):
    """Writes every operation down; values are numbered, inputs first."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inputs: list[list[str]] = []
        self.steps: list[list[Any]] = []
        self.constants: dict[str, Tensor] = {}
        self._places: dict[tuple[Any, ...], int] = {}
        self._alive: list[Tensor] = []  # so that no address is used twice
        self._number = 0
        for name, tensor in held.items():
            if tensor.numel() and _key(tensor) not in self._places:
                self._places[_key(tensor)] = self._input(name, tensor)

    def place_of(self, tensor: Tensor) -> int:
        """The number of a value; one that nothing here made becomes an input."""
        place = self._places.get(_key(tensor))
        if place is None:
            name = f"{CONSTANT}{len(self.constants)}"
            self.constants[name] = tensor.clone().contiguous()
            place = self._places[_key(tensor)] = self._input(name, tensor)
        return place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = [self._written(one) for one in args]
        keywords = {key: self._written(one) for key, one in kwargs.items() if key not in _PLACED}
        result = func(*args, **kwargs)
        made = list(result) if isinstance(result, (tuple, list)) else [result]
        if not all(isinstance(one, Tensor) and not one.is_meta for one in made):
            return result
        if func.namespace != "aten":
            raise ModelError(f"{func} is no operation of torch's own: this model has no stand-alone form")
        places = []
        for one in made:
            self._alive.append(one)
            places.append(self._next())
            if one.numel():
                self._places[_key(one)] = places[-1]
        self.steps.append([f"{func._opname}.{func._overloadname}", arguments, keywords, places])
        return result

    def _written(self, argument: Any) -> Any:
        """An argument as JSON."""
        if isinstance(argument, Tensor):
            if argument.is_meta:
                return None
            if not argument.numel():
                return {"empty": [list(argument.shape), _dtype_name(argument.dtype)]}
            self._alive.append(argument)
            return {"t": self.place_of(argument.detach())}
        if isinstance(argument, (list, tuple)):
            return [self._written(one) for one in argument]
        if isinstance(argument, (torch.dtype, torch.memory_format)):
            return {"torch": str(argument).removeprefix("torch.")}
        return argument

    def _input(self, name: str, tensor: Tensor) -> int:
        self.inputs.append([name, _dtype_name(tensor.dtype)])
        self._alive.append(tensor)
        return -len(self.inputs)  # below zero, as some turn up late

    def _next(self) -> int:
        self._number += 1
        return self._number


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
