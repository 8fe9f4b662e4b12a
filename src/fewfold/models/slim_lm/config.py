"""The configuration of a recurrent language model."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from fewfold.errors import ModelError
from fewfold.models.slim.sizes import SlimCodes

_DROPOUTS = ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_dropout")


class SlimLMConfig(PreTrainedConfig):
    """An LSTM, GRU or gated convolutional language model with slim or dense input and output layers.

    ``input_codes`` and ``output_codes`` are None for dense layers, or a dict: ``positions`` (K), one size
    (``words``, ``pool_size``, ``ratio``, ``numbers`` or ``bytes``; see :class:`~fewfold.models.SlimCodes`), ``pool``
    (``positions``, or ``free`` for the input), ``seed`` and ``stored_dtype``. They are kept with ``words``, whatever
    size was given. Seeds are 0 for the input and 1 for the output unless given.

    :param vocab_size: words.
    :param embedding_size: width of the input table; as ``hidden_size`` unless given.
    :param hidden_size: width of a cell.
    :param num_layers: recurrent layers.
    :param cell: ``lstm``, ``gru`` or ``gated_conv`` (Dauphin et al., 2017).
    :param projection_size: every layer's output is projected to so many numbers; an LSTM also feeds them back
        (Sak et al., 2014), a GRU does not.
    :param kernel_size: words that a gated convolution reads.
    :param tie_word_embeddings: one table for input and output; its width is then that of the last layer's output.
    :param output_bias: whether every word has a bias in the output layer.
    :param embedding_dropout: share of words whose vectors are dropped as a whole.
    :param input_dropout: dropout of looked-up vectors.
    :param hidden_dropout: dropout between layers.
    :param output_dropout: dropout of what the last layer gives.
    :param weight_dropout: dropout of the recurrent matrices, one mask for all steps (Merity et al., 2018).
    :param variational: input, hidden and output dropout use one mask for all steps (Gal and Ghahramani, 2016).
    :param initializer_range: standard deviation of fresh tables and sub-vectors.
    :param loss: ``full`` softmax, or in training ``sampled`` softmax or ``nce``; evaluation is always ``full``.
    :param loss_chunk: tokens whose logits exist at one time.
    :param loss_samples: noise words of a batch.
    :param loss_noise: ``log_uniform`` (word ids fall in frequency) or ``unigram`` (after ``set_word_counts``).
    :param loss_log_normalizer: constant log Z that NCE takes off every logit; log(vocab_size) unless given.
    :param return_logits: give all logits beside the loss where there are labels, as Trainer's ``compute_metrics`` needs
        them; a loss alone never holds them all.
    :raises ModelError: naming the value and what is allowed.
    """

    model_type = "slim_lm"
    attribute_map: ClassVar = {"num_hidden_layers": "num_layers"}
    keys_to_ignore_at_inference: ClassVar = ["state"]

    def __init__(
        self,
        vocab_size: int = 10000,
        embedding_size: int | None = None,
        hidden_size: int = 512,
        num_layers: int = 1,
        cell: str = "lstm",
        projection_size: int | None = None,
        kernel_size: int = 4,
        tie_word_embeddings: bool = False,
        output_bias: bool = True,
        embedding_dropout: float = 0.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        variational: bool = False,
        input_codes: dict[str, Any] | None = None,
        output_codes: dict[str, Any] | None = None,
        initializer_range: float = 0.05,
        loss: str = "full",
        loss_chunk: int = 256,
        loss_samples: int = 1024,
        loss_noise: str = "log_uniform",
        loss_log_normalizer: float | None = None,
        return_logits: bool = False,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_layers = vocab_size, hidden_size, num_layers
        self.embedding_size = hidden_size if embedding_size is None else embedding_size
        self.cell, self.projection_size, self.kernel_size = cell, projection_size, kernel_size
        self.output_bias = output_bias
        self.embedding_dropout, self.input_dropout = embedding_dropout, input_dropout
        self.hidden_dropout, self.output_dropout = hidden_dropout, output_dropout
        self.weight_dropout, self.variational = weight_dropout, variational
        self.initializer_range = initializer_range
        self.loss, self.loss_chunk, self.loss_samples = loss, loss_chunk, loss_samples
        self.loss_noise, self.loss_log_normalizer = loss_noise, loss_log_normalizer
        self.return_logits, self.use_cache = return_logits, use_cache
        self.input_codes, self.output_codes = input_codes, output_codes
        self.tie_word_embeddings = tie_word_embeddings
        self._check()
        self._settle_codes()
        tokens = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **tokens, **kwargs})

    @property
    def output_size(self) -> int:
        """Width of the last layer's output, and of the output table."""
        return self.hidden_size if self.projection_size is None else self.projection_size

    def _check(self) -> None:
        positive: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "vocab_size",
                "hidden_size",
                "embedding_size",
                "num_layers",
                "kernel_size",
                "loss_chunk",
                "loss_samples",
            )
        }
        if self.projection_size is not None:
            positive["projection_size"] = self.projection_size
        for name, value in positive.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"SlimLMConfig({name}={value!r}): it must be a whole number, at least 1")
        for name in _DROPOUTS:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ModelError(f"SlimLMConfig({name}={value!r}): it must be at least 0 and below 1")
        for name, allowed in (
            ("cell", ("lstm", "gru", "gated_conv")),
            ("loss", ("full", "sampled", "nce")),
            ("loss_noise", ("log_uniform", "unigram")),
        ):
            if getattr(self, name) not in allowed:
                raise ModelError(f"SlimLMConfig({name}={getattr(self, name)!r}): allowed are {', '.join(allowed)}")
        if self.cell == "gated_conv" and (self.projection_size is not None or self.weight_dropout):
            raise ModelError(
                f"SlimLMConfig(cell='gated_conv', projection_size={self.projection_size}, weight_dropout="
                f"{self.weight_dropout}): both are of recurrent cells; leave them out"
            )
        if self.cell == "lstm" and self.projection_size is not None and self.projection_size >= self.hidden_size:
            raise ModelError(
                f"SlimLMConfig(projection_size={self.projection_size}): an LSTM projects to fewer numbers than its "
                f"hidden_size={self.hidden_size}"
            )
        if self.tie_word_embeddings and self.embedding_size != self.output_size:
            raise ModelError(
                f"SlimLMConfig(tie_word_embeddings=True): the table has {self.embedding_size} columns, the last layer "
                f"gives {self.output_size} numbers; make them equal, for example with projection_size"
            )

    def _settle_codes(self) -> None:
        if self.tie_word_embeddings:
            if self.output_codes is not None and self.output_codes != self.input_codes:
                raise ModelError(
                    "SlimLMConfig(tie_word_embeddings=True): there is one table; leave output_codes as None and give "
                    "its codes as input_codes"
                )
            self.output_codes = None
        for name, columns, seed in (("input_codes", self.embedding_size, 0), ("output_codes", self.output_size, 1)):
            given = getattr(self, name)
            if given is None:
                continue
            given = given.to_dict() if isinstance(given, SlimCodes) else given
            if not isinstance(given, dict):
                raise ModelError(f"SlimLMConfig({name}={given!r}): a dict such as {{'positions': 8, 'ratio': 10}}")
            try:
                codes = SlimCodes.from_dict({"seed": seed, **given}, self.vocab_size, columns)
            except ModelError as error:
                raise ModelError(f"SlimLMConfig({name}={given}): {error}") from None
            product = name == "output_codes" or self.tie_word_embeddings
            if product and codes.pool == "free":
                raise ModelError(
                    f"SlimLMConfig({name}={given}): a free pool serves look-ups only; take pool='positions' for an "
                    "output layer"
                )
            setattr(self, name, codes.to_dict())
