"""Leaf modules that own one stored matrix: real ``nn.Linear`` and ``nn.Embedding`` with a smaller file form.

In memory the matrix is a float Parameter, so it trains, casts and takes adapters like any other. ``state_dict``
gives the kept form (cast floats, or integer codes and scales), and ``load_state_dict`` takes it back. The small
form can also stay in memory (:func:`pack`): products then dequantize on the fly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.errors import CheckpointError
from fewfold.linalg.quantize import quantize_matrix, unpack_codes
from fewfold.stored.dtypes import StoredDtype
from fewfold.stored.kept import Kept


def encode(matrix: Tensor, stored: StoredDtype) -> tuple[Tensor, Tensor]:
    """Round a ``(rows, columns)`` matrix to the grid of ``stored``.

    :return: packed codes ``(rows, code_bytes)`` as uint8 and scales ``(rows, groups)``.
    """
    bits = stored.bits
    assert bits is not None
    rows, columns = matrix.shape
    if matrix.is_meta:
        return (
            torch.empty(rows, stored.code_bytes(columns), dtype=torch.uint8, device="meta"),
            torch.empty(rows, stored.groups(columns), dtype=stored.scale_dtype, device="meta"),
        )
    group = None if stored.name == "int8" else stored.group
    quantized = quantize_matrix(matrix.detach().float(), bits, group, stored.scale_dtype)
    return quantized.packed(), quantized.scales


def decode(codes: Tensor, scales: Tensor, columns: int, stored: StoredDtype, dtype: torch.dtype) -> Tensor:
    """The ``(rows, columns)`` matrix that packed ``codes`` and ``scales`` stand for."""
    bits = stored.bits
    assert bits is not None
    integers = unpack_codes(codes, bits, columns)
    scales = scales.float()
    if scales.shape[-1] > 1:
        scales = scales.repeat_interleave(stored.group, dim=-1)[..., :columns]
    return (integers.float() * scales).to(dtype)


class Stored(Kept, nn.Module):
    """What StoredLinear and StoredEmbedding share; ``weight`` is ``(rows, columns)``."""

    stored: StoredDtype
    weight: nn.Parameter | None
    codes: Tensor
    scales: Tensor
    matrix_shape: tuple[int, int]
    matrix_dtype: torch.dtype
    _grid: tuple[Tensor, Tensor] | None
    _trained: bool = True  # while packed: whether the matrix was

    def _setup(self, stored: StoredDtype) -> None:
        weight = self.weight
        assert weight is not None
        self.stored = stored
        self.matrix_shape = (weight.shape[0], weight.shape[1])
        self.matrix_dtype = weight.dtype
        self._grid = None

    @property
    def is_packed(self) -> bool:
        """Whether only the small form is in memory."""
        return self.weight is None

    @property
    def trains(self) -> bool:
        """Whether the matrix is trained, or was when it was packed."""
        return self._trained if self.weight is None else self.weight.requires_grad

    def matrix(self) -> Tensor:
        """The float matrix ``(rows, columns)``; dequantized where only the small form is in memory."""
        if self.weight is not None:
            return self.weight
        return decode(self.codes, self.scales, self.matrix_shape[1], self.stored, self.matrix_dtype)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Packed codes and scales of an integer form, as saving would write them."""
        return (self.codes, self.scales) if self.weight is None else self._encoded()

    def pack_(self) -> None:
        """Keep only codes and scales in memory (integer forms; others are left as they are)."""
        if self.weight is None or not self.stored.is_integer:
            return
        self.matrix_dtype, self._trained = self.weight.dtype, self.weight.requires_grad
        codes, scales = self._encoded()
        self.weight, self._grid = None, None
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        # transformers initialises every Linear it did not load itself; there is no weight to initialise here
        self._is_hf_initialized = True

    def unpack_(self, name: str = "") -> None:
        """Turn codes and scales back into a float Parameter, trained if it was before."""
        if self.weight is not None:
            return
        weight = self.matrix()
        self._grid = (self.codes, self.scales)
        del self.codes, self.scales
        self.weight = nn.Parameter(weight, self._trained)

    def settle_(self, dtype: torch.dtype) -> None:
        """After a load that may have cast codes and scales: their own dtypes again, and products in ``dtype``."""
        if self.weight is None:
            self.matrix_dtype = dtype
            self.codes, self.scales = self.codes.to(torch.uint8), self.scales.to(self.stored.scale_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Casts of a packed module change the dtype of its products, never its scales."""
        if self.weight is not None:
            return super()._apply(fn, recurse)
        scales = self.scales
        super()._apply(fn, recurse)
        self.matrix_dtype = fn(torch.empty(0, dtype=self.matrix_dtype, device=scales.device)).dtype
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def _encoded(self) -> tuple[Tensor, Tensor]:
        """Codes and scales of the float weight: those it came from, as long as it has not changed since."""
        weight = self.weight
        assert weight is not None
        if self._grid is not None and not weight.is_meta:
            codes, scales = (tensor.to(weight.device) for tensor in self._grid)
            if torch.equal(decode(codes, scales, weight.shape[1], self.stored, weight.dtype), weight.detach()):
                return codes, scales
        return encode(weight, self.stored)

    @torch.no_grad()
    def set_grid_(self, codes: Tensor, scales: Tensor) -> None:
        """Take packed codes and scales that a fit chose, and the float weight that they stand for."""
        assert self.weight is not None
        self._grid = (codes, scales)
        self.weight.copy_(decode(codes, scales, self.matrix_shape[1], self.stored, self.weight.dtype))

    def round_(self) -> None:
        """Put the float weight on the grid of its kept form, so that saving loses nothing more."""
        if self.weight is None or self.stored.is_plain or self.weight.is_meta:
            return
        with torch.no_grad():
            if self.stored.cast is not None:
                rounded = self.weight.to(self.stored.cast).to(self.weight.dtype)
            else:
                self._grid = self._encoded()
                rounded = decode(*self._grid, self.weight.shape[1], self.stored, self.weight.dtype)
            self.weight.copy_(rounded)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight is None or self.stored.is_plain:
            return
        weight = destination.pop(prefix + "weight")
        if self.stored.cast is not None:
            # the empty skeleton that a checkpoint is loaded into says the dtype in memory, not the one on disk
            destination[prefix + "weight"] = weight if weight.is_meta else weight.to(self.stored.cast)
            return
        destination[prefix + "codes"], destination[prefix + "scales"] = self._encoded()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        codes, scales = state_dict.pop(prefix + "codes", None), state_dict.pop(prefix + "scales", None)
        if codes is not None and scales is not None:
            self._check(prefix, codes, scales)
            if self.weight is None:
                state_dict[prefix + "codes"], state_dict[prefix + "scales"] = codes, scales
            else:
                columns = self.matrix_shape[1]
                self._grid = (codes, scales)
                state_dict[prefix + "weight"] = decode(codes, scales, columns, self.stored, self.weight.dtype)
        elif self.weight is None and prefix + "weight" in state_dict:
            state_dict[prefix + "codes"], state_dict[prefix + "scales"] = encode(
                state_dict.pop(prefix + "weight"), self.stored
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check(self, prefix: str, codes: Tensor, scales: Tensor) -> None:
        rows, columns = self.matrix_shape
        expected = (rows, self.stored.code_bytes(columns)), (rows, self.stored.groups(columns))
        if (tuple(codes.shape), tuple(scales.shape)) != expected:
            raise CheckpointError(
                f"{prefix}codes and {prefix}scales have shapes {tuple(codes.shape)} and {tuple(scales.shape)}; a "
                f"{rows}×{columns} matrix kept as {self.stored.name} needs {expected[0]} and {expected[1]}"
            )


class StoredLinear(Stored, nn.Linear):  # type: ignore[misc]
    """An ``nn.Linear`` whose weight is kept in a smaller dtype on disk."""

    def __init__(self, in_features: int, out_features: int, bias: bool, stored: StoredDtype) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=bias)
        self._setup(stored)

    def forward(self, input: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        return F.linear(input, self.matrix(), self.bias)

    def extra_repr(self) -> str:
        """nn.Linear's text with the kept dtype."""
        return f"{nn.Linear.extra_repr(self)}, stored={self.stored.name}"


class StoredMatrix(StoredLinear):
    """A stored matrix ``(out_features, in_features)`` that is multiplied from either side.

    Whatever needs it calls the module, so that hooks (offloading, sharding) fire.
    """

    def __init__(self, in_features: int, out_features: int, stored: StoredDtype) -> None:
        super().__init__(in_features, out_features, False, stored)

    def forward(self, input: Tensor | None = None, transposed: bool = False, bias: Tensor | None = None) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``, or back if ``transposed``; without input, the matrix."""
        if input is None:
            return self.matrix()
        return F.linear(input, self.matrix().t() if transposed else self.matrix(), bias)


class StoredEmbedding(Stored, nn.Embedding):  # type: ignore[misc]
    """An ``nn.Embedding`` whose table is kept in a smaller dtype on disk."""

    def __init__(self, rows: int, columns: int, padding_idx: int | None, stored: StoredDtype) -> None:
        nn.Embedding.__init__(self, rows, columns, padding_idx=padding_idx)
        self._setup(stored)

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape to ``(…, columns)``; packed rows are dequantized after the look-up."""
        if self.weight is not None:
            return nn.Embedding.forward(self, input)
        return decode(self.codes[input], self.scales[input], self.matrix_shape[1], self.stored, self.matrix_dtype)

    def extra_repr(self) -> str:
        """nn.Embedding's text with the kept dtype."""
        rows, columns = self.matrix_shape
        return f"{rows}, {columns}, stored={self.stored.name}"


def make_linear(in_features: int, out_features: int, bias: bool, stored: StoredDtype) -> nn.Linear:
    """A Linear that keeps its weight as ``stored``; a plain ``nn.Linear`` where nothing is to be reduced."""
    if stored.is_plain:
        return nn.Linear(in_features, out_features, bias=bias)
    return StoredLinear(in_features, out_features, bias, stored)


def make_embedding(rows: int, columns: int, padding_idx: int | None, stored: StoredDtype) -> nn.Embedding:
    """An Embedding that keeps its table as ``stored``; a plain ``nn.Embedding`` where nothing is to be reduced."""
    if stored.is_plain:
        return nn.Embedding(rows, columns, padding_idx=padding_idx)
    return StoredEmbedding(rows, columns, padding_idx, stored)


def pack(model: nn.Module) -> nn.Module:
    """Keep every integer-stored tensor of ``model`` in its small form in memory, in place.

    Resident memory falls to about the file's; each product dequantizes first, so it is slower. Packed weights do
    not train: call ``fewfold.unpack`` before training.

    :return: ``model``.
    """
    for module in model.modules():
        if isinstance(module, Stored):
            module.pack_()
    return model


def unpack(model: nn.Module) -> nn.Module:
    """Turn every packed tensor of ``model`` into a float Parameter again, and streams of codes into integers, in place.

    :return: ``model``.
    :raises CheckpointError: naming a tensor whose codes cannot be.
    """
    for name, module in model.named_modules():
        if isinstance(module, Kept):
            module.unpack_(name)
    return model
