"""Pack small unsigned integers into bytes, 1 to 16 bits each, and back."""

import torch
from torch import Tensor


def packed_length(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take: ``ceil(count * bits / 8)``."""
    return (count * bits + 7) // 8


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension into one little-endian stream of bits per row.

    Code ``i`` takes bits ``i * bits … (i + 1) * bits - 1``; bit ``b`` is bit ``b % 8`` of byte ``b // 8``;
    unused bits of the last byte are zero.

    :param codes: ``(…, count)`` integers in ``0 … 2**bits - 1``.
    :param bits: 1 … 16.
    :return: ``(…, packed_length(count, bits))`` uint8.
    :raises ValueError: if ``bits`` or a code lies outside its range, or the codes are not integers.
    """
    _check_bits(bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dim() == 0:
        raise ValueError(f"codes must be an integer tensor with a last dimension, got {codes.dtype}")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(
            f"codes span {int(codes.min())}…{int(codes.max())}: {bits} bits hold 0…{2**bits - 1}; "
            "shift signed codes first"
        )
    count = codes.shape[-1]
    length = packed_length(count, bits)
    if 8 % bits == 0:
        lanes = _padded(codes.to(torch.uint8), length * (8 // bits)).unflatten(-1, (length, 8 // bits))
        return _join(lanes, bits)
    wide = codes.to(torch.int32)
    planes = torch.stack([((wide >> bit) & 1).to(torch.uint8) for bit in range(bits)], dim=-1).flatten(-2)
    return _join(_padded(planes, length * 8).unflatten(-1, (length, 8)), 1)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack_bits`.

    :param packed: ``(…, packed_length(count, bits))`` uint8.
    :param bits: 1 … 16.
    :param count: codes per row.
    :return: ``(…, count)``, uint8 up to 8 bits and int32 above.
    :raises ValueError: if ``bits`` is out of range or ``packed`` is of the wrong length or type.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() == 0 or packed.shape[-1] != packed_length(count, bits):
        raise ValueError(
            f"packed is {packed.dtype} {tuple(packed.shape)}: {count} codes of {bits} bits "
            f"are uint8 with a last dimension of {packed_length(count, bits)}"
        )
    if 8 % bits == 0:
        return _split(packed, bits)[..., :count]
    planes = _split(packed, 1)[..., : count * bits].unflatten(-1, (count, bits))
    dtype = torch.uint8 if bits <= 8 else torch.int32
    codes = planes[..., 0].to(dtype)
    for bit in range(1, bits):
        codes = codes | (planes[..., bit].to(dtype) << bit)
    return codes


def _join(lanes: Tensor, bits: int) -> Tensor:
    """``(…, n, 8 // bits)`` uint8 lanes to ``(…, n)`` bytes."""
    out = lanes[..., 0]
    for lane in range(1, lanes.shape[-1]):
        out = out | (lanes[..., lane] << (lane * bits))
    return out


def _split(packed: Tensor, bits: int) -> Tensor:
    """``(…, n)`` bytes to ``(…, n * 8 // bits)`` uint8 lanes."""
    lanes = [(packed >> (lane * bits)) & (2**bits - 1) for lane in range(8 // bits)]
    return torch.stack(lanes, dim=-1).flatten(-2)


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"bits={bits}: it must be 1…16")
