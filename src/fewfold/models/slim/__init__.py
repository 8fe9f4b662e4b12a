"""Layers whose tables are built from few shared sub-vectors, trained from scratch, for any model."""

from fewfold.models.slim.embedding import SlimEmbedding
from fewfold.models.slim.sizes import SlimCodes
from fewfold.models.slim.softmax import SlimSoftmax

__all__ = ["SlimCodes", "SlimEmbedding", "SlimSoftmax"]
