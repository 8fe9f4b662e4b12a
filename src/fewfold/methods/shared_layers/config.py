"""SharedLayers: blocks that serve several layers each, and what a layer keeps of its own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from fewfold.methods.base import MethodConfig
from fewfold.methods.shared_layers.maps import MapName, is_share
from fewfold.methods.shared_layers.places import PARTS
from fewfold.stored.dtypes import StoredDtypeName


class SharedLayers(MethodConfig):
    """Let M stored blocks serve N layers; every layer may keep a low-rank difference of its own.

    Every stack of layers is mapped by itself, encoder and decoder apart unless ``across_stacks``. Without a budget and
    without ``delta_rank`` sharing is strict. Fewer numbers are stored; as many are multiplied, and activations and
    caches stay as they are.
    """

    method: Literal["shared_layers"] = "shared_layers"
    fused: Literal["whole", "split"] = Field(
        "split", description="a fused projection (GPT-2 c_attn) as one matrix, or its q, k and v apart (heads are only "
        "aligned, and 'qk' and 'vo' only told apart, where it is split)",
    )  # fmt: skip
    map: MapName | list[int] = Field(
        "pairs", description="which block serves which layer: 'pairs' AABBCC, 'sequence' and 'albert' (runs), 'cycle' "
        "ABCABC, 'cycle_rev' ABCCBA, 'sandwich' ABBBBC, 'all', 'unshared', or a list of block numbers, one a layer",
    )  # fmt: skip
    blocks: int | str | None = Field(
        None, description="blocks of a stack: a number, or a share of its layers such as '1/2'"
    )
    parts: str | list[str] = Field(
        "all", description="what is shared: 'all', 'attention', 'ffn', 'qk', 'vo', 'q', 'k', 'v', 'o', 'ffn_in', "
        "'ffn_out', one or several (other configs of the recipe may share the rest by other maps); 'norms' beside them",
    )  # fmt: skip
    norms_and_biases: Literal["private", "shared"] = Field(
        "private", description="whether a layer keeps its own biases and norms (2d to 4d numbers); 'shared' takes the "
        "biases of the shared parts along, and the norms with parts='all' or 'norms'",
    )  # fmt: skip
    across_stacks: bool = Field(
        False, description="encoder and decoder share: layers whose block has the same number, where they have the "
        "same weight (cross-attention is the decoder's alone)",
    )  # fmt: skip
    init: Literal["first", "stepwise", "mean", "weighted", "anchored"] = Field(
        "anchored", description="where a block begins: its first layer, an evenly spaced layer, the mean of its "
        "layers, their mean weighted by what each layer's inputs look like (the plain mean without calibration), or "
        "('anchored') that of which one of the block's layers makes up two thirds",
    )  # fmt: skip
    align: Literal["none", "permute", "rotate"] = Field(
        "rotate", description="before layers are averaged, put their neurons and heads into one order, exactly "
        "('permute', or True); 'rotate' also turns every head into one frame where that is exact",
    )  # fmt: skip
    weighting: Literal["auto", "none", "inputs"] = Field(
        "auto", description="whether means and differences are fitted to the layers' outputs on calibration inputs"
    )
    delta_rank: int | None = Field(
        None, ge=0, description="rank of each layer's own difference, cut to what a weight holds (0: strict; None: a "
        "budget chooses, layer by layer; strict without one)",
    )  # fmt: skip
    difference_dtype: StoredDtypeName | None = Field(
        None, description="how differences are kept on disk (None: as the blocks)"
    )
    sweeps: int = Field(
        10, ge=0, description="alternating sweeps between block and differences (0: the block stays where it begins)"
    )
    multiple_of: int = Field(8, ge=1, description="a budget spends ranks on a block's layers in steps of this")

    @field_validator("align", mode="before")
    @classmethod
    def _truth(cls, value: Any) -> Any:
        return {True: "permute", False: "none"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("blocks")
    @classmethod
    def _readable(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and not is_share(value):
            raise ValueError(f"blocks={value!r}: a number of blocks, or a share of the layers such as '1/2'")
        return value

    @field_validator("parts")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        wanted = [value] if isinstance(value, str) else value
        unknown = next((part for part in wanted if part not in (*PARTS, "norms")), None)
        if unknown is not None or not set(wanted) - {"norms"}:
            raise ValueError(f"parts={value!r}: it names one or several of {', '.join(PARTS)}, and 'norms' beside them")
        return value

    @property
    def roles(self) -> set[str]:
        """The roles of the weights that are shared (see :func:`fewfold.methods.shared_layers.places.role_of`)."""
        wanted = [self.parts] if isinstance(self.parts, str) else self.parts
        return set().union(*(PARTS.get(part, set()) for part in wanted))

    @property
    def shares_norms(self) -> bool:
        """Whether norms come from the store."""
        wanted = [self.parts] if isinstance(self.parts, str) else self.parts
        return self.norms_and_biases == "shared" and bool({"all", "norms"} & set(wanted))
