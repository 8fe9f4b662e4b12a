"""The dense twin of a slim language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fewfold.models.slim import SlimEmbedding, SlimSoftmax

if TYPE_CHECKING:
    from fewfold.models.slim_lm.model import SlimLMForCausalLM


@torch.no_grad()
def unslim(model: SlimLMForCausalLM) -> None:
    """Put plain layers with the same rows where slim ones stood; tied ones stay tied."""
    body, config = model.model, model.config
    table: Any = body.embed_tokens
    if isinstance(table, SlimEmbedding):
        body.embed_tokens = table.dense().train(table.training)
        if config.tie_word_embeddings:
            body.embed_tokens.padding_idx = config.pad_token_id
    head = model.lm_head
    if isinstance(head, SlimSoftmax):
        dense = head.dense().train(head.training)
        if config.tie_word_embeddings:
            dense.weight = body.embed_tokens.weight  # type: ignore[assignment]
        model.lm_head = dense
    config.input_codes = config.output_codes = None
    for part in (body, model):
        part.all_tied_weights_keys = part.get_expanded_tied_weights_keys(all_submodels=True)
