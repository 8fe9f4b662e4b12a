"""What loading, fitting and saving ask of a module whose tensors are smaller on disk than at work."""

from __future__ import annotations

import torch
from torch import nn


def round_stored(model: nn.Module) -> None:
    """Put all that a model keeps in fewer bits on its grid: it then is what a file of it holds."""
    for leaf in model.modules():
        if isinstance(leaf, Kept):
            leaf.round_()


class Kept:
    """A module with a packed form, in which its tensors have the names, shapes and dtypes of the file."""

    def pack_(self) -> None:
        """Hold only the packed form."""
        raise NotImplementedError

    def unpack_(self, name: str = "") -> None:
        """Hold the working form again.

        :param name: of this module, for errors.
        """
        raise NotImplementedError

    def settle_(self, dtype: torch.dtype) -> None:
        """Undo what a load may have cast; products run in ``dtype``."""
        raise NotImplementedError

    def round_(self) -> None:
        """Put what is kept in fewer bits on its grid, so that saving loses nothing more."""
        raise NotImplementedError
