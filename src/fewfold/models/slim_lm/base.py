"""What the body and the language model share: their output, starts of weights, and loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from fewfold.errors import CheckpointError
from fewfold.models.slim import SlimEmbedding, SlimSoftmax
from fewfold.models.slim_lm.cells import LayerState, RecurrentLayer
from fewfold.models.slim_lm.config import SlimLMConfig
from fewfold.models.slim_lm.gated_conv import GatedConvLayer
from fewfold.stored.modules import unpack

State = tuple[LayerState, ...]  # by layer (h, c) or (h,), each (batch, width)


@dataclass
class SlimLMOutput(ModelOutput):
    """What the model gives.

    :param loss: mean over tokens, where labels were given.
    :param logits: ``(batch, length, vocab)``, where no labels were given or they were asked for.
    :param last_hidden_state: ``(batch, length, output size)``, of :class:`SlimLMModel`.
    :param state: the hidden state after the last step, by layer; what the next call takes.
    :param hidden_states: inputs of the first layer and outputs of each, where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    state: State | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SlimLMPreTrainedModel(PreTrainedModel):
    """What body and language model share: starts of weights, and loading."""

    config_class = SlimLMConfig
    config: SlimLMConfig
    base_model_prefix = "model"
    _is_stateful = True
    _no_split_modules = ["LSTMLayer", "GRULayer", "GatedConvLayer", "SlimEmbedding", "SlimSoftmax"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Slim tables have drawn their own; dense ones start as those do, and output biases at 0."""
        std = self.config.initializer_range
        # transformers asks for layers by their maps alone: modules without numbers of their own do not come here
        layers = (layer for layer in self.modules() if isinstance(layer, RecurrentLayer | GatedConvLayer))
        layer = next((layer for layer in layers if any(child is module for child in layer.children())), None)
        if layer is not None:
            if type(module) in (nn.Linear, nn.Conv1d):
                layer.draw(module)  # type: ignore[arg-type]
        elif isinstance(getattr(module, "word_counts", None), Tensor):
            nn.init.zeros_(module.word_counts)  # type: ignore[arg-type]
        elif type(module) is nn.Embedding:
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[module.padding_idx] = 0.0
        elif type(module) is nn.Linear:
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """Ties of dense tables; a slim output layer points at the input's table and has no weight to tie."""
        if self.config.input_codes is not None:
            return {}
        return super().get_expanded_tied_weights_keys(all_submodels=all_submodels)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As every model's; codes are checked.

        :raises CheckpointError: if codes or sub-vectors are missing, or a code points outside of its pool.
        """
        told = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        slim = {name for name, module in model.named_modules() if isinstance(module, SlimEmbedding | SlimSoftmax)}
        for key in sorted(info["missing_keys"]):
            if any(key.startswith(f"{name}.") for name in slim):
                raise CheckpointError(
                    f"the checkpoint holds no {key}, which the codes in config.json need: weight file and config.json "
                    "do not belong together"
                )
        unpack(model)
        return (model, info) if told else model
