"""The published ways to share layers, by name."""

from __future__ import annotations

from typing import Any

from fewfold.methods.base import MethodConfig
from fewfold.methods.shared_layers.config import SharedLayers


def _plain(**values: Any) -> list[MethodConfig]:
    """Plain means of the layers, no differences: a start for training."""
    return [SharedLayers(**{"init": "mean", "align": "none", "weighting": "none", "delta_rank": 0, **values})]


LAYERS: list[tuple[str, str, list[MethodConfig]]] = [
    (
        "albert-all",
        "Lan et al., ALBERT (ICLR 2020): all parameters of all layers, norms included; for training",
        _plain(map="all", norms_and_biases="shared"),
    ),
    *(
        (
            f"takase-{name.replace('_', '-')}",
            "Takase and Kiyono, Lessons on Parameter Sharing across Layers in Transformers (SustaiNLP 2023): "
            f"{name.upper()} with half as many blocks as layers; for training",
            _plain(map=name, blocks="1/2", norms_and_biases="shared"),
        )
        for name in ("sequence", "cycle", "cycle_rev")
    ),
    (
        "mobilellm-ls",
        "Liu et al., MobileLLM (ICML 2024): every block twice in a row (LS); for training",
        _plain(map="pairs", norms_and_biases="shared"),
    ),
    (
        "subformer-sandwich",
        "Reid et al., Subformer (EMNLP 2021 Findings): one block between the first and the last layer, biases shared "
        "and norms private; the middle is as wide as the rest, no small embedding is lifted by attention (SAFE), and "
        "cross-attention is shared too; for training",
        _plain(map="sandwich", parts=["attention", "ffn"], norms_and_biases="shared"),
    ),
    (
        "relaxed-recursive",
        "Bae et al., Relaxed Recursive Transformers (ICLR 2025): a cycle of half the layers, blocks the mean of their "
        "layers, truncated SVD of what is left, rank 64",
        _plain(map="cycle", blocks="1/2", sweeps=0, delta_rank=64),
    ),
]
