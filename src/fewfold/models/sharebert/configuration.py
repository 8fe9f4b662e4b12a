"""Sizes and choices of a ShareBERT model, and the sizes that the paper's models have."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from fewfold.errors import RecipeError
from fewfold.methods.embedding_sharing.slots import Slot, allocate, columns_needed
from fewfold.methods.embedding_sharing.store import balanced_std

ROLES = ("query", "key", "value", "intermediate", "output", "attention_output")

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1024, "factor_size": 16, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "small": {"factor_size": 128, "num_hidden_layers": 12},
    "base": {"factor_size": 384, "num_hidden_layers": 12},
    "large": {"factor_size": 768, "num_hidden_layers": 6},
}  # fmt: skip


class ShareBertConfig(PretrainedConfig):
    """What a ShareBERT model is made of; the defaults are the small model, in a packed layout.

    :param vocab_size: rows of the token table.
    :param factor_size: width of the token table.
    :param hidden_size: width of the model.
    :param max_position_embeddings: the longest text in tokens (128 as published; question answering wants 384 or more).
    :param norm_position: ``pre`` normalises before attention and feed-forward (and once at the end), ``post`` after the
        residual sums.
    :param attention_scale_power: scores are divided by head size to this power (published code: 2/3; usual: 1/2).
    :param share: ``all`` layers have the same carved weights, ``none`` do, or this many neighbours.
    :param layout: columns of the expanded table: ``packed`` has as many as are used, ``reference`` has ``hidden_size``,
        used from the last one leftwards.
    :param carved_rows: rows of the table that are carved (None: all at the time of creation); tokens that are added
        later are not.
    :param use_pooler: whether there are columns for a pooler.
    :param pooler_activation: None as published, or for example ``tanh``.
    :param mlm_head: ``factored`` maps to ``factor_size`` and multiplies by the token table; ``untied`` is the published
        one, with a ``(vocab, hidden)`` matrix of its own.
    :param sparse_prediction: given labels, score only the labelled positions: logits are then ``(labelled, vocab)``.
    :param bias_init: of the layers' own biases: ``zeros``, or ``normal`` with variance 1, the same in every layer, as
        the published code has it.
    :param initializer_range: standard deviation of fresh tensors. None: such that carved weights have variance
        1 / (3 · hidden_size), as PyTorch's own layers; published: 0.02, with which they are far smaller and learn late.
    :param carving_init: of the expansion: ``plain`` as the table, or ``scaled``, for carved weights of variance
        1 / (3 · in) with their own inputs.
    :param materialized: whether the carved weights are stored instead of what they were carved from.
    :raises RecipeError: naming the value that cannot work.
    """

    model_type = "sharebert"

    def __init__(
        self,
        vocab_size: int = 30528,
        factor_size: int = 128,
        hidden_size: int = 2048,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 16,
        intermediate_size: int = 4096,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 128,
        type_vocab_size: int = 2,
        initializer_range: float | None = None,
        layer_norm_eps: float = 1e-5,
        norm_position: str = "pre",
        attention_scale_power: float = 2 / 3,
        share: str | int = "all",
        layout: str = "packed",
        carved_rows: int | None = None,
        use_pooler: bool = True,
        pooler_activation: str | None = None,
        mlm_head: str = "factored",
        sparse_prediction: bool = False,
        bias_init: str = "zeros",
        carving_init: str = "plain",
        classifier_dropout: float | None = None,
        materialized: bool = False,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.factor_size, self.hidden_size = vocab_size, factor_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size, self.hidden_act = intermediate_size, hidden_act
        self.hidden_dropout_prob, self.attention_probs_dropout_prob = hidden_dropout_prob, attention_probs_dropout_prob
        self.max_position_embeddings, self.type_vocab_size = max_position_embeddings, type_vocab_size
        if initializer_range is None:
            initializer_range = balanced_std(hidden_size, factor_size)
        self.initializer_range, self.layer_norm_eps = initializer_range, layer_norm_eps
        self.norm_position, self.attention_scale_power = norm_position, attention_scale_power
        self.share, self.layout = share, layout
        self.carved_rows = vocab_size if carved_rows is None else carved_rows
        self.use_pooler, self.pooler_activation = use_pooler, pooler_activation
        self.mlm_head, self.sparse_prediction, self.bias_init = mlm_head, sparse_prediction, bias_init
        self.carving_init = carving_init
        self.classifier_dropout, self.materialized = classifier_dropout, materialized
        kwargs["tie_word_embeddings"] = mlm_head == "factored"
        kwargs["pad_token_id"] = pad_token_id
        super().__init__(**kwargs)
        self._check()
        _register_models()

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ShareBertConfig:
        """The sizes of the published models (``small``, ``base``, ``large``), or ``tiny`` for tests.

        :param changes: other values, which win.
        :raises RecipeError: for another name.
        """
        if name not in PRESETS:
            raise RecipeError(f"ShareBertConfig.preset({name!r}) is unknown; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from the defaults, and the carved rows: their default is the vocabulary's present size."""
        return {**super().to_diff_dict(), "carved_rows": self.carved_rows}

    def slots(self) -> dict[str, Slot]:
        """The columns of every carved weight, by name.

        :raises RecipeError: if the layout has too few.
        """
        shapes = self._shapes()
        columns = self.hidden_size if self.layout == "reference" else None
        needed = columns_needed(shapes, self.carved_rows)
        if columns is not None and needed > columns:
            raise RecipeError(
                f"ShareBertConfig(layout='reference', share={self.share!r}): the weights take {needed} columns of "
                f"{self.carved_rows} numbers, and there are hidden_size={columns}; take layout='packed', or let more "
                "layers share"
            )
        return allocate(shapes, self.carved_rows, "reference" if columns else "packed", columns)

    @property
    def carved_columns(self) -> int:
        """Columns of the expanded table."""
        return self.hidden_size if self.layout == "reference" else columns_needed(self._shapes(), self.carved_rows)

    def slot(self, layer: int, role: str) -> str:
        """The slot of one weight of a layer."""
        if self.share == "all":
            return role
        return f"{layer if self.share == 'none' else layer // int(self.share) * int(self.share)}.{role}"

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by slot, ``(in, out)``, in the order of the reference."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_hidden_layers):
            for role in ROLES:
                wide = {"intermediate": (hidden, inner), "output": (inner, hidden)}
                shapes[self.slot(layer, role)] = wide.get(role, (hidden, hidden))
        if self.use_pooler:
            shapes["pooler"] = (hidden, hidden)
        return shapes

    def _check(self) -> None:
        allowed = {
            "norm_position": ("pre", "post"), "layout": ("packed", "reference"), "mlm_head": ("factored", "untied"),
            "bias_init": ("zeros", "normal"), "carving_init": ("plain", "scaled"),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise RecipeError(f"ShareBertConfig({name}={getattr(self, name)!r}): it must be one of {values}")
        if self.share not in ("all", "none") and not (isinstance(self.share, int) and self.share >= 1):
            raise RecipeError(f"ShareBertConfig(share={self.share!r}): give 'all', 'none', or how many layers share")
        if self.hidden_size % self.num_attention_heads:
            raise RecipeError(
                f"ShareBertConfig(hidden_size={self.hidden_size}): it must be a multiple of num_attention_heads="
                f"{self.num_attention_heads}"
            )
        if not self.materialized and not 0 < self.carved_rows <= self.vocab_size:
            raise RecipeError(
                f"ShareBertConfig(carved_rows={self.carved_rows}): the table has vocab_size={self.vocab_size} rows, "
                "and hidden weights are carved out of them; a smaller vocabulary needs a materialized model"
            )


def _register_models() -> None:
    """Let the Auto classes know the models, as soon as somebody has a config."""
    from fewfold.models.sharebert.registration import register_models

    register_models()
