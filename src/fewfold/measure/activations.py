"""Memory of intermediate results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewfold.measure.inputs import dummy_inputs
from fewfold.measure.modes import evaluating


def activation_bytes(
    model: nn.Module, inputs: Mapping[str, Any] | None = None, batch: int = 1, length: int = 128
) -> int:
    """Measure the most memory that the results of operations take at one time during a forward without gradients.

    Weights that are assembled on the way count, as they are results too; a first forward, not counted, lets rebuilt
    weights be made that are kept. Work space inside of one operation is not seen.

    :param model: Any module; its mode is left as it was.
    :param inputs: Keyword arguments of its forward; made by `dummy_inputs` where not given.
    :param batch: Sequences or images in the dummy inputs.
    :param length: Tokens per dummy sequence, clipped to the model's positions.
    :return: Number of bytes.
    """
    inputs = dict(inputs) if inputs is not None else dict(dummy_inputs(model, batch, length))
    held = [*model.parameters(), *model.buffers(), *tree_leaves(inputs)]
    with evaluating(model), torch.no_grad():
        model(**inputs)
        watch = _Watch({one.untyped_storage()._cdata for one in held if isinstance(one, torch.Tensor)})
        with watch:
            model(**inputs)
    return watch.peak


class _Watch(TorchDispatchMode):
    """Follows which storages that operations made are still alive."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.peak = known, 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result
