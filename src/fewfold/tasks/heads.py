"""A task's head around the body of a model, dense or compressed."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import transformers
from torch import nn

from fewfold.checkpoint.config import FewfoldConfig, structure_of
from fewfold.checkpoint.rebuild import resolve, resolve_structure
from fewfold.checkpoint.structure import Structure
from fewfold.errors import TaskError
from fewfold.store import drop_unused_stores
from fewfold.stored import unpack

Kind = Literal["classification", "question-answering", "translation", "captioning"]
_AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}


def with_head(model: nn.Module, num_labels: int = 2, kind: Kind = "classification", seed: int = 0) -> Any:
    """Put a fresh head around the body of a model: the class that transformers has for the task, around that very body.

    The body moves into the new model, compressed weights and all; a head that it had stays behind, and a pooler comes
    or goes as the new class has it. All parameters train. The result saves like any other model, and reloads through
    the Auto class of its task after `import fewfold`. To keep `model` as it is, pass a deep copy.

    :param model: A transformers model, with or without a head.
    :param num_labels: Number of classes, 1 for a score; answering questions always has 2 outputs.
    :param kind: "classification" (of texts and pairs, scores too) or "question-answering" (start and end).
    :param seed: Of the head's random weights.
    :return: An `AutoModelForSequenceClassification` or `AutoModelForQuestionAnswering`, in eval mode.
    :raises TaskError: If transformers has no such head for the model, or the number of labels makes no sense.
    """
    head_class = _head_class(model, kind)
    num_labels = 2 if kind == "question-answering" else num_labels
    if num_labels < 1:
        raise TaskError(f"with_head(num_labels={num_labels}): give the number of classes, or 1 for a score")
    body: Any = model.base_model
    config = _config_of_head(body, num_labels, kind)
    with torch.device("meta"):
        head = head_class._from_config(config)
    prefix = head.base_model_prefix
    skeleton: Any = getattr(head, prefix, None)
    if type(skeleton) is not type(body):  # before anything is moved
        raise TaskError(
            f"{head_class.__name__} has no {type(body).__name__} of its own that this one could stand for: "
            "pass a model of another class"
        )
    _match_children(body, skeleton)
    structure = _of_body(model, body, structure_of(model))
    old = body.config
    for module in body.modules():
        if module.__dict__.get("config") is old:
            module.config = head.config
    setattr(head, prefix, body)
    _fill(head, body, seed)
    if structure is not None:
        drop_unused_stores(head)
        head.config.quantization_config = FewfoldConfig(resolve_structure(head, structure))
        unpack(head)
    for parameter in head.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return head.eval()


def has_head(model: nn.Module, num_labels: int = 2, kind: Kind = "classification") -> bool:
    """Say whether a model has the head of a task already: the right class, with as many labels.

    :param model: Any model.
    :param num_labels: As for `with_head`; not asked where questions are answered.
    :param kind: As for `with_head`.
    """
    config: Any = getattr(model, "config", None)
    return is_of(model, _AUTO[kind]) and (kind == "question-answering" or config.num_labels == num_labels)


def is_of(model: nn.Module, auto: str) -> bool:
    """Say whether a model is of the class that an Auto class has for its config, one that was registered too.

    :param model: Any model.
    :param auto: The Auto class's name.
    """
    mapping = getattr(transformers, auto)._model_mapping
    config = getattr(model, "config", None)
    return type(config) in mapping and isinstance(model, _classes(mapping[type(config)]))


def _head_class(model: nn.Module, kind: Kind) -> Any:
    """The class that transformers has for the task and this model's family."""
    config = getattr(model, "config", None)
    mapping = getattr(transformers, _AUTO[kind])._model_mapping
    if config is None or type(config) not in mapping or not isinstance(getattr(model, "base_model", None), nn.Module):
        raise TaskError(
            f"{type(model).__name__}: transformers has no {_AUTO[kind]} for it; pass an encoder such as BERT"
        )
    return _classes(mapping[type(config)])[0]


def _classes(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _config_of_head(body: Any, num_labels: int, kind: Kind) -> Any:
    """A config of its own for the new model; the structure comes back when the modules have their names."""
    config = copy.deepcopy(body.config)
    config.__dict__.pop("quantization_config", None)
    config.num_labels = num_labels
    if kind == "classification":
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
    # the dtype of norms and biases, which no method packs
    config.dtype = next((p.dtype for p in body.parameters() if p.is_floating_point()), torch.float32)
    return config


def _match_children(body: nn.Module, skeleton: nn.Module) -> None:
    """Take out what the new class's body does not have (a pooler), and put in what only that one has."""
    from fewfold.models.sharebert.layers import CarvedMap

    for name in {*body._modules, *skeleton._modules}:
        if name == "fewfold_stores":
            continue
        wanted, found = skeleton._modules.get(name), body._modules.get(name)
        if wanted is None and found is not None:
            body._modules[name] = None
        elif wanted is not None and found is None:
            body.__dict__.pop(name, None)  # a None that stood for it would hide it
            body.add_module(name, wanted)
            for part in wanted.modules():
                if isinstance(part, CarvedMap):  # its weight comes out of this body's table
                    part.carve_from(body.store)  # type: ignore[arg-type]


def _of_body(model: nn.Module, body: nn.Module, structure: Structure | None) -> Structure | None:
    """What the structure says of the body as it is now: the old head and its stores are gone."""
    if structure is None:
        return None
    inside = {id(module) for module in body.modules()}

    def stays(module: str) -> bool:
        name = resolve(model, module)
        return name is not None and id(model.get_submodule(name)) in inside

    targets = [record for record in structure.targets if stays(record.module)]
    used = {record.store for record in targets}
    kept = {
        "targets": targets,
        "ties": [tie for tie in structure.ties if stays(tie.module)],
        "stores": [store for store in structure.stores if store.name in used],
    }
    return structure.model_copy(update=kept) if targets else None


def _fill(head: Any, body: nn.Module, seed: int) -> None:
    """Give memory and first values to what is still on the meta device: the head and what came with it."""
    like = next((parameter for parameter in body.parameters() if not parameter.is_meta), torch.empty(0))
    empty = [
        module
        for module in head.modules()
        if any(
            tensor.is_meta for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None
        )
        and not hasattr(module, "original")
    ]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in empty:
            module.to_empty(device=like.device, recurse=False)
            head._init_weights(module)
