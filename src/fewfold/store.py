"""Stores: modules that own tensors which several targets are assembled from.

A store is registered once, inside the model's body, so that a body without its head finds it too. Targets point at
the store's module without registering it and reach its tensors by calling it: every tensor is saved once, nothing is
tied, and hooks on the store (offloading, sharding) fire.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fewfold.errors import TargetError

HOME = "fewfold_stores"


class Store(nn.Module):
    """Owns tensors shared by several targets.

    ``name`` is its key among the model's stores and in the structure.
    """

    name: str = ""

    def resized_settings(self) -> dict[str, Any]:
        """The recorded settings that change with the number of tokens, as they are now."""
        return {}


def stores_of(model: nn.Module) -> dict[str, Store]:
    """The stores that a model holds, by name."""
    home = getattr(_body(model), HOME, None)
    return {} if home is None else dict(home.items())


def attach_stores(model: nn.Module, stores: Iterable[Store]) -> None:
    """Register stores in the model's body under their names; one that is there already stays.

    :raises TargetError: where the body is an ``nn.Sequential``, which would call them.
    """
    body: Any = _body(model)
    stores = list(stores)
    if stores and type(body).forward is nn.Sequential.forward:
        raise TargetError(
            f"{type(body).__name__} would call the tensors that its layers share as one layer more: wrap it in a module"
        )
    for store in stores:
        home = getattr(body, HOME, None)
        if home is None:
            home = nn.ModuleDict()
            body.add_module(HOME, home)
        if store.name not in home:
            home[store.name] = store
            store.train(body.training)


def drop_unused_stores(model: nn.Module) -> None:
    """Remove stores that no target of ``model`` points at any more."""
    body: Any = _body(model)
    home = getattr(body, HOME, None)
    if home is None:
        return
    used = {id(store) for store in stores_behind(model.modules())}
    for name in [name for name, store in home.items() if id(store) not in used]:
        del home[name]
    if not len(home):
        delattr(body, HOME)


def stores_behind(modules: Iterable[nn.Module]) -> list[Store]:
    """The stores that some modules are assembled from, each once."""
    found = [getattr(module, "store", None) for module in modules]
    return list({id(store): store for store in found if isinstance(store, Store)}.values())


def free_name(model: nn.Module, wish: str, taken: Iterable[str] = ()) -> str:
    """``wish``, or ``wish_2`` … where that is the name of a store already."""
    known = {*stores_of(model), *taken}
    number, name = 1, wish
    while name in known:
        number += 1
        name = f"{wish}_{number}"
    return name


def _body(model: nn.Module) -> nn.Module:
    body = getattr(model, "base_model", None)
    return body if isinstance(body, nn.Module) else model
