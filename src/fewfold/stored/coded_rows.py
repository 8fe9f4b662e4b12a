"""Another number of rows for a coded matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fewfold.stored.codes import CodedMatrix


@torch.no_grad()
def resize_codes(coded: CodedMatrix, rows: int) -> None:
    """Cut rows off, or add some near the mean row, in place; see :meth:`CodedMatrix.resize_`."""
    coded.unpack_()
    kept = min(rows, coded.rows)
    fresh = mean_codes(coded) if rows > kept else []
    specs, rank = list(coded.stages), coded.rank
    for index, stage in enumerate(coded.stages):
        codes = coded.codes(index)
        if stage.rows is None:
            added = [fresh[index].expand(rows - kept, -1)] if fresh else []
            codes = torch.cat([codes[:kept], *added])
        else:
            assert rank is not None
            inside = rank[:kept][rank[:kept] < len(codes)].sort().values
            codes = codes[inside.long()]
            specs[index] = replace(stage, rows=len(codes))
        coded._buffers[f"codes_{index}"] = codes.contiguous()
    if rank is not None:
        order = rank[:kept].argsort().argsort().to(rank)
        coded.rank = torch.cat([order, torch.arange(kept, rows).to(rank)])
    if coded.scales is not None:
        filling = coded.scales.mean().half().to(coded.scales).expand(rows - kept)
        coded.scales = nn.Parameter(torch.cat([coded.scales[:kept], filling]), coded.scales.requires_grad)
    coded.rows, coded.stages = rows, tuple(specs)


def mean_codes(coded: CodedMatrix) -> list[Tensor]:
    """For every stage the words nearest to what the ones before leave of the mean row, ``(1, positions)``.

    Stages that do not cover every row leave it as it is.
    """
    left = coded.matrix().mean(0)
    if coded.scales is not None:
        left = left / coded.scales.mean()
    chosen = []
    for index, stage in enumerate(coded.stages):
        codes = torch.zeros(1, coded.positions(index), dtype=stage.code_dtype, device=left.device)
        if stage.rows is None:
            cube = coded.cube(index, left.dtype)
            for position, wanted in enumerate(left.split(stage.width)):
                words = cube[0 if stage.shared else position, :, : len(wanted)]
                codes[0, position] = (words - wanted).square().sum(1).argmin()
            left = left - coded.words(index, codes)[0]
        chosen.append(codes)
    return chosen
