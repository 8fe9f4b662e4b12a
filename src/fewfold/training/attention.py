"""Attention in fp32 while a CPU trains in bfloat16, where that is several times faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

LONGEST = 512  # tokens from which bfloat16 is no slower


@contextmanager
def attention_for_training(bf16: bool) -> Iterator[None]:
    """While a model trains under CPU autocast to bfloat16, attention over short sequences computes in fp32.

    The gradient of PyTorch's fused attention takes about 0.1 ms a head and sequence longer in bfloat16 than in fp32,
    however short the sequence is: several times as long at 32 tokens, as long at 512. Inputs and outputs stay bfloat16.

    :param bf16: whether the training autocasts; without that nothing changes.
    """
    if not bf16 or torch.cuda.is_available():
        yield
        return
    with _InFp32():
        yield


class _InFp32(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention or not _is_slow(*args, **kwargs):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        return found.to(torch.bfloat16)


def _is_slow(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
) -> bool:
    """Whether the fused attention would run in bfloat16 and learn; dropout is not fused, and as fast in either."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    short = query.shape[-2] < LONGEST and query.device.type == "cpu"
    return autocast and short and not dropout_p and torch.is_grad_enabled()


def _widened(value: Any) -> Any:
    """Numbers in fp32; masks of booleans and all else as they are."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
