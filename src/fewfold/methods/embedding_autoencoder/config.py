"""EmbeddingAutoencoder: a token table as short latents and one decoder, fitted for direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from fewfold.methods.base import MethodConfig

Activation = Literal["linear", "elu"]
TRAINING_FIELDS = ("start", "encoder_activation", "epochs", "batch_rows", "learning_rate", "validation")


class EmbeddingAutoencoder(MethodConfig):
    """Replace a token table by latents and a decoder: ``rows = activation(latents · decoderᵀ + b)``.

    The fit keeps the rows' directions: ``subspace`` finds the best linear decoder in closed steps; ``published``
    trains an auto-encoder as Bałazy et al. (RepL4NLP 2021) do, and needs minutes where the other needs seconds.
    """

    method: Literal["embedding_autoencoder"] = "embedding_autoencoder"
    targets: str | list[str] = Field("embeddings", description="token tables: 'embeddings', or names and patterns")
    rank: int | None = Field(None, ge=1, description="numbers of a latent (None: a budget chooses)")
    multiple_of: int = Field(1, ge=1, description="ranks that a budget chooses are multiples of this")
    solver: Literal["subspace", "published"] = Field(
        "subspace", description="closed steps for the directions, or the published training"
    )
    mean_row: bool = Field(True, description="whether the decoder has a bias: a row that is added to every row")
    decoder_activation: Activation = Field("linear", description="what follows the decoder, also in the model")
    weighting: Literal["auto", "none", "counts"] = Field(
        "auto",
        description="'none' weighs all rows alike, 'counts' by how often calibration texts look them up; 'auto' counts "
        "where there are texts, but as published not at all",
    )
    count_power: float = Field(1.0, ge=0, le=1, description="rows weigh (smoothed token count) to this power")
    start: Literal["default", "svd"] = Field(
        "default", description="published: where training starts, fresh linear layers or the table's SVD"
    )
    encoder_activation: Activation = Field("linear", description="published: what follows the encoder, in the fit only")
    epochs: int = Field(30, ge=1, description="published: times that every row is seen")
    batch_rows: int = Field(32, ge=1, description="published: rows in a step")
    learning_rate: float = Field(1e-3, gt=0, description="published: Adam's, halved every four epochs")
    seed: int = Field(1, description="published: of fresh layers and the order of rows")
    validation: Callable[[Tensor], float] | None = Field(
        None,
        exclude=True,
        repr=False,
        description="published: how much worse a reconstructed table (vocab, dim) is than none on held-out data, such "
        "as the model's loss on validation texts; the epoch where it is least is kept (None: the training loss over "
        "the whole table). Python only, and not recorded",
    )

    @model_validator(mode="after")
    def _trained_or_not(self) -> EmbeddingAutoencoder:
        if self.solver == "subspace":
            for name in TRAINING_FIELDS:
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise ValueError(f"{name}={value!r} is for solver='published'; solver='subspace' trains nothing")
        return self
