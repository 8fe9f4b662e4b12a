"""Multiply-accumulates per token, counted on a real forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fewfold.measure.inputs import dummy_inputs, token_count
from fewfold.measure.modes import evaluating

aten = torch.ops.aten


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates per token.

    :param weights: In products with weights: linear maps, factors, convolutions, recurrent cells, the head.
        Work spent on assembling weights counts here too, spread over the tokens of the batch.
    :param attention: In products of activations with activations: scores and context, at this length. Masked
        positions count, as a dense kernel computes them.
    :param tokens: The tokens that the forward worked on.
    """

    weights: float
    attention: float
    tokens: int

    @property
    def total(self) -> float:
        """All multiply-accumulates per token."""
        return self.weights + self.attention


def macs_per_token(
    model: nn.Module, inputs: Mapping[str, Any] | None = None, batch: int = 1, length: int = 128
) -> Macs:
    """Count the multiply-accumulates of one forward and divide them by its tokens.

    A product is attention when both of its operands depend on the inputs, and work with weights otherwise,
    however it is written (`nn.Linear`, `Conv1D`, `x @ w`, `einsum`). Additions, norms, activations and
    look-ups are not counted. Tokens are as `token_count` defines them: of an encoder-decoder the encoder's
    and the decoder's together, of an image its patches.

    :param model: Any module; its mode is left as it was.
    :param inputs: Keyword arguments of its forward; made by `dummy_inputs` where not given.
    :param batch: Sequences or images in the dummy inputs.
    :param length: Tokens per dummy sequence, clipped to the model's positions.
    :return: Multiply-accumulates per token.
    :raises ValueError: If no inputs are given and none can be made from the model's config.
    """
    inputs = dict(inputs) if inputs is not None else dict(dummy_inputs(model, batch, length))
    counter = _Counter(inputs)
    with evaluating(model), torch.no_grad(), _plain_kernels(), counter:
        model(**inputs)
    tokens = token_count(model, inputs)
    return Macs(counter.weights / tokens, counter.attention / tokens, tokens)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Turn off the fused kernels (transformer layers, recurrent layers) that hide their products."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    mkldnn: Any = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.backends.mkldnn.enabled = mkldnn


class _Counter(TorchDispatchMode):
    """Counts products as they run and follows which storages depend on the inputs."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.weights = 0
        self.attention = 0
        self.flops = FlopCounterMode(display=False, custom_mapping=_MORE_PRODUCTS).flop_registry
        # Weak references keep an address from being used again while they live, and free the memory.
        self.dependent: dict[int, StorageWeakRef] = {}
        self._mark(inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in self.flops:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        operands = [self._depends(t) for t in _tensors((args, kwargs))]
        result = func(*args, **kwargs)
        if any(operands):
            self._mark(result)
            self._mark([a for a, s in zip(args, func._schema.arguments, strict=False) if _is_written(s)])
        if func._overloadpacket in self.flops:
            self._count(func._overloadpacket, args, kwargs, result)
        return result

    def _count(self, packet: Any, args: tuple, kwargs: dict, result: Any) -> None:
        # The registry counts two operations, a product and a sum, for each multiply-accumulate.
        macs = self.flops[packet](*args, **kwargs, out_val=result) // 2
        factors = _tensors(args)[1:3] if packet in _SUM_COMES_FIRST else _tensors(args)[:2]
        if all(self._depends(factor) for factor in factors):
            self.attention += macs
        else:
            self.weights += macs

    def _depends(self, tensor: torch.Tensor) -> bool:
        return _storage_key(tensor) in self.dependent

    def _mark(self, values: Any) -> None:
        for tensor in _tensors(values):
            self.dependent[_storage_key(tensor)] = StorageWeakRef(tensor.untyped_storage())


_SUM_COMES_FIRST = frozenset((aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm))


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storage_key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _matmul(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _add_matmul(c: Any, a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _matmul(a, b)


def _transposed_matmul(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * prod(a) * b[0]


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


_MORE_PRODUCTS = {
    aten.mv: _matmul,
    aten.dot: _matmul,
    aten.addmv: _add_matmul,
    aten.addbmm: _add_matmul,
    aten._int_mm: _matmul,
    aten._grouped_mm: _matmul,
    aten._weight_int8pack_mm: _transposed_matmul,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
