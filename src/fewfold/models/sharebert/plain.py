"""A plain ShareBERT for inference: each carved weight is computed once and stored; layers share one tensor a slot."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch

from fewfold.errors import TargetError
from fewfold.models.sharebert.modeling import ShareBertModel, ShareBertPreTrainedModel

Model = TypeVar("Model", bound=ShareBertPreTrainedModel)


@torch.no_grad()
def materialize(model: Model) -> Model:
    """A new model with equal outputs whose weights are stored; the expansion is gone.

    It runs without carving, saves and loads like any model (the shared tensors once), and its vocabulary may be cut.
    Tensors that it has in common with ``model`` are shared, not copied.

    :raises TargetError: if the model is materialized already.
    """
    if model.config.materialized:
        raise TargetError(f"this {type(model).__name__} is materialized already")
    body = model.base_model
    assert isinstance(body, ShareBertModel)
    config = copy.deepcopy(model.config)
    config.materialized = True
    with torch.device("meta"):
        plain = type(model)(config)
    prefix = "" if body is model else f"{model.base_model_prefix}."
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{prefix}store.expansion.")
    }
    weights = {
        slot: body.store(slot).t().detach().clone(memory_format=torch.contiguous_format)  # the store keeps its own
        for slot in dict.fromkeys(body.maps().values())
    }
    state.update({f"{prefix}{name}.weight": weights[slot] for name, slot in body.maps().items()})
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    return plain.train(model.training)
