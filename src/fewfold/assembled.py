"""Modules whose weight is assembled from stored tensors, and the ways to run them.

*Chained* multiplies through the stored tensors; *rebuilt* assembles the dense weight and multiplies once. The form
is a choice of the machine at run time and no part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.seen import Seen
from fewfold.store import Store

Form = Literal["auto", "chained", "folded", "rebuilt"]
RunningForm = Literal["chained", "folded", "rebuilt"]


_PLAIN = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.ModuleList, nn.ModuleDict)


def placeholder(rows: int) -> Tensor:
    """What stands under the name of a dense weight with this many rows: no numbers, but its dtype and rows."""
    return torch.empty(rows, 0)


@cache
def _is_plain(kind: type[nn.Module]) -> bool:
    return kind in _PLAIN or kind.__module__.startswith("fewfold.")


def must_be_called(child: nn.Module, hooks: bool = True) -> bool:
    """Whether a stored child's effect is more than its matrix, so that it has to be called.

    True for adapters (PEFT's layers), modules of other quantizers, tensor subclasses as weights, and anything with
    forward hooks or a replaced forward (offloading).

    :param hooks: whether forward hooks count; on a table that is looked up too, they may be about look-ups only.
    """
    kind: Any = type(child)
    if not _is_plain(kind):
        return True
    if (hooks and (child._forward_hooks or child._forward_pre_hooks)) or "forward" in child.__dict__:
        return True
    weight = child._parameters.get("weight")
    return weight is not None and hasattr(weight, "__tensor_flatten__")


class Assembled(nn.Module):
    """Base of the modules that stand where a dense weight stood.

    ``weight`` is a buffer of shape ``(rows, 0)``: it answers for dtype, device and number of rows, keeps the dense
    weight's name in the checkpoint so that a load which does not know fewfold stops at it (instead of running on
    random numbers), and makes code that reads the dense weight fail instead of computing nonsense.
    """

    weight: Tensor
    form: Form
    in_features: int
    out_features: int

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("weight", placeholder(rows))
        self.form = "auto"
        self.original: tuple[nn.Module, ...] = ()
        self._rebuilt: tuple[Seen, Tensor] | None = None

    def assembled_weight(self) -> Tensor:
        """The dense weight that the stored tensors stand for: ``(out, in)`` or ``(vocab, dim)``."""
        raise NotImplementedError(f"{type(self).__name__} does not assemble a weight")

    def weights(self) -> dict[str, Tensor]:
        """The dense module's weights by their names in it."""
        return {"weight": self.assembled_weight()}

    def shared_weights(self) -> dict[str, tuple[Any, ...]]:
        """For weights that others may be assembled alike with: a key that is then equal, by the weight's name."""
        return {}

    def chain_macs(self) -> int:
        """Multiply-accumulates a token of the chained form."""
        raise NotImplementedError(f"{type(self).__name__} has no chained form")

    def dense_macs(self) -> int:
        """Multiply-accumulates a token of the rebuilt form."""
        raise NotImplementedError(f"{type(self).__name__} has no rebuilt form")

    @property
    def store(self) -> Store | None:
        """The store that the weight is assembled from, where other targets share its tensors."""
        return None

    def resized_settings(self) -> dict[str, Any]:
        """The recorded settings that change with the number of rows, as they are now."""
        return {}

    def leaves(self) -> Iterable[nn.Module]:
        """The modules that hold the tensors which the weight is assembled from."""
        return self.children()

    @property
    def running_form(self) -> RunningForm:
        """The form in use: as set, else the one with fewer multiply-accumulates.

        Leaves that must be called (adapters, hooks, other quantizers' modules) always run chained.
        """
        if any(must_be_called(leaf) for leaf in self.leaves()):
            return "chained"
        if self.form != "auto":
            return "rebuilt" if self.form == "rebuilt" else "chained"
        return "chained" if self.chain_macs() < self.dense_macs() else "rebuilt"

    def rebuilt_weight(self) -> Tensor:
        """The assembled weight, kept between calls while no gradient is asked for and no stored tensor changes.

        Writes through ``parameter.data`` are invisible to this; a switch of ``train()`` and ``eval()``, or a change of
        dtype or device, forgets it.
        """
        return self._rebuilt_at(self.assembly_key())

    def _rebuilt_at(self, key: Seen | None) -> Tensor:
        """As :meth:`rebuilt_weight`, with what :meth:`assembly_key` just said."""
        if key is None:
            self._rebuilt = None
            return self.assembled_weight()
        kept = self._rebuilt  # looked at once: another thread's eval() may forget it at any time
        if kept is None or kept[0] != key:
            kept = self._rebuilt = (key, self.assembled_weight())
        return kept[1]

    def assembly_key(self) -> Seen | None:
        """What changes with the stored tensors; None where nothing may be kept between calls.

        That is while gradients are asked for, while a graph is traced, and where leaves must be called (an adapter can
        be switched off at any time).
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        held: list[Tensor | None] = []
        for leaf in self.leaves():
            if must_be_called(leaf):
                return None
            held += [*leaf._parameters.values(), *leaf._buffers.values()]
        return Seen(held, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):  # adapters come and go like this, and write into .data in between
            self.__dict__["_rebuilt"] = None
        super().__setattr__(name, value)

    def _forget(self) -> None:
        """Let go of what is kept between calls."""
        self._rebuilt = None

    def train(self, mode: bool = True) -> Any:
        """As every module's; what was kept is forgotten."""
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {**state, "_rebuilt": None}


class AssembledLinear(Assembled):
    """Stands for a linear map ``(…, in_features)`` to ``(…, out_features)``."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(out_features)
        self.in_features, self.out_features = in_features, out_features

    def dense_macs(self) -> int:
        """``in · out``."""
        return self.in_features * self.out_features

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Multiply through the stored tensors, bias included."""
        raise NotImplementedError(f"{type(self).__name__} has no chained form")

    def resize(self, rows: int) -> None:
        """Grow or shrink to ``rows`` outputs in place (an untied head's vocabulary); kept rows stay equal."""
        raise NotImplementedError(f"{type(self).__name__} cannot change its number of rows")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        if self.running_form == "chained":
            return self.chained(hidden_states)
        return F.linear(hidden_states, self.rebuilt_weight(), self.bias)

    def extra_repr(self) -> str:
        """Sizes and form."""
        return f"in_features={self.in_features}, out_features={self.out_features}, form={self.running_form}"


class AssembledEmbedding(Assembled):
    """Stands for a table ``(vocab, dim)``: looked up by ids, and multiplied by tied heads."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    scale: float

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, scale: float = 1.0) -> None:
        super().__init__(num_embeddings)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.scale = padding_idx, scale

    def dense_macs(self) -> int:
        """0: a dense look-up multiplies nothing."""
        return 0

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the assembled table: ids of any shape to ``(…, dim)``."""
        raise NotImplementedError(f"{type(self).__name__} has no look-up")

    def attend(self, hidden_states: Tensor) -> Tensor:
        """``(…, dim)`` to ``(…, vocab)``: the product with the transposed table."""
        return F.linear(hidden_states, self.rebuilt_weight())

    def head_weight(self) -> Tensor | None:
        """What tied heads multiply by, ``(vocab, dim)``, where it is not the table itself."""
        return None

    def resize(self, rows: int) -> None:
        """Grow or shrink to ``rows`` rows in place; kept rows stay equal."""
        raise NotImplementedError(f"{type(self).__name__} cannot change its number of rows")

    @property
    def running_form(self) -> RunningForm:
        """Look-ups run through the stored tensors unless set to rebuilt."""
        if any(must_be_called(leaf) for leaf in self.leaves()):
            return "chained"
        return "rebuilt" if self.form == "rebuilt" else "chained"

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids of any shape to ``(…, dim)``."""
        if self.running_form == "rebuilt":
            rows = F.embedding(input_ids, self.rebuilt_weight())
        else:
            rows = self.lookup(input_ids)
        if self.scale == 1.0:
            return rows
        if any("embed_scale" in shell._buffers for shell in self.original):  # Gemma's is rounded to the rows' dtype
            return rows * torch.full((), self.scale, dtype=rows.dtype, device=rows.device)
        return rows * self.scale

    def extra_repr(self) -> str:
        """Sizes and form."""
        return f"{self.num_embeddings}, {self.embedding_dim}, form={self.running_form}"


def set_form(model: nn.Module, form: Form) -> nn.Module:
    """Run every assembled weight of ``model`` in one form, in place.

    :param form: ``chained`` multiplies through the stored tensors; ``folded`` does, with each weight's own core
        multiplied into the factor after it once (methods without such cores run chained); ``rebuilt`` assembles the
        dense weight once; ``auto`` takes the one with the fewest multiply-accumulates, weight by weight.
    :return: ``model``.
    """
    for module in model.modules():
        if isinstance(module, Assembled):
            module.form = form
    return model
