"""Convolutions and recurrent layers whose weights are carved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewfold.assembled import Assembled, RunningForm
from fewfold.methods.embedding_sharing.modules import expect_shape
from fewfold.methods.embedding_sharing.store import CarvingStore

_KINDS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU)}


class CarvedOperator(Assembled):
    """Runs an ``nn.Conv1d``, ``nn.Conv2d``, ``nn.LSTM`` or ``nn.GRU`` with carved weights; it owns the biases.

    Its settings (``stride``, ``hidden_size``, …) are read from it as from the dense module. ``assembled_weight`` is all
    its weights side by side, ``(out, …)``: a kernel flattened, or the gates' rows of every layer and direction.

    :param kind: the class's name.
    :param arguments: of the class's constructor.
    :param slots: by the weight's name in the class.
    """

    def __init__(
        self, rows: int, kind: str, arguments: Mapping[str, Any], slots: Mapping[str, str], store: CarvingStore
    ) -> None:
        super().__init__(rows)
        if kind not in _KINDS:
            raise ValueError(f"{kind} is not among {', '.join(_KINDS)}")
        with torch.device("meta"):
            shell = _KINDS[kind](**arguments)
        shapes = {name: tuple(value.shape) for name, value in shell.named_parameters() if value.dim() > 1}
        if set(shapes) != set(slots):
            raise ValueError(f"slots are given for {', '.join(slots)}; the {kind} has {', '.join(shapes)}")
        for name, shape in shapes.items():
            expect_shape(store, slots[name], shape)
        self.slots = dict(slots)
        self._store: tuple[CarvingStore, ...] = (store,)
        for name, value in shell.named_parameters():
            if name not in shapes:
                self.register_parameter(name, nn.Parameter(torch.zeros(value.shape)))
        self._shell: tuple[nn.Module, ...] = (shell,)

    @property
    def store(self) -> CarvingStore:
        """What the weights are carved from."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The table and its expansion."""
        return self.store.leaves()

    @property
    def running_form(self) -> RunningForm:
        """There is one form only."""
        return "rebuilt"

    def chain_macs(self) -> int:
        """As dense."""
        return self.dense_macs()

    def dense_macs(self) -> int:
        """Every number of the weights once: of a kernel, that is a position's."""
        return sum(self.store.slots[slot].numel for slot in self.slots.values())

    def weights(self) -> dict[str, Tensor]:
        """The carved weights by their names in the dense class."""
        return {name: self.store(slot) for name, slot in self.slots.items()}

    def shared_weights(self) -> dict[str, tuple[Any, ...]]:
        """By weight: a key that is equal wherever the assembled weight is."""
        return {name: (id(self.store), slot) for name, slot in self.slots.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the dense module's."""
        shell = self._shell[0].train(self.training)
        return functional_call(shell, {**self.weights(), **dict(self.named_parameters())}, args, kwargs)

    def assembled_weight(self) -> Tensor:
        """All weights side by side, ``(rows, columns)``."""
        return torch.cat([weight.flatten(1) for weight in self.weights().values()], dim=1)

    def flatten_parameters(self) -> None:
        """Nothing to do: carved weights do not lie together."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            shell = self.__dict__.get("_shell")
            if not shell or name.startswith("_") or name in self.__dict__["slots"]:
                raise
            return getattr(shell[0], name)

    def extra_repr(self) -> str:
        """As the dense module's."""
        return f"{type(self._shell[0]).__name__}({self._shell[0].extra_repr()})"
