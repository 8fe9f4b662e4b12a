"""EmbeddingSharing: hidden weights out of the token table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewfold.methods.base import MethodConfig
from fewfold.methods.embedding_sharing.modules import Head
from fewfold.methods.embedding_sharing.slots import Order


class EmbeddingSharing(MethodConfig):
    """Carve hidden weights out of the token table, or of a linear expansion of it that is never stored.

    For training from scratch (``compress(model, EmbeddingSharing(), fit=False)``): no fit keeps pretrained weights.
    Linear maps, Conv1d, Conv2d, LSTM and GRU are carved out of the token table that is nearest by name. Vocabulary
    heads stay dense: the model's output layer, and a linear map outside of all layers with as many outputs as the table
    has rows. Source: Hu et al., ShareBERT (AAAI 2024), where the two forms are called VEPS (``expansion=True``) and
    EPS.
    """

    method: Literal["embedding_sharing"] = "embedding_sharing"
    targets: str | list[str] = Field("all", description="a token table and the weights to carve out of it")
    expansion: bool = Field(
        True, description="carve a learned expansion of the table (VEPS), or the table itself (EPS)"
    )
    expansion_bias: bool = Field(True, description="whether the expansion has a bias")
    share: Literal["all", "none"] | int = Field(
        "all", description="layers that share their weights: all of a stack, none, or this many neighbours"
    )
    order: Order = Field(
        "packed",
        description="'packed': just the columns that are used, left to right; 'reference': as many columns as the "
        "model is wide, right to left",
    )
    factor_size: int | None = Field(
        None, ge=1, description="width of the stored table; its rows are mapped to the model's width (None: as wide)"
    )
    factor_norms: bool = Field(True, description="factor_size: normalise rows before and after the map")
    head: Head = Field(
        "rows",
        description="factor_size: tied heads multiply by the input rows, or ('factored') by the short rows after a map "
        "of their own",
    )
    init: Literal["plain", "scaled"] = Field(
        "plain", description="of the expansion: 'plain' as the table, 'scaled' for carved weights of variance 1/(3 in)"
    )
    init_std: float | None = Field(
        None, gt=0, description="standard deviation of fresh tables and maps (None: carved weights begin with variance "
        "1/(3 width) as PyTorch's layers do; published: 0.02)",
    )  # fmt: skip
    bias_init: Literal["model", "zeros", "normal"] = Field(
        "model", description="of carved weights' biases: as the model has them, 0, or normal with variance 1, equal "
        "in all layers, as the reference's are",
    )  # fmt: skip
    from_scratch: bool = Field(False, description="replace weights that came from from_pretrained, and lose them")

    @model_validator(mode="after")
    def _fits_together(self) -> EmbeddingSharing:
        if isinstance(self.share, int) and not isinstance(self.share, bool) and self.share < 1:
            raise ValueError(
                f"share={self.share}: give 'all', 'none', or how many neighbouring layers share (1 or more)"
            )
        if not self.expansion and (self.factor_size is not None or self.init == "scaled"):
            raise ValueError(
                "factor_size and init='scaled' are for expansion=True; without it the table itself is carved"
            )
        if self.head == "factored" and self.factor_size is None:
            raise ValueError("head='factored' needs factor_size: a table as wide as the model is multiplied directly")
        return self
