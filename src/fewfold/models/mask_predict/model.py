"""The mask-predict model: Marian's encoder and decoder, the decoder seeing both sides, and a head for the length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.marian.modeling_marian import MarianModel, MarianPreTrainedModel

from fewfold.models.mask_predict.config import MaskPredictConfig
from fewfold.models.mask_predict.rounds import mask_predict

IGNORED = -100


class MaskPredictModel(MarianPreTrainedModel):
    """A conditional masked language model (Ghazvininejad et al., EMNLP 2019), over a joint vocabulary.

    The length of a translation, its end token included, is read off the source's mean state; several lengths can be
    tried, and the translation with the highest mean log-probability is taken.
    """

    config_class = MaskPredictConfig
    config: MaskPredictConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_missing = [  # noqa: RUF012  # transformers' own form
        "model.encoder.embed_positions.weight",
        "model.decoder.embed_positions.weight",
    ]
    _keys_to_ignore_on_save = _keys_to_ignore_on_load_missing
    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.shared.weight",
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    }

    def __init__(self, config: MaskPredictConfig) -> None:
        if not config.share_encoder_decoder_embeddings:
            raise ValueError("share_encoder_decoder_embeddings=False: mask-predict needs a joint vocabulary")
        super().__init__(config)
        self.model = MarianModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.length_head = nn.Linear(config.d_model, 2 * config.length_span + 1)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Both sides look up one table, whatever the config says of the head."""
        if all_submodels or self.config.tie_word_embeddings:
            return super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return {user: home for user, home in (self._tied_weights_keys or {}).items() if user != "lm_head.weight"}

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.lm_head = new_embeddings  # type: ignore[assignment]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As every model's; both sides have one vocabulary."""
        table: Any = super().resize_token_embeddings(*args, **kwargs)
        self.config.decoder_vocab_size = table.num_embeddings
        return table

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None, encoder_outputs: BaseModelOutput | None = None,
        labels: Tensor | None = None, use_cache: bool | None = None, **kwargs: Any,
    ) -> Seq2SeqLMOutput:  # fmt: skip
        """Score the token at every place, each place seeing all others.

        :param input_ids: Source tokens, `(batch, source tokens)`.
        :param attention_mask: Ones on source tokens; None: all are real.
        :param decoder_input_ids: Target tokens, some masked, padded with the padding id, `(batch, tokens)`.
        :param encoder_outputs: The source's states, where they are known.
        :param labels: Tokens at the masked places, -100 elsewhere.
        :return: Logits `(batch, tokens, vocabulary)`, and the loss where labels are given.
        :raises ValueError: If there is no source, or there are no target tokens.
        """
        if decoder_input_ids is None or (input_ids is None and encoder_outputs is None):
            raise ValueError("give input_ids or encoder_outputs, and decoder_input_ids with mask tokens")
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_ids=input_ids, attention_mask=attention_mask)
        states, real = encoder_outputs[0], decoder_input_ids.ne(int(self.config.pad_token_id or 0))
        hidden = self.model.decoder(
            input_ids=decoder_input_ids, attention_mask=_both_sides(real, states.dtype),
            encoder_hidden_states=states, encoder_attention_mask=attention_mask, use_cache=False,
        ).last_hidden_state  # fmt: skip
        logits = self.lm_head(hidden)
        loss = None if labels is None else cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=states)

    def length_logits(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of the target's length minus the source's, from -span to span, `(batch, 2 · span + 1)`."""
        weights = attention_mask.to(states.dtype)[..., None]
        return self.length_head((states * weights).sum(dim=1) / weights.sum(dim=1))

    def training_loss(self, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy a masked token, of each sentence 1 to all at random, and of the length.

        :param batch: `input_ids`, `attention_mask`, and `labels` with -100 as padding.
        :param label_smoothing: Share of a label's weight that is spread over the vocabulary.
        :return: A scalar.
        """
        labels, real = batch["labels"], batch["labels"] != IGNORED
        lengths = real.sum(dim=1)
        count = 1 + (torch.rand(len(labels), device=labels.device) * lengths).long().clamp(max=lengths - 1)
        ranks = torch.rand(labels.shape, device=labels.device).masked_fill(~real, 2.0).argsort(1).argsort(1)
        hidden = ranks < count[:, None]
        tokens = labels.masked_fill(~real, int(self.config.pad_token_id or 0))
        output = self(
            batch["input_ids"], batch["attention_mask"], tokens.masked_fill(hidden, self.config.mask_token_id)
        )
        loss = cross_entropy(output.logits[hidden].float(), labels[hidden], label_smoothing=label_smoothing)
        span = self.config.length_span
        wanted = (lengths - batch["attention_mask"].sum(dim=1)).clamp(-span, span) + span
        scores = self.length_logits(output.encoder_last_hidden_state, batch["attention_mask"])  # type: ignore[arg-type]
        return loss + self.config.length_weight * cross_entropy(scores.float(), wanted)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, num_beams: int = 1,
        max_new_tokens: int | None = None, rounds: int | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Translate all tokens at once, in some rounds.

        :param input_ids: Source tokens, `(batch, source tokens)`, padded on the right.
        :param attention_mask: Ones on source tokens; None: found by the padding id.
        :param num_beams: Lengths that are tried, the likeliest ones.
        :param max_new_tokens: Tokens at most.
        :param rounds: See :func:`mask_predict`; None: as the config says.
        :return: Tokens `(batch, longest)`, padded.
        """
        pad, span = int(self.config.pad_token_id or 0), self.config.length_span
        mask = (input_ids != pad).long() if attention_mask is None else attention_mask
        states = self.model.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        tried = min(num_beams, 2 * span + 1)
        lengths = mask.sum(1, keepdim=True) + self.length_logits(states, mask).topk(tried).indices - span
        limit = min(max_new_tokens or 10**9, self.config.max_position_embeddings)
        lengths = lengths.clamp(1, limit).flatten()
        states, mask = (tensor.repeat_interleave(tried, dim=0) for tensor in (states, mask))
        outputs = BaseModelOutput(last_hidden_state=states)
        never = [pad, self.config.mask_token_id, int(self.config.decoder_start_token_id)]

        def predict(tokens: Tensor) -> Tensor:
            logits = self(attention_mask=mask, encoder_outputs=outputs, decoder_input_ids=tokens).logits.float()
            logits[..., never] = -torch.inf
            return logits.log_softmax(dim=-1)

        real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        tokens, scores = mask_predict(predict, real, self.config.mask_token_id, pad, rounds or self.config.rounds)
        best = scores.view(-1, tried).argmax(dim=1)
        return tokens.view(len(best), tried, -1)[torch.arange(len(best), device=best.device), best]


def _both_sides(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Real tokens to what is added to attention scores, `(batch, 1, tokens, tokens)`: no order, padding hidden."""
    hidden = torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill(~real, torch.finfo(dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, real.shape[1], -1)
