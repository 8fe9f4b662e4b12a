"""What cannot be replaced, and why."""

from __future__ import annotations

from torch import nn

from fewfold.linalg.narrow import NarrowLinear

# children whose weight the parent reads instead of calling them
_READ_DIRECTLY = {
    "MambaMixer": {"x_proj", "dt_proj", "out_proj"}, "FalconMambaMixer": {"x_proj", "dt_proj", "out_proj"},
    "JambaMambaMixer": {"x_proj", "dt_proj", "out_proj"},
    "WavLMAttention": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "DebertaEncoder": {"rel_embeddings"}, "DebertaV2Encoder": {"rel_embeddings"},
    "ProphetNetDecoder": {"ngram_embeddings"}, "MobileBertLMPredictionHead": {"dense", "decoder"},
}  # fmt: skip
# modules that are handed a token table and read it, by the name that the table has
_TABLE_READERS = {
    "DebertaLMPredictionHead": "word_embeddings", "DebertaV2LMPredictionHead": "word_embeddings",
    "PerceiverEmbeddingDecoder": "embeddings",
}  # fmt: skip
_PLAIN_LINEARS = {"FalconLinear"}  # a forward of its own that is x·Wᵀ + b too


def embedding_scale(module: nn.Embedding) -> float | None:
    """The factor a scaled embedding multiplies with; None where its forward is something else."""
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    if len(module._parameters) > 1:  # rows of its own for some tokens (T5Gemma 2)
        return None
    scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    return float(scale) if isinstance(scale, int | float) else None


def _is_plain(kind: type[nn.Linear]) -> bool:
    """Whether a linear layer computes x·Wᵀ + b, in ``nn.Linear``'s way or in one that is known."""
    known = kind.__name__ in _PLAIN_LINEARS and kind.__module__.startswith("transformers.")
    return known or kind.forward in (nn.Linear.forward, NarrowLinear.forward)


def _is_read(module: nn.Module, parent: nn.Module | None) -> bool:
    if isinstance(parent, nn.TransformerEncoderLayer):  # in eval mode
        return module in (parent.linear1, parent.linear2)
    names = _READ_DIRECTLY.get(type(parent).__name__, ())
    return parent is not None and any(getattr(parent, name, None) is module for name in names)


def table_readers(model: nn.Module) -> dict[str, str]:
    """By the last piece of a table's name: the class of a module of ``model`` that reads its weight."""
    classes = {type(module).__name__ for module in model.modules()}
    return {table: reader for reader, table in _TABLE_READERS.items() if reader in classes}


def refusal_of(module: nn.Module, parent: nn.Module | None) -> str | None:
    """Why a module cannot be replaced, or None.

    :param parent: the module that holds it.
    """
    if isinstance(parent, nn.MultiheadAttention) or _is_read(module, parent):
        return f"{type(parent).__name__} reads this weight instead of calling the module"
    if isinstance(module, nn.Linear) and not _is_plain(type(module)):
        return f"{type(module).__name__} computes something else than x·Wᵀ + b"
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            return "the embedding renormalises its rows (max_norm)"
        if embedding_scale(module) is None:
            return f"{type(module).__name__} computes something else than a look-up times a constant"
    return None
