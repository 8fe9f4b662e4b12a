"""The published training of an auto-encoder on a table's rows: Adam, small batches, an annealed exponent.

Bałazy, Banaei, Lebret, Tabor, Aberer (RepL4NLP 2021, arXiv 2106.08181), with the values of the authors' code: Adam at
1e-3, 32 rows a step in shuffled order, the learning rate halved every 4 epochs, 20 + 10 epochs, `direction_loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from fewfold.errors import RecipeError
from fewfold.linalg.direction_loss import LAST_EXPONENT, direction_loss, magnitude_exponent
from fewfold.linalg.spectra import eigh_descending
from fewfold.methods.embedding_autoencoder.config import Activation, EmbeddingAutoencoder
from fewfold.progress import track

HALVED_EVERY = 4  # epochs
CHUNK = 4096  # rows of the table that are measured at once


@dataclass(frozen=True)
class Autoencoder:
    """A linear encoder and a linear decoder, each with an activation or none.

    :param tensors: ``encoder`` ``(rank, dim)`` and its ``encoder_bias``, ``decoder`` ``(dim, rank)`` and, unless it has
        none, ``decoder_bias``.
    """

    tensors: dict[str, Tensor]
    encoder_activation: Activation
    decoder_activation: Activation

    def encode(self, rows: Tensor) -> Tensor:
        """``(…, dim)`` to ``(…, rank)``."""
        latents = F.linear(rows, self.tensors["encoder"], self.tensors["encoder_bias"])
        return latents if self.encoder_activation == "linear" else F.elu(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """``(…, rank)`` to ``(…, dim)``."""
        rows = F.linear(latents, self.tensors["decoder"], self.tensors.get("decoder_bias"))
        return rows if self.decoder_activation == "linear" else F.elu(rows)

    def reconstruct(self, rows: Tensor) -> Tensor:
        """There and back."""
        return self.decode(self.encode(rows))


@dataclass(frozen=True)
class Trained:
    """What training leaves.

    :param autoencoder: of the best epoch.
    :param epoch: that epoch, 0-based.
    :param measures: what every epoch was judged by, smaller is better.
    """

    autoencoder: Autoencoder
    epoch: int
    measures: tuple[float, ...]


def train(
    table: Tensor, rank: int, config: EmbeddingAutoencoder, row_weights: Tensor | None = None, name: str = "the table"
) -> Trained:
    """Train an auto-encoder on the rows of a table as published; the global random state is not touched.

    The epoch that is kept has the smallest ``config.validation``; without one, the smallest training loss over the
    whole table, at the last exponent and under the same row weights.

    :param table: ``(vocab, dim)``.
    :param row_weights: ``(vocab,)``: rows weigh by them within their batch (None, as published: alike).
    :param name: what errors call the table.
    :raises RecipeError: if the training diverges.
    """
    table = table.detach().float()
    generator = torch.Generator().manual_seed(config.seed)
    model = _fresh(table, rank, config, generator)
    weights = None if row_weights is None else row_weights.to(table)
    best: dict[str, Tensor] = {}
    best_epoch, measures = 0, list[float]()
    with torch.inference_mode(False), torch.enable_grad():
        parameters = [tensor.requires_grad_() for tensor in model.tensors.values()]
        optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=table.device.type in ("cpu", "cuda"))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, HALVED_EVERY, 0.5)
        steps = config.epochs * -(-table.shape[0] // config.batch_rows)
        for epoch, ids, is_last in track(_batches(table, config, generator), "training the auto-encoder", steps):
            rows, shares = table[ids], None if weights is None else weights[ids]
            loss = direction_loss(model.reconstruct(rows), rows, magnitude_exponent(epoch), row_weights=shares)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if is_last:
                schedule.step()
                measure = _measure(model, table, config, weights)
                if measure < min(measures, default=inf):
                    best, best_epoch = {key: value.detach().clone() for key, value in model.tensors.items()}, epoch
                measures.append(measure if measure == measure else inf)
    if not best:
        raise RecipeError(
            f"EmbeddingAutoencoder(learning_rate={config.learning_rate:g}): training on {name} diverged; take a "
            "smaller learning rate"
        )
    return Trained(Autoencoder(best, config.encoder_activation, config.decoder_activation), best_epoch, tuple(measures))


def _batches(
    table: Tensor, config: EmbeddingAutoencoder, generator: torch.Generator
) -> Iterator[tuple[int, Tensor, bool]]:
    """Epoch, row numbers, and whether the epoch ends with them: every row once an epoch, in shuffled order."""
    for epoch in range(config.epochs):
        batches = torch.randperm(table.shape[0], generator=generator).to(table.device).split(config.batch_rows)
        for number, ids in enumerate(batches, start=1):
            yield epoch, ids, number == len(batches)


def _fresh(table: Tensor, rank: int, config: EmbeddingAutoencoder, generator: torch.Generator) -> Autoencoder:
    """Layers as ``nn.Linear`` starts them, or projections on the table's leading right singular vectors."""
    dim = table.shape[1]
    if config.start == "svd":
        directions = eigh_descending(table.double().t() @ table.double())[1][:, :rank].t().to(table)
        tensors = {"encoder": directions.clone(), "encoder_bias": table.new_zeros(rank)}
        tensors |= {"decoder": directions.t().clone(), "decoder_bias": table.new_zeros(dim)}
    else:
        shapes = {"encoder": (rank, dim), "encoder_bias": (rank,), "decoder": (dim, rank), "decoder_bias": (dim,)}
        tensors = {}
        for name, shape in shapes.items():
            bound = (dim if name.startswith("encoder") else rank) ** -0.5
            values = torch.rand(shape, generator=generator)
            tensors[name] = ((2 * values - 1) * bound).to(table)
    if not config.mean_row:
        del tensors["decoder_bias"]
    return Autoencoder(tensors, config.encoder_activation, config.decoder_activation)


@torch.no_grad()
def _measure(model: Autoencoder, table: Tensor, config: EmbeddingAutoencoder, weights: Tensor | None) -> float:
    if config.validation is not None:
        return float(config.validation(model.reconstruct(table)))
    return table_loss(model, table, weights)


@torch.no_grad()
def table_loss(model: Autoencoder, table: Tensor, row_weights: Tensor | None = None) -> float:
    """The loss over all rows of a table, ``(vocab, dim)``, at the last exponent."""
    weights = table.new_ones(table.shape[0]) if row_weights is None else row_weights.to(table)
    total = 0.0
    for rows, share in zip(table.split(CHUNK), (weights / weights.sum()).split(CHUNK), strict=True):
        if float(share.sum()):
            part = direction_loss(model.reconstruct(rows), rows, LAST_EXPONENT, row_weights=share)
            total += float(part) * float(share.sum())
    return total
