"""Dense: a weight as it is, kept in fewer bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.base import MethodConfig
from fewfold.stored.dtypes import StoredDtypeName


class Dense(MethodConfig):
    """Keep a weight as one matrix in a smaller stored dtype (int8 a row by default), without factoring it.

    The rival of every factored form, and its companion in a recipe: for example embeddings in int8 beside low-rank
    linears.
    """

    method: Literal["dense"] = "dense"
    stored_dtype: StoredDtypeName = Field("int8", description="how the weight is kept on disk")
