"""ALBERT and BERT, in both directions and with their weights.

Both are the same encoder: post-norm layers, learned positions, a pooler. ALBERT runs groups of layers several times,
and maps its embeddings to the layers' width by a linear map that BERT does not have (Lan et al., ICLR 2020).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.densify import densify
from fewfold.compress import compress
from fewfold.convert.names import albert_names, bert_names, electra_names
from fewfold.errors import TargetError
from fewfold.methods.shared_layers.config import SharedLayers

HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
         "ForMultipleChoice")  # fmt: skip
MAPPING = "embedding_hidden_mapping_in"


def to_albert(model: nn.Module) -> Any:
    """An ALBERT with the outputs of a BERT, as a new model.

    Layers that are equal become one, as far as ALBERT's groups allow: of a BERT that shares all layers (with norms
    and biases) one layer is left, of runs of equal layers a group each, of a cycle an inner stack; any other BERT
    becomes an ALBERT of as many groups as it has layers. The embeddings are as wide as the layers, and the map between
    is the identity.

    :param model: a ``BertModel``, or one with a head for masked language modelling, classification of sequences or
        tokens, question answering or multiple choice; shared or otherwise compressed by fewfold, or plain.
    :raises TargetError: if the model is of another class, or a decoder.
    """
    kind = _kind(model, "Bert")
    config: Any = model.config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise TargetError(f"{type(model).__name__} is a decoder (is_decoder, add_cross_attention); ALBERT has none")
    state, _ = _plain_state(model)
    layers = _layers(state, "encoder.layer.", config.num_hidden_layers)
    runs, groups, inner = _fewest(layers)
    albert_config = transformers.AlbertConfig(
        embedding_size=config.hidden_size, num_hidden_layers=runs, num_hidden_groups=groups, inner_group_num=inner,
        classifier_dropout_prob=_dropout(config.classifier_dropout, config.hidden_dropout_prob), **_common(config),
    )  # fmt: skip
    new = getattr(transformers, f"Albert{kind}")(albert_config)
    renamed = {
        found: tensor
        for name, tensor in state.items()
        for found in albert_names(name, lambda layer: _place(layer, runs, groups, inner))
    }
    prefix = "" if kind == "Model" else "albert."
    renamed[f"{prefix}encoder.{MAPPING}.weight"] = torch.eye(config.hidden_size)
    renamed[f"{prefix}encoder.{MAPPING}.bias"] = torch.zeros(config.hidden_size)
    return _filled(new, renamed, model)


def from_albert(model: nn.Module, shared: bool = False) -> Any:
    """A BERT with the outputs of an ALBERT, as a new model, every layer with weights of its own.

    Where ALBERT maps narrow embeddings to the layers' width, BERT cannot follow: an ``AlbertModel`` then becomes an
    ``ElectraModel``, which is a BERT with such a map and without pooler.

    :param model: an ``AlbertModel``, or one with a head as in :func:`to_albert`.
    :param shared: let the new model's layers share their weights as the ALBERT's do (see ``SharedLayers``).
    :raises TargetError: if the model is of another class, or maps its embeddings and has a head, or maps them between
        equal widths.
    """
    kind = _kind(model, "Albert")
    config: Any = model.config
    state, prefix = _plain_state(model)
    mapping, shift = (state.pop(f"{prefix}encoder.{MAPPING}.{name}") for name in ("weight", "bias"))
    identity = mapping.shape[0] == mapping.shape[1] and not bool(shift.any())
    identity = identity and torch.equal(mapping, torch.eye(len(mapping), dtype=mapping.dtype, device=mapping.device))
    runs, groups, inner = config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num
    blocks = [_place(layer, runs, groups, inner) for layer in range(runs * inner)]
    dropout = {"classifier_dropout": config.classifier_dropout_prob, "num_hidden_layers": len(blocks)}
    if identity:
        new = getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**dropout, **_common(config)))
        renamed = {found: tensor for name, tensor in state.items() for found in bert_names(name, blocks)}
    else:
        _check_electra(kind, config)
        electra = transformers.ElectraConfig(embedding_size=config.embedding_size, **dropout, **_common(config))
        new = transformers.ElectraModel(electra)
        renamed = {found: tensor for name, tensor in state.items() for found in electra_names(name, blocks)}
        renamed.update({"embeddings_project.weight": mapping, "embeddings_project.bias": shift})
    new = _filled(new, renamed, model)
    if shared:
        numbers = {place: number for number, place in enumerate(dict.fromkeys(blocks))}
        config_of_blocks = SharedLayers(
            targets="*encoder.layer.*", map=[numbers[place] for place in blocks], norms_and_biases="shared",
            init="first", align="none", weighting="none", delta_rank=0,
        )  # fmt: skip
        compress(new, config_of_blocks)
    return new


def _check_electra(kind: str, config: Any) -> None:
    widths = f"embeddings of {config.embedding_size} to layers of {config.hidden_size}"
    if kind != "Model":
        raise TargetError(
            f"Albert{kind} maps {widths}, which no BERT with a head does: convert its body (model.albert), or train "
            "with the embeddings as wide as the layers"
        )
    if config.embedding_size == config.hidden_size:
        raise TargetError(f"AlbertModel maps {widths} by a matrix that is not the identity; BERT and ELECTRA cannot")


def _kind(model: nn.Module, family: str) -> str:
    name = type(model).__name__
    kind = name.removeprefix(family)
    if not name.startswith(family) or kind not in HEADS or not type(model).__module__.startswith("transformers."):
        raise TargetError(f"{name} is none of {', '.join(family + head for head in HEADS)}")
    return kind


def _plain_state(model: Any) -> tuple[dict[str, Tensor], str]:
    """Every tensor of the plain model by name, and what the body's names begin with."""
    if structure_of(model) is not None:
        model = densify(copy.deepcopy(model))
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}, prefix


def _layers(state: dict[str, Tensor], place: str, count: int) -> list[int]:
    """By layer: the first layer that is equal to it."""
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in state.items():
        if place in name:
            number, _, rest = name.partition(place)[2].partition(".")
            found[int(number)][rest] = tensor
    return [
        next(
            first
            for first in range(layer + 1)
            if all(torch.equal(found[first][name], tensor) for name, tensor in found[layer].items())
        )
        for layer in range(count)
    ]


def _place(layer: int, runs: int, groups: int, inner: int) -> tuple[int, int]:
    """The group of an executed layer and its number inside of it, as ALBERT finds them."""
    return int(layer // inner / (runs / groups)), layer % inner


def _fewest(layers: list[int]) -> tuple[int, int, int]:
    """Runs, groups and inner layers that store the fewest layers for these classes of equal ones."""
    count, best = len(layers), (len(layers), len(layers), 1)
    for inner in (number for number in range(1, count + 1) if count % number == 0):
        runs = count // inner
        for groups in range(1, runs + 1):
            classes: dict[tuple[int, int], set[int]] = {}
            for layer, kind in enumerate(layers):
                classes.setdefault(_place(layer, runs, groups, inner), set()).add(kind)
            if all(len(kinds) == 1 for kinds in classes.values()) and groups * inner < best[1] * best[2]:
                best = (runs, groups, inner)
    return best


def _common(config: Any) -> dict[str, Any]:
    """What both configs call by the same names."""
    names = (
        "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob",
        "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size", "initializer_range",
        "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id", "id2label", "label2id", "problem_type",
        "tie_word_embeddings",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _dropout(own: float | None, other: float) -> float:
    return other if own is None else own


def _filled(new: Any, state: dict[str, Tensor], old: Any) -> Any:
    """The new model with these tensors, where and as the old one is."""
    missing, unexpected = new.load_state_dict(state, strict=False)
    if missing or unexpected:
        name = [*missing, *unexpected][0]
        raise TargetError(f"{type(old).__name__}: {name} has no counterpart in {type(new).__name__}")
    new.tie_weights()
    return new.to(device=old.device, dtype=old.dtype).train(old.training)
