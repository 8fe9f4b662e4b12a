"""The encoder: factored token table, layers whose weights are carved out of it, pooler."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fewfold.errors import TargetError
from fewfold.methods.embedding_sharing.store import CarvingStore
from fewfold.models.sharebert.configuration import ROLES, ShareBertConfig
from fewfold.models.sharebert.layers import CarvedMap, ShareBertLayer, make_map

_PLACES = {  # of a role's map, from its layer on
    "query": "attention.query", "key": "attention.key", "value": "attention.value",
    "attention_output": "attention.output", "intermediate": "intermediate", "output": "output",
}  # fmt: skip


class ShareBertPreTrainedModel(PreTrainedModel):
    """Initialisation, resizing and ties of all ShareBERT models."""

    config_class = ShareBertConfig
    config: ShareBertConfig
    base_model_prefix = "sharebert"
    accepts_loss_kwargs = False  # a loss is the mean over its own batch: Trainer divides accumulated ones
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ShareBertLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CarvedMap):
            if self.config.bias_init == "zeros":
                init.zeros_(module.bias)
            else:  # the same numbers for a role in every layer
                role = module.slot.rpartition(".")[2]
                generator = torch.Generator().manual_seed((torch.initial_seed() + zlib.crc32(role.encode())) % 2**63)
                init.copy_(module.bias, torch.randn(module.bias.shape, generator=generator))
        # The store is asked for by its map: modules without numbers of their own do not come here.
        store = getattr(self, "store", None)
        if self.config.carving_init == "scaled" and isinstance(store, CarvingStore) and module is store.expansion:
            projection, inputs = module.weight, {name: slot.shape[0] for name, slot in store.slots.items()}
            assert isinstance(projection, Tensor)
            init.copy_(projection, store.fresh_projection(projection, self.config.initializer_range, inputs))

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """As every model's; carved rows are never cut off.

        :raises TargetError: for fewer rows than are carved.
        """
        carved = 0 if self.config.materialized else self.config.carved_rows
        if new_num_tokens is not None and new_num_tokens < carved:
            raise TargetError(
                f"the hidden weights are carved out of the first {carved} rows of the table: {new_num_tokens} rows "
                "would change all of them. Keep the rows, or cut them off the model that materialize(model) gives"
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class ShareBertEmbeddings(nn.Module):
    """Rows of the table, widened and normalised, with positions and types added."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        self.factor_norm = nn.LayerNorm(config.factor_size, eps=1e-5)
        self.factor = nn.Linear(config.factor_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, rows: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """``(batch, length, factor)`` to ``(batch, length, hidden)``."""
        length, most = rows.shape[1], self.positions.num_embeddings
        if position_ids is None:
            if length > most:
                raise ValueError(
                    f"a text of {length} tokens is too long: max_position_embeddings is {most}; cut it, or take a "
                    "config with more positions"
                )
            position_ids = torch.arange(length, device=rows.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        states = self.norm(self.factor(self.factor_norm(rows)))
        return self.dropout(states + self.positions(position_ids) + self.types(token_type_ids))


class ShareBertPooler(nn.Module):
    """A map of the first token's state."""

    def __init__(self, config: ShareBertConfig, store: CarvingStore | None) -> None:
        super().__init__()
        self.dense = make_map(config, store, "pooler")
        self.activation = ACT2FN[config.pooler_activation] if config.pooler_activation else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(batch, length, hidden)`` to ``(batch, hidden)``."""
        return self.activation(self.dense(hidden_states[:, 0]))


class ShareBertModel(ShareBertPreTrainedModel):
    """The encoder. Its token table is ``store.table``; a materialized model has nothing else in its store.

    :param add_pooling_layer: whether to pool.
    """

    def __init__(self, config: ShareBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        slots = {} if config.materialized else config.slots()
        self.store = CarvingStore(
            config.vocab_size, config.factor_size, min(config.carved_rows, config.vocab_size), slots,
            0 if config.materialized else config.carved_columns, padding_idx=config.pad_token_id, inputs_first=True,
        )  # fmt: skip
        store = None if config.materialized else self.store
        self.embeddings = ShareBertEmbeddings(config)
        self.layers = nn.ModuleList(ShareBertLayer(config, store, layer) for layer in range(config.num_hidden_layers))
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_position == "pre" else None
        )
        self.pooler = ShareBertPooler(config, store) if add_pooling_layer and config.use_pooler else None
        self.gradient_checkpointing = False
        if config.materialized:
            self._tied_weights_keys = self.slot_ties()  # read when saving
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table, ``(vocab, factor)``."""
        return self.store.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table there."""
        self.store.table = value
        self.store.forget()

    def maps(self) -> dict[str, str]:
        """The slot of every carved map, by its name."""
        found = {
            f"layers.{layer}.{place}": self.config.slot(layer, role)
            for layer in range(self.config.num_hidden_layers)
            for role, place in ((role, _PLACES[role]) for role in ROLES)
        }
        if self.pooler is not None:
            found["pooler.dense"] = "pooler"
        return found

    def slot_ties(self) -> dict[str, str]:
        """Of a materialized model: by the name of a map's weight, that of the first with the same slot."""
        first: dict[str, str] = {}
        return {
            f"{name}.weight": f"{first[slot]}.weight"
            for name, slot in self.maps().items()
            if first.setdefault(slot, name) != name
        }

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Ties of slots count whatever the config says of word embeddings."""
        if all_submodels or not self.config.materialized:
            return super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return self.slot_ties()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode.

        :param input_ids: ``(batch, length)``; or ``inputs_embeds``, the table's rows ``(batch, length, factor)``.
        :param attention_mask: ``(batch, length)``, 0 where there is padding; or ``(batch, 1, length, length)``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        rows = self.store.table(input_ids) if inputs_embeds is None else inputs_embeds
        states = self.embeddings(rows, token_type_ids, position_ids)
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()
            mask = mask[:, None, None] if mask.dim() == 2 else mask
        wants_attentions = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden, attentions = [states], []
        for layer in self.layers:
            states, probabilities = layer(states, mask, wants_attentions)
            hidden.append(states)
            attentions.append(probabilities)
        if self.norm is not None:
            states = hidden[-1] = self.norm(states)
        output = BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=None if self.pooler is None else self.pooler(states),
            hidden_states=tuple(hidden) if wants_states else None,
            attentions=tuple(attentions) if wants_attentions else None,
        )
        plain = return_dict is False or (return_dict is None and self.config.return_dict is False)
        return output.to_tuple() if plain else output
