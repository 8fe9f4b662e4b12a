"""Weights under the names that the published code gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fewfold.errors import CheckpointError
from fewfold.methods.embedding_sharing.slots import allocate
from fewfold.models.sharebert.configuration import ShareBertConfig
from fewfold.models.sharebert.modeling import ShareBertModel, ShareBertPreTrainedModel

_EMBEDDINGS = {
    "store.table.weight": "word_embeddings.weight",
    "embeddings.factor_norm.weight": "pre_factor_norm.weight",
    "embeddings.factor_norm.bias": "pre_factor_norm.bias",
    "embeddings.factor.weight": "factor_linear.weight",
    "embeddings.factor.bias": "factor_linear.bias",
    "embeddings.norm.weight": "pos_factor_norm.weight",
    "embeddings.norm.bias": "pos_factor_norm.bias",
    "embeddings.positions.weight": "position_embeddings.weight",
    "embeddings.types.weight": "token_type_embeddings.weight",
}
_LAYER = {
    "attention_norm.weight": "PreAttentionLayerNorm.weight",
    "attention_norm.bias": "PreAttentionLayerNorm.bias",
    "output_norm.weight": "PostAttentionLayerNorm.weight",
    "output_norm.bias": "PostAttentionLayerNorm.bias",
    "attention.query.bias": "block.self.query_bias",
    "attention.key.bias": "block.self.key_bias",
    "attention.value.bias": "block.self.value_bias",
    "attention.output.bias": "block.output.bias",
    "intermediate.bias": "intermediate.bias",
    "output.bias": "output.bias",
}
_HEAD = {
    "predictions.dense.weight": "transform.dense_act.weight",
    "predictions.dense.bias": "transform.dense_act.bias",
    "predictions.norm.weight": "transform.LayerNorm.weight",
    "predictions.norm.bias": "transform.LayerNorm.bias",
    "predictions.decoder.weight": "decoder.weight",
    "predictions.decoder.bias": "bias",
}


def reference_config(name: str, **changes: object) -> ShareBertConfig:
    """A preset with the published code's choices: its column order, its head and its fresh numbers."""
    published = {"layout": "reference", "mlm_head": "untied", "bias_init": "normal", "initializer_range": 0.02}
    return ShareBertConfig.preset(name, **{**published, **changes})


@torch.no_grad()
def load_reference_state(model: ShareBertPreTrainedModel, state: Mapping[str, Tensor]) -> list[str]:
    """Copy a state dict of the published code into ``model``, whose layout may be packed.

    The model must share its weights between all layers and, for its masked-LM head to be loaded, have ``untied`` ones.

    :param state: tensors by the published names, with or without the prefix ``bert.``.
    :return: the names of the state that the model has no place for (heads, for example).
    :raises CheckpointError: naming a tensor that is missing or has another shape.
    """
    body = model.base_model
    assert isinstance(body, ShareBertModel)
    config = model.config
    if config.share != "all" or config.materialized:
        raise CheckpointError("the published weights are shared by all layers: take a config with share='all'")
    found = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
    used = set()
    own = dict(body.named_parameters())
    for mine, theirs in _names(body, config):
        _take(own[mine], found, theirs)
        used.add(theirs)
    _take_expansion(body, found)
    used |= {"embeddings.factor_linear_all.weight", "embeddings.factor_linear_all.bias"}
    if hasattr(model, "predictions") and config.mlm_head == "untied":
        mine_by_name = dict(model.named_parameters())
        for mine, theirs in _HEAD.items():
            if f"cls.predictions.{theirs}" in found:
                _take(mine_by_name[mine], found, f"cls.predictions.{theirs}")
                used.add(f"cls.predictions.{theirs}")
    body.store.forget()
    return [name for name in state if name.removeprefix("bert.") not in used]


def _names(body: ShareBertModel, config: ShareBertConfig) -> Iterator[tuple[str, str]]:
    for mine, theirs in _EMBEDDINGS.items():
        yield mine, f"embeddings.{theirs}"
    for layer in range(config.num_hidden_layers):
        for mine, theirs in _LAYER.items():
            yield f"layers.{layer}.{mine}", f"encoder.layer.{layer}.{theirs}"
    if body.norm is not None:
        yield "norm.weight", "encoder.FinalLayerNorm.weight"
        yield "norm.bias", "encoder.FinalLayerNorm.bias"
    if body.pooler is not None:
        yield "pooler.dense.bias", "pooler.bias"


def _take_expansion(body: ShareBertModel, found: Mapping[str, Tensor]) -> None:
    """Slot by slot: from the published columns, right to left, into the model's own."""
    config, expansion = body.config, body.store.expansion
    assert expansion is not None
    shapes = {name: slot.shape for name, slot in body.store.slots.items()}
    published = allocate(shapes, config.carved_rows, "reference", config.hidden_size)
    for kind in ("weight", "bias"):
        mine, name = expansion.get_parameter(kind), f"embeddings.factor_linear_all.{kind}"
        theirs = _tensor(found, name)
        expected = (config.hidden_size, *mine.shape[1:])
        if tuple(theirs.shape) != expected:
            raise CheckpointError(f"{name} has shape {tuple(theirs.shape)}; this config needs {expected}")
        if config.layout == "reference":
            mine.copy_(theirs)
            continue
        for slot, block in body.store.slots.items():
            mine[block.offset : block.end].copy_(theirs[published[slot].offset : published[slot].end])


def _take(mine: Tensor, found: Mapping[str, Tensor], name: str) -> None:
    theirs = _tensor(found, name)
    if theirs.shape != mine.shape:
        raise CheckpointError(f"{name} has shape {tuple(theirs.shape)}; this config needs {tuple(mine.shape)}")
    mine.copy_(theirs)


def _tensor(found: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in found:
        raise CheckpointError(f"the state has no tensor {name}: it is not of this model, or of other sizes")
    return found[name]
