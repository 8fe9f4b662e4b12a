"""SubvectorCodes: a weight as small integers that point into codebooks of sub-vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.base import MethodConfig
from fewfold.stored.dtypes import StoredDtypeName


class SubvectorCodes(MethodConfig):
    """Replace a weight by codes into small codebooks of sub-vectors, both fitted to the weight.

    Every row of a linear map is cut into sub-vectors of ``width`` numbers, each kept as the number of one of ``words``
    codebook entries, times a factor of the row. A table is first turned into short rows of ``rank`` numbers and a map
    back, and those are coded. Calibrated, codes are chosen for the error that real inputs see (linears: the second
    moment of their inputs; tables: token counts and the gradients at their output). Codebooks train; codes stay.
    """

    method: Literal["subvector_codes"] = "subvector_codes"
    stored_dtype: StoredDtypeName = Field("fp16", description="how codebooks (and a table's map) are kept on disk")
    width: int | None = Field(None, ge=1, description="numbers of a sub-vector (None: a budget chooses)")
    words: int | None = Field(
        None,
        ge=2,
        le=65536,
        description="entries of a codebook (None: 256, a code of one byte; a budget tries 64 to 1,024 for linears, and "
        "for a table codebooks of 512 to 4,096 that all positions share)",
    )
    stages: int = Field(1, ge=1, le=8, description="linears: codebooks whose entries add up (residual codes)")
    codebooks: Literal["auto", "matrix", "position"] = Field(
        "auto",
        description="one codebook for a matrix or one for each position; auto: linears the one, tables the other",
    )
    scales: bool | None = Field(None, description="a factor for every row (None: linears have it, tables do not)")
    rank: int | None = Field(
        None,
        ge=1,
        description="tables: numbers of a short row (None: a budget chooses; 0 in effect where width is given)",
    )
    map_dtype: StoredDtypeName | None = Field(
        None, description="tables: how the map back is kept (None: int8 where codebooks are fp16, else as they are)"
    )
    frequent: int | None = Field(
        None,
        ge=0,
        description="tables: so many of the most frequent rows get codes of a further stage (None: a budget "
        "chooses; 0: none)",
    )
    weighting: Literal["auto", "none", "inputs", "inputs_and_outputs"] = Field(
        "auto", description="what the fit minimises, as in LowRank; 'none' the weight's own error (plain k-means)"
    )
    count_power: float = Field(
        0.75, ge=0, le=1, description="tables: rows weigh (smoothed token count) to this power; 0 weighs all equally"
    )
    damping: float = Field(0.3, ge=0, description="linears: share of the mean input energy added in all directions")
    rounds: int = Field(2, ge=0, description="linears: turns of codebooks for codes and codes for codebooks")
    sweeps: int = Field(3, ge=0, description="linears: improvements of every code in a turn")
