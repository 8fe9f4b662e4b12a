"""ShareBERT with heads: masked language modelling, classification of texts and of tokens, question answering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from fewfold.models.sharebert.configuration import ShareBertConfig
from fewfold.models.sharebert.modeling import ShareBertModel, ShareBertPreTrainedModel


class _WithHead(ShareBertPreTrainedModel):
    """The encoder and something on top."""

    pools = False

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.sharebert = ShareBertModel(config, add_pooling_layer=self.pools)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.add_head(config)
        self.post_init()

    def add_head(self, config: ShareBertConfig) -> None:
        """Add what stands on top."""
        raise NotImplementedError(f"{type(self).__name__} has no head")

    def encode(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """The encoder's output, and whether a tuple is asked for."""
        asked = kwargs.pop("return_dict", None)
        plain = asked is False or (asked is None and self.config.return_dict is False)
        return self.sharebert(input_ids, return_dict=True, **kwargs), plain


class ShareBertPredictions(nn.Module):
    """``norm(act(dense(h)))`` times the token table (``factored``), or a matrix of its own (``untied``)."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        width = config.factor_size if config.mlm_head == "factored" else config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(width, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, hidden)`` to ``(…, vocab)``."""
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class ShareBertForMaskedLM(_WithHead):
    """Scores every position over the vocabulary; positions labelled −100 count nothing."""

    _tied_weights_keys = {"predictions.decoder.weight": "sharebert.store.table.weight"}  # noqa: RUF012

    def add_head(self, config: ShareBertConfig) -> None:
        """The prediction head."""
        self.predictions = ShareBertPredictions(config)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        return self.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another decoder there."""
        self.predictions.add_module("decoder", new_embeddings)

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Logits ``(batch, length, vocab)`` and, given labels, the mean cross-entropy.

        With ``config.sparse_prediction`` and labels, only labelled positions are scored, ``(labelled, vocab)``.
        """
        output, plain = self.encode(input_ids, kwargs)
        states, loss = output.last_hidden_state, None
        if labels is not None and self.config.sparse_prediction:
            chosen = labels != -100
            states, labels = states[chosen], labels[chosen]
        logits = self.predictions(states)
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        result = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return result.to_tuple() if plain else result


class ShareBertForSequenceClassification(_WithHead):
    """Classifies the pooled first token; one label is a regression, several may be exclusive or not."""

    pools = True

    def add_head(self, config: ShareBertConfig) -> None:
        """The classifier."""
        self.num_labels = config.num_labels or 2
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Logits ``(batch, labels)`` and, given labels, the loss of ``config.problem_type`` (None: from the labels)."""
        output, plain = self.encode(input_ids, kwargs)
        pooled = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
        logits, loss = self.classifier(self.dropout(pooled)), None
        if labels is not None:
            loss = self._loss(logits, labels)
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return result.to_tuple() if plain else result

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            whole = labels.dtype in (torch.long, torch.int)
            kind = "single_label_classification" if whole else "multi_label_classification"
            kind = "regression" if self.num_labels == 1 else kind
        if kind == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(logits.squeeze(-1).shape))
        if kind == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class ShareBertForTokenClassification(_WithHead):
    """Classifies every token; tokens labelled −100 count nothing."""

    def add_head(self, config: ShareBertConfig) -> None:
        """The classifier."""
        self.num_labels = config.num_labels or 2
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Logits ``(batch, length, labels)`` and, given labels, the mean cross-entropy."""
        output, plain = self.encode(input_ids, kwargs)
        logits = self.classifier(self.dropout(output.last_hidden_state))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        result = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return result.to_tuple() if plain else result


class ShareBertForQuestionAnswering(_WithHead):
    """Scores every token as the first and the last of an answer; texts need ``max_position_embeddings`` to match."""

    def add_head(self, config: ShareBertConfig) -> None:
        """Two outputs."""
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Two logits ``(batch, length)`` and, given positions, the mean of both cross-entropies.

        Positions outside of the text count nothing.
        """
        output, plain = self.encode(input_ids, kwargs)
        start, end = (side.squeeze(-1) for side in self.qa_outputs(output.last_hidden_state).split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_place_loss(start, start_positions) + _place_loss(end, end_positions)) / 2
        result = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, hidden_states=output.hidden_states,
            attentions=output.attentions,
        )  # fmt: skip
        return result.to_tuple() if plain else result


def _place_loss(logits: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy of the right places ``(batch,)``; those outside of the text are left out."""
    length = logits.shape[1]
    return F.cross_entropy(logits, places.flatten().clamp(0, length), ignore_index=length)
