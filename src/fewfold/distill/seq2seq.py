"""Run an encoder–decoder once, its decoder on the target's tokens (teacher forcing)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewfold.distill.attention import recording
from fewfold.distill.outputs import Needs, Outputs
from fewfold.distill.stacks import depth_of
from fewfold.errors import DistillError

INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")


def run_both(model: Any, batch: Mapping[str, Tensor], needs: Needs) -> Outputs:
    """Run encoder and decoder, and keep what the losses ask for.

    :raises DistillError: if the model does not give its hidden states.
    """
    encoder = needs.encoder
    assert encoder is not None
    before = depth_of(model, "encoder")  # layers of attention that run before the decoder's, which has two a layer
    own = {number: before + 2 * number - 1 for number in needs.attention}
    cross = {number: before + 2 * number for number in needs.cross}
    inputs = {name: batch[name] for name in INPUTS}
    with recording(model, {*encoder.attention, *own.values(), *cross.values()}) as heads:
        output = _run(model, inputs, needs.logits, needs.last or encoder.hidden)
    found = Outputs(
        _states(model, output, "decoder", needs), output.get("decoder_hidden_states") or (), output.get("logits"),
        {number: heads[call] for number, call in own.items()},
        cross={number: heads[call] for number, call in cross.items()},
        encoder=Outputs(
            _states(model, output, "encoder", encoder), output.get("encoder_hidden_states") or (),
            attention={number: heads[number] for number in encoder.attention},
        ),
    )  # fmt: skip
    return found


def _run(model: Any, inputs: Mapping[str, Tensor], logits: bool, states: bool) -> Any:
    """The model, or its body alone where no logits are asked for: a head can cost as much as the rest."""
    options: dict[str, Any] = {"output_hidden_states": True} if states else {}
    if logits or model.get_output_embeddings() is None:
        return model(**inputs, **options, use_cache=False, return_dict=True)
    if model.base_model is not model:
        return model.base_model(**inputs, **options, use_cache=False, return_dict=True)
    encode, decode = model.get_encoder(), getattr(model, "decoder", None)
    if decode is None or "encoder_hidden_states" not in inspect.signature(decode.forward).parameters:
        return model(**inputs, **options, use_cache=False, return_dict=True)
    # T5's head stands beside its stacks, with no body around them
    mask = inputs["attention_mask"]
    encoded = encode(input_ids=inputs["input_ids"], attention_mask=mask, **options, return_dict=True)
    output = decode(
        input_ids=inputs["decoder_input_ids"], attention_mask=inputs["decoder_attention_mask"],
        encoder_hidden_states=encoded.last_hidden_state, encoder_attention_mask=mask, use_cache=False, **options,
        return_dict=True,
    )  # fmt: skip
    return {
        "last_hidden_state": output.last_hidden_state, "decoder_hidden_states": output.get("hidden_states"),
        "encoder_last_hidden_state": encoded.last_hidden_state, "encoder_hidden_states": encoded.get("hidden_states"),
    }  # fmt: skip


def _states(model: Any, output: Any, stack: str, needs: Needs) -> Tensor | None:
    """The last hidden states of a stack."""
    last = output.get("last_hidden_state" if stack == "decoder" else "encoder_last_hidden_state")
    every = output.get(f"{stack}_hidden_states")
    if last is None and every:
        last = every[-1]
    if (needs.last and last is None) or (needs.hidden and not every):
        raise DistillError(
            f"{type(model).__name__} does not give hidden states of its {stack}: learn from logits alone"
        )
    return last
