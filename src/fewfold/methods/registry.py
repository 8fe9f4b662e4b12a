"""The known methods, by name."""

from __future__ import annotations

from fewfold.errors import RecipeError
from fewfold.methods.base import Method, MethodConfig
from fewfold.methods.dense.fit import DenseMethod
from fewfold.methods.embedding_autoencoder.fit import EmbeddingAutoencoderMethod
from fewfold.methods.embedding_sharing.fit import EmbeddingSharingMethod
from fewfold.methods.low_rank.fit import LowRankMethod
from fewfold.methods.shared_basis.fit import SharedBasisMethod
from fewfold.methods.shared_factors.fit import SharedFactorsMethod
from fewfold.methods.shared_layers.fit import SharedLayersMethod
from fewfold.methods.subvector_codes.fit import SubvectorCodesMethod
from fewfold.methods.tensor_train.fit import TensorTrainMethod
from fewfold.methods.tucker.fit import TuckerMethod

_ALL: tuple[Method, ...] = (
    LowRankMethod(),
    SharedBasisMethod(),
    SharedFactorsMethod(),
    TuckerMethod(),
    SharedLayersMethod(),
    TensorTrainMethod(),
    SubvectorCodesMethod(),
    EmbeddingAutoencoderMethod(),
    EmbeddingSharingMethod(),
    DenseMethod(),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """The method of this name.

    :raises RecipeError: naming the known methods.
    """
    if name not in METHODS:
        raise RecipeError(f"method={name!r} is unknown; known are {', '.join(sorted(METHODS))}")
    return METHODS[name]


def method_of(config: MethodConfig) -> Method:
    """The method that a config configures."""
    for method in METHODS.values():
        if type(config) is method.config:
            return method
    raise RecipeError(f"{type(config).__name__} belongs to no known method")
