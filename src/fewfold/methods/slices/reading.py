"""One product for several modules: what q, k and v make of their common input with a common factor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Held:
    """The last input of a family, its product, and who has taken it since."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.product: Tensor | None = None
        self.takers: tuple[str, ...] = ()
        self.state: tuple[int | None, bool, bool, bool] | None = None


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.held = _Held()


class Reading:
    """Shares a product between the members of a family that are called with the very same tensor.

    Nobody takes twice: who comes again starts a new pass (a checkpoint that computes again, the next batch), and once
    all members took, everything is let go. Threads do not see each other's; a trace keeps it in the traced program.
    """

    def __init__(self) -> None:
        self.members: tuple[str, ...] = ()
        self.biased = False
        self._eager = _PerThread()
        self._traced = _Held()

    def join(self, member: str, biased: bool = False) -> None:
        """Count a member in; ``biased`` is set for the family where one of them adds a bias."""
        self.biased = self.biased or biased
        if member not in self.members:
            self.members = (*self.members, member)

    def take(
        self, member: str, hidden_states: Tensor, compute: Callable[[Tensor], Tensor], prepared: bool = False
    ) -> Tensor:
        """``compute(hidden_states)``, or what another member computed from the same tensor in this pass.

        :param prepared: whether ``compute`` is a prepared step: only those share with each other (see ``products``).
        """
        if len(self.members) < 2:
            return compute(hidden_states)
        state: tuple[int | None, bool, bool, bool]
        if torch.compiler.is_compiling():
            held, state = self._traced, (None, False, False, prepared)
        else:
            held = self._eager.held
            version = None if hidden_states.is_inference() else hidden_states._version
            autocast = torch.is_autocast_enabled(hidden_states.device.type)
            state = (version, torch.is_grad_enabled(), autocast, prepared)
        if held.input is hidden_states and member not in held.takers and held.state == state:
            product = held.product
            assert product is not None
            takers = (*held.takers, member)
        else:
            product, takers = compute(hidden_states), (member,)
        done = len(takers) == len(self.members)
        held.input, held.product = (None, None) if done else (hidden_states, product)
        held.takers, held.state = ((), None) if done else (takers, state)
        return product

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
        copied = _reading(self.members, self.biased)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _reading, (self.members, self.biased)


def _reading(members: tuple[str, ...], biased: bool) -> Reading:
    reading = Reading()
    reading.members, reading.biased = members, biased
    return reading
