"""Count what a model stores: every shared or tied tensor once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn


class ParameterEntry(NamedTuple):
    """One named parameter: its dotted name, number of elements and size in bytes."""

    name: str
    numel: int
    bytes: int


def unique_parameters(model: nn.Module) -> int:
    """Count the numbers held by the model's parameters; buffers do not count.

    Parameters that share memory, fully (tied) or in part (views of one tensor), are counted once.

    :return: Number of scalar parameters.
    """
    parameters: list[torch.Tensor] = list(model.parameters())
    wrapped = sum(p.numel() for p in parameters if _is_wrapper(p))
    plain = [p for p in parameters if not _is_wrapper(p)]
    return wrapped + sum(_covered_bytes(group) // group[0].element_size() for group in _by_storage(plain))


def stored_bytes(model: nn.Module) -> int:
    """Count the bytes that `model.state_dict()` takes in a safetensors file, without the file's header.

    Entries that share memory are counted once; packed integers count as the bytes they are.

    :return: Number of bytes.
    """
    entries = list(_plain_tensors(model.state_dict().values()))
    return sum(_covered_bytes(group) for group in _by_storage(entries))


def parameter_table(model: nn.Module) -> list[ParameterEntry]:
    """List the parameters in registration order; a tied parameter appears once, under its first name.

    :return: Rows of (name, number of elements, bytes).
    """
    rows = []
    for name, parameter in model.named_parameters():
        size = sum(tensor.numel() * tensor.element_size() for tensor in _plain_tensors([parameter]))
        rows.append(ParameterEntry(name, parameter.numel(), size))
    return rows


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is a wrapper (torchao and others) whose own storage is not what it stores."""
    return hasattr(tensor, "__tensor_flatten__")


def _plain_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Open wrapper tensors and the tuples of packed parameters; leave out what is not a tensor."""
    for value in values:
        if isinstance(value, torch.Tensor) and _is_wrapper(value):
            names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
            yield from _plain_tensors(getattr(value, name) for name in names)
        elif isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _plain_tensors(value)


def _by_storage(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Group tensors that live in the same storage."""
    groups: dict[int, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        # The storage's address in C++ also tells meta tensors apart, whose data pointers are all zero.
        groups[tensor.untyped_storage()._cdata].append(tensor)
    yield from groups.values()


def _covered_bytes(group: list[torch.Tensor]) -> int:
    """Count the bytes of one storage that at least one of the tensors covers.

    Each tensor covers the stretch from its first to its last element, but never more than its own elements
    fill: a column slice spans nearly the whole storage and still holds few numbers.
    """
    distinct = {(t.storage_offset(), tuple(t.shape), t.stride(), t.dtype): t for t in group if t.numel()}
    own = sum(t.numel() * t.element_size() for t in distinct.values())
    covered, end = 0, 0
    for first, last in sorted(_stretch(t) for t in distinct.values()):
        covered += max(0, last - max(first, end))
        end = max(end, last)
    return min(own, covered)


def _stretch(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage and the byte after its last."""
    size = tensor.element_size()
    first = int(tensor.storage_offset()) * size
    extent = 1 + sum((int(n) - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + extent * size
