"""Dummy inputs for a model, made from its config alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def dummy_inputs(model: nn.Module, batch: int = 1, length: int = 128) -> dict[str, torch.Tensor]:
    """Make inputs that the model's forward accepts: random tokens or pixels, the same at every call.

    Text models get `input_ids` and `attention_mask` of shape (batch, length), encoder-decoders
    `decoder_input_ids` of that shape too, vision models `pixel_values` of shape (batch, channels, height,
    width). A length beyond the model's last position is clipped to it.

    :param model: A transformers model.
    :param batch: Number of sequences or images.
    :param length: Tokens per sequence.
    :return: Keyword arguments of the forward, on the model's device.
    :raises ValueError: If the model has no config, or takes inputs of another kind; pass your own then.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled model says nothing of its inputs
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} has no config to make inputs from: pass inputs=…")
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, torch.Tensor] = {}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if "input_ids" in accepted and getattr(text, "vocab_size", None):
        shape = (batch, clipped_length(config, length))
        # The upper half of the vocabulary: padding, end and mask tokens change what some models compute.
        tokens = torch.randint(text.vocab_size // 2, text.vocab_size, shape, generator=generator)
        tokens[tokens == getattr(text, "pad_token_id", None)] = text.vocab_size // 2
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = tokens.flip(1)
    if "pixel_values" in accepted and (not inputs or _needs_both(config)):
        inputs["pixel_values"] = torch.randn(_pixel_shape(config, batch), generator=generator)
    if not inputs:
        kinds = ", ".join(accepted)
        raise ValueError(f"{type(model).__name__} takes neither tokens nor pixels ({kinds}): pass inputs=…")
    return _placed(inputs, model)


def clipped_length(config: Any, length: int) -> int:
    """Clip a length in tokens to the positions that a model has; without a table of positions any will do.

    :param config: The model's config.
    :param length: The wished length.
    :return: The length, or the last position the model knows.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return length
    # Tables that start counting behind the padding index hold that many fewer usable positions.
    is_offset = getattr(text, "model_type", "") in _POSITIONS_AFTER_PADDING
    offset = (getattr(text, "pad_token_id", None) or 0) + 1 if is_offset else 0
    return min(length, positions - offset)


def token_count(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Count the tokens that one forward works on.

    Encoder and decoder tokens add up. Of images, the patches count and class or register tokens do not.

    :param model: The model, whose config tells the size of a patch.
    :param inputs: Keyword arguments of its forward.
    :return: Number of tokens over the whole batch.
    :raises ValueError: If the inputs hold no tensor.
    """
    named = ("input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds")
    count = sum(_positions(name, inputs[name]) for name in named if inputs.get(name) is not None)
    if inputs.get("pixel_values") is not None:
        count += _patches(model, inputs["pixel_values"])
    if count:
        return count
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            return _positions(name, value)
    raise ValueError(f"no tensor among the inputs {sorted(inputs)}")


_POSITIONS_AFTER_PADDING = frozenset(
    ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "roberta-prelayernorm",
     "data2vec-text", "xmod", "ibert", "esm", "luke", "mluke", "layoutlmv3")
)  # fmt: skip


def _positions(name: str, value: torch.Tensor) -> int:
    """Count the positions of a tensor: ids are one number each, vectors one last dimension each."""
    is_ids = not value.is_floating_point() or value.dim() < 2
    return value.numel() if is_ids else value.numel() // value.shape[-1]


def _patches(model: nn.Module, pixels: torch.Tensor) -> int:
    """Count the patches of a batch of images; without a patch size each image is one."""
    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    if not patch:
        return pixels.shape[0]
    high, wide = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    return pixels.shape[0] * (pixels.shape[-2] // high) * (pixels.shape[-1] // wide)


def _pixel_shape(config: Any, batch: int) -> tuple[int, int, int, int]:
    """Read the shape of a batch of images from a vision config."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    high, wide = size if isinstance(size, (tuple, list)) else (size, size)
    return batch, getattr(vision, "num_channels", 3), high, wide


def _needs_both(config: Any) -> bool:
    """Say whether a model of text and images has two towers; where images become tokens, text alone runs."""
    is_fused = any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
    return hasattr(config, "vision_config") and hasattr(config, "text_config") and not is_fused


def _placed(inputs: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Move inputs to the model's device, and pixels to its floating dtype."""
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    for parameter in model.parameters():
        device = device or parameter.device
        if parameter.is_floating_point():
            dtype = parameter.dtype
            break
    return {k: v.to(device=device, dtype=dtype if v.is_floating_point() else None) for k, v in inputs.items()}
