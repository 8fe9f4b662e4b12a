"""Round matrices to few-bit integers with a scale per row or per group of columns.

The grid is symmetric about zero: ``value ~ code * scale`` with no zero point. Below 8 bits the two's
complement range ``-2**(b-1) … 2**(b-1)-1`` is used in full and the scale may be negative, so that the
longer side of the grid falls where a group has its largest value (as in llama.cpp's Q4_0).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.finite import is_finite
from fewfold.linalg.packing import pack_bits, unpack_bits
from fewfold.linalg.spectra import damped

# Shares of the largest magnitude tried as the end of the grid.
SEARCH_STEPS = 32
SEARCH_LOWEST = 0.35
# Shares of a scale that are tried when its group has changed a little.
NEIGHBOURS = (0.9, 0.97, 1.03, 1.1)
# Columns between two updates of all later columns.
FEEDBACK_BLOCK = 32


@dataclass(frozen=True)
class QuantizedMatrix:
    """Integer codes and their scales.

    :param codes: ``(rows, cols)`` int8, in ``-2**(bits-1) … 2**(bits-1)-1``.
    :param scales: ``(rows, groups)``, in the dtype they are stored in.
    :param bits: 2 … 8.
    :param group_size: columns that share a scale; the last group of a row may be shorter.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group_size: int

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The rounded matrix, ``(rows, cols)``."""
        columns = self.codes.shape[1]
        scales = self.scales.to(dtype).repeat_interleave(self.group_size, dim=1)[:, :columns]
        return self.codes.to(dtype) * scales

    def packed(self) -> Tensor:
        """Codes shifted to be unsigned and packed, ``(rows, ceil(cols * bits / 8))`` uint8."""
        return pack_bits(self.codes.to(torch.int16) + 2 ** (self.bits - 1), self.bits)

    def nbytes(self) -> int:
        """Bytes of the packed codes and the scales."""
        rows, columns = self.codes.shape
        return rows * ((columns * self.bits + 7) // 8) + self.scales.numel() * self.scales.element_size()


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `QuantizedMatrix.packed`.

    :param packed: ``(rows, ceil(columns * bits / 8))`` uint8.
    :return: ``(rows, columns)`` int8 codes.
    """
    return (unpack_bits(packed, bits, columns).to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def quantize_matrix(
    values: Tensor,
    bits: int,
    group_size: int | None = None,
    scale_dtype: torch.dtype = torch.bfloat16,
    column_importance: Tensor | None = None,
    search: bool = True,
) -> QuantizedMatrix:
    """Round to the nearest point of a grid whose scale is searched for the least squared error.

    :param values: ``(rows, cols)``, finite.
    :param bits: 2 … 8.
    :param group_size: columns per scale; a whole row if absent.
    :param scale_dtype: dtype of the stored scales; codes are chosen for the rounded scale.
    :param column_importance: ``(cols,)`` not negative, weights of the squared error in the search,
        for example the diagonal of the inputs' second moment.
    :param search: try smaller grids than the one that reaches the largest magnitude.
    :return: codes and scales. A group of zeros has scale and codes 0.
    :raises ValueError: if an argument is out of range or a value is not finite.
    """
    group_size = _checked(values, bits, group_size)
    grouped = _grouped(values.detach().to(torch.float32), group_size)
    importance = None
    if column_importance is not None:
        importance = _grouped(column_importance.detach().to(torch.float32)[None], group_size)
    scales = _best_scales(grouped, bits, scale_dtype, importance, search)
    return codes_on(values, scales, bits, group_size)


def quantize_with_feedback(
    values: Tensor,
    input_moment: Tensor,
    bits: int,
    group_size: int | None = None,
    scale_dtype: torch.dtype = torch.bfloat16,
    damping: float = 0.01,
) -> QuantizedMatrix:
    """Round column by column, each time moving the error onto the columns still to come.

    Lessens ``tr((W - W') C (W - W')^T)`` (GPTQ, Frantar et al., ICLR 2023, algorithm 1). Columns keep
    their order, so groups stay contiguous; a group's scales are searched when its first column is reached.

    :param values: ``(rows, cols)``, applied as ``values @ x``.
    :param input_moment: ``(cols, cols)``, ``E[x x^T]`` of this factor's own inputs.
    :param bits: 2 … 8.
    :param group_size: columns per scale; a whole row if absent.
    :param scale_dtype: dtype of the stored scales.
    :param damping: share of the mean of C's diagonal added to it.
    :return: codes and scales.
    :raises ValueError: if an argument is out of range, shapes disagree or a value is not finite.
    """
    group_size = _checked(values, bits, group_size)
    rows, columns = values.shape
    if input_moment.shape != (columns, columns):
        raise ValueError(f"input_moment {tuple(input_moment.shape)}: it must be ({columns}, {columns})")
    inverse = torch.linalg.inv(damped(input_moment, damping))
    spread = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    importance = spread.diagonal().pow(-2).to(torch.float32)
    work = values.detach().to(torch.float64).clone()
    codes = torch.empty(rows, columns, dtype=torch.int8, device=values.device)
    scales = []
    for start in range(0, columns, group_size):
        group = slice(start, min(start + group_size, columns))
        values_now = work[:, group].to(torch.float32)[:, None]
        scale = _best_scales(values_now, bits, scale_dtype, importance[group][None, None], True)
        scales.append(scale)
        for first in range(start, group.stop, FEEDBACK_BLOCK):
            last = min(first + FEEDBACK_BLOCK, group.stop)
            codes[:, first:last], errors = _round_block(
                work[:, first:last], spread[first:last, first:last], scale[:, 0].to(torch.float64), bits
            )
            work[:, last:] -= errors @ spread[first:last, last:]
    return QuantizedMatrix(codes, torch.cat(scales, dim=1), bits, group_size)


def round_onto_(values: Tensor, scales: Tensor, bits: int, group_size: int) -> Tensor:
    """Move a matrix to the nearest points of a grid that is there already, in place.

    :param values: ``(rows, cols)``, float32.
    :param scales: ``(rows, groups)``, float32; a group whose scale is 0 becomes 0.
    :return: ``values``.
    """
    grouped = _whole_groups(values, group_size)
    if grouped is None:
        grouped = _grouped(values, group_size)
        rounded = _round(grouped, scales[..., None], bits) * scales[..., None]
        return values.copy_(rounded.flatten(1)[:, : values.shape[1]])
    low, high = _limits(bits)
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales)
    grouped.div_(divisors[..., None]).round_().clamp_(low, high).mul_(scales[..., None])
    return values


def codes_on(values: Tensor, scales: Tensor, bits: int, group_size: int) -> QuantizedMatrix:
    """What :func:`round_onto_` makes of a matrix, as codes."""
    grouped = _grouped(values.detach().to(torch.float32), group_size)
    codes = _round(grouped, scales.to(torch.float32)[..., None], bits).flatten(1)[:, : values.shape[1]]
    return QuantizedMatrix(codes.to(torch.int8).contiguous(), scales, bits, group_size)


def followed_scales(
    values: Tensor, scales: Tensor, bits: int, group_size: int, scale_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Scales for a matrix that has changed a little: each group keeps its own, or takes a neighbour that fits better.

    :param values: ``(rows, cols)``.
    :param scales: ``(rows, groups)``, of the matrix before; where one is 0, it is begun anew.
    :return: ``(rows, groups)`` float32 numbers of ``scale_dtype``.
    """
    grouped = _grouped(values.detach().to(torch.float32), group_size)
    scales = torch.where(scales == 0, _reaching(grouped, bits), scales)
    best, best_error = scales, torch.full_like(scales, torch.inf)
    for share in (1.0, *NEIGHBOURS):
        trial = _storable(scales * share, scale_dtype).to(torch.float32)
        error = (_round(grouped, trial[..., None], bits) * trial[..., None] - grouped).square().sum(-1)
        best = torch.where(error < best_error, trial, best)
        best_error = torch.minimum(error, best_error)
    return best


def _whole_groups(values: Tensor, group_size: int) -> Tensor | None:
    """``(rows, groups, group_size)`` in the same memory; None where the last group is shorter, or rows lie apart."""
    if values.shape[1] % group_size or not values.is_contiguous():
        return None
    return values.view(len(values), -1, group_size)


def _round_block(block: Tensor, spread: Tensor, scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of a block of columns, with feedback inside it, and the errors to hand on to later columns."""
    block = block.clone()
    codes = torch.empty(block.shape, dtype=torch.int8, device=block.device)
    errors = torch.empty_like(block)
    for column in range(block.shape[1]):
        code = _round(block[:, column], scale, bits)
        codes[:, column] = code.to(torch.int8)
        errors[:, column] = (block[:, column] - code * scale) / spread[column, column]
        block[:, column + 1 :] -= torch.outer(errors[:, column], spread[column, column + 1 :])
    return codes, errors


def _best_scales(
    grouped: Tensor, bits: int, scale_dtype: torch.dtype, importance: Tensor | None, search: bool
) -> Tensor:
    """Scales ``(rows, groups)`` of least (weighted) error for ``grouped`` ``(rows, groups, size)``."""
    limit = 2 ** (bits - 1)
    low, high = grouped.amin(-1), grouped.amax(-1)
    peak = torch.maximum(high, -low).clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    if bits == 8:
        ends = [torch.maximum(high, -low) / (limit - 1)]
    else:
        ends = [_reaching(grouped, bits), torch.maximum(high, -low) / (limit - 1)]
    shares = torch.linspace(1.0, SEARCH_LOWEST, SEARCH_STEPS).tolist() if search else [1.0]
    best, best_error = None, None
    for end in ends:
        for share in shares:
            scales = _storable(end * share, scale_dtype)
            wide = scales.to(torch.float32)[..., None]
            error = ((_round(grouped, wide, bits) * wide - grouped) / peak).square()
            total = (error if importance is None else error * importance).sum(-1)
            if best is None or best_error is None:
                best, best_error = scales, total
            else:
                better = total < best_error
                best, best_error = torch.where(better, scales, best), torch.where(better, total, best_error)
    assert best is not None
    return best


def _reaching(grouped: Tensor, bits: int) -> Tensor:
    """Scales ``(rows, groups)`` whose sign puts the longer side of a group on the longer side of the grid."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    return torch.where(-low >= high, -low, -high) / 2 ** (bits - 1)


def _storable(scales: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    return scales.clamp(limits.min, limits.max).to(dtype)


def _round(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    ratio = values / torch.where(scales == 0, torch.ones_like(scales), scales)
    return torch.where(scales == 0, torch.zeros_like(ratio), ratio.round().clamp(*_limits(bits)))


def _limits(bits: int) -> tuple[int, int]:
    """The lowest and the highest code."""
    limit = 2 ** (bits - 1)
    return (1 - limit if bits == 8 else -limit), limit - 1


def _grouped(values: Tensor, group_size: int) -> Tensor:
    """``(rows, cols)`` to ``(rows, groups, group_size)``, zero padded."""
    padding = -values.shape[1] % group_size
    return torch.nn.functional.pad(values, (0, padding)).unflatten(1, (-1, group_size))


def _checked(values: Tensor, bits: int, group_size: int | None) -> int:
    if values.dim() != 2 or 0 in values.shape:
        raise ValueError(f"expected a matrix, got shape {tuple(values.shape)}")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits}: it must be 2…8")
    group_size = values.shape[1] if group_size is None else group_size
    if group_size < 1:
        raise ValueError(f"group_size={group_size}: it must be at least 1")
    if not is_finite(values):
        raise ValueError("the matrix holds an infinity or a NaN")
    return min(group_size, values.shape[1])
