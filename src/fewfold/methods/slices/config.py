"""What the configs of the methods across layers have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.base import MethodConfig


class SliceConfig(MethodConfig):
    """Weights of many layers as slices of one stack."""

    fused: Literal["whole", "split"] = Field(
        "split", description="a fused projection (GPT-2 c_attn) as one matrix, or its q, k and v apart"
    )
    tile: bool = Field(True, description="cut weights of k·D × D into k slices of D × D, D being the model's width")
    apart: bool = Field(False, description="attention and feed-forward weights in groups of their own")
    depth_groups: int = Field(1, ge=1, description="this many runs of layers, each with factors of its own")
    orientation: Literal["auto", "published", "residual"] = Field(
        "auto",
        description="which side of a square slice lies on rows: 'published' as in the paper's code, 'residual' with "
        "the residual stream on columns everywhere, 'auto' what leaves the smallest error, q, k and v alike",
    )
