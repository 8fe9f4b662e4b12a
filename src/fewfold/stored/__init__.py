"""Stored tensors: in which dtype a stored tensor is kept, and the leaf modules that keep it."""

from fewfold.stored.dtypes import StoredDtype
from fewfold.stored.modules import (
    StoredEmbedding,
    StoredLinear,
    StoredMatrix,
    make_embedding,
    make_linear,
    pack,
    unpack,
)

__all__ = [
    "StoredDtype",
    "StoredEmbedding",
    "StoredLinear",
    "StoredMatrix",
    "make_embedding",
    "make_linear",
    "pack",
    "unpack",
]
