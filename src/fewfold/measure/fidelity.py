"""How near a compressed encoder stays to the dense one: sentence vectors, neighbours, hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.measure.inputs import clipped_length
from fewfold.measure.modes import evaluating
from fewfold.progress import track


@dataclass(frozen=True)
class Fidelity:
    """Nearness to the dense model over a set of texts.

    :param cosine: Mean cosine between the two embeddings of a text.
    :param neighbour_overlap: Mean share of a text's nearest neighbours that both models agree on, 0…1.
    :param hidden_error: Norm of the difference of last hidden states over the norm of the dense ones, real
        tokens only; None where there are no hidden states to compare.
    """

    cosine: float
    neighbour_overlap: float
    hidden_error: float | None


class Reference:
    """What a dense model says about a set of texts, computed once and compared with many models.

    It keeps the dense embeddings `(texts, dim)`, the neighbours `(texts, neighbours)` and the last hidden
    states of all real tokens `(tokens, dim)`, on the CPU in fp32.
    """

    def __init__(
        self,
        dense: nn.Module,
        tokenizer: Any,
        texts: Sequence[str],
        neighbours: int = 10,
        batch_size: int = 64,
        max_length: int = 128,
    ) -> None:
        """Run the dense model over the texts.

        :param dense: The model to compare with.
        :param tokenizer: The tokenizer that all compared models share.
        :param texts: Texts to compare on, better distinct.
        :param neighbours: Size of a neighbourhood; 10 gives the figure called nn10.
        :param batch_size: Texts per forward.
        :param max_length: Tokens per text; what is longer is cut.
        :raises ValueError: If there are too few texts to have that many neighbours.
        """
        if not 1 <= neighbours < len(texts):
            raise ValueError(
                f"{neighbours} neighbours need at least {neighbours + 1} texts, and there are {len(texts)}: "
                "give more texts or ask for fewer neighbours"
            )
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.batch_size = batch_size
        self.max_length = max_length
        self.embeddings, self.hidden_states = self.encode(dense)
        self.neighbours = nearest_neighbours(self.embeddings, neighbours)

    def compare(self, model: nn.Module) -> Fidelity:
        """Measure how near a model stays to the dense one.

        :param model: A model with the same tokenizer and hidden size.
        :return: The three figures.
        :raises ValueError: If its hidden states have another size.
        """
        return self.compare_encoded(*self.encode(model))

    def compare_encoded(self, embeddings: Tensor, hidden_states: Tensor | None = None) -> Fidelity:
        """Measure what `encode`, or something without an encoder, made of the texts.

        :param embeddings: L2-normalised, `(texts, dim)`, in the order of the texts.
        :param hidden_states: Of all real tokens, `(tokens, dim)`; leave out where there are none.
        :return: The figures.
        :raises ValueError: If either has another size than the dense model's.
        """
        _same_shape("embeddings", embeddings, self.embeddings)
        error = None
        if hidden_states is not None:
            _same_shape("hidden states", hidden_states, self.hidden_states)
            error = float((hidden_states - self.hidden_states).norm() / self.hidden_states.norm())
        found = nearest_neighbours(embeddings, self.neighbours.shape[1])
        cosine = (embeddings * self.embeddings).sum(dim=1).mean()
        return Fidelity(float(cosine), neighbour_overlap(self.neighbours, found), error)

    def encode(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Run a model over the texts.

        :param model: A transformers model.
        :return: Embeddings `(texts, dim)`, L2-normalised, and the last hidden states of all real tokens
            `(tokens, dim)`, text after text.
        """
        states: list[Tensor] = [torch.empty(0)] * len(self.texts)
        batches = _encoded(model, self.tokenizer, self.texts, self.batch_size, self.max_length)
        for places, hidden, mask in batches:
            for place, row, real in zip(places, hidden, mask, strict=True):
                states[place] = row[real.bool()]
        means = torch.stack([state.mean(dim=0) for state in states])
        return nn.functional.normalize(means, dim=1), torch.cat(states)


def fidelity(
    dense: nn.Module, compressed: nn.Module, tokenizer: Any, texts: Sequence[str], neighbours: int = 10,
    max_length: int = 128,
) -> Fidelity:  # fmt: skip
    """Compare a compressed model with the dense one; for many models make one `Reference` instead.

    :param dense: The model to compare with.
    :param compressed: The model to judge, with the same tokenizer and hidden size.
    :param texts: Texts to compare on, better distinct.
    :param neighbours: Size of a neighbourhood.
    :param max_length: Tokens per text; what is longer is cut.
    :return: The three figures.
    :raises ValueError: If there are too few texts to have that many neighbours.
    """
    return Reference(dense, tokenizer, texts, neighbours, max_length=max_length).compare(compressed)


def sentence_embeddings(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], batch_size: int = 64, max_length: int = 128
) -> Tensor:
    """Embed texts: the mean of the last hidden states over real tokens, scaled to length one.

    :param model: A transformers model, with or without a head; of an encoder-decoder the encoder runs.
    :param tokenizer: Its tokenizer; one without a padding token will do.
    :param texts: The texts, in any order and of any length.
    :param batch_size: Texts per forward; texts of like length go together.
    :param max_length: Tokens per text; what is longer is cut.
    :return: fp32 on the CPU, `(texts, dim)`, in the order of the texts.
    :raises ValueError: If there is no text.
    """
    return nn.functional.normalize(mean_states(model, tokenizer, texts, batch_size, max_length), dim=1)


def mean_states(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], batch_size: int = 64, max_length: int = 128
) -> Tensor:
    """As `sentence_embeddings`, of the length that the means have."""
    if not texts:
        raise ValueError("sentence_embeddings needs at least one text")
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    for places, hidden, mask in _encoded(model, tokenizer, texts, batch_size, max_length):
        weights = mask[:, :, None].to(hidden.dtype)
        means = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        for place, row in zip(places, means, strict=True):
            rows[place] = row
    return torch.stack(rows)


def nearest_neighbours(embeddings: Tensor, neighbours: int, block: int = 1024) -> Tensor:
    """Find the nearest texts by cosine, a text itself excluded.

    :param embeddings: L2-normalised, `(texts, dim)`.
    :param neighbours: How many to find.
    :param block: Texts compared at once, which bounds the memory.
    :return: Indices of the texts, nearest first, `(texts, neighbours)`.
    """
    found = []
    for start in range(0, len(embeddings), block):
        cosines = embeddings[start : start + block] @ embeddings.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -torch.inf
        found.append(cosines.topk(neighbours, dim=1).indices)
    return torch.cat(found)


def neighbour_overlap(first: Tensor, second: Tensor) -> float:
    """The mean share of neighbours that two models agree on, 0…1.

    :param first: Of one model, `(texts, neighbours)`, as `nearest_neighbours` gives them.
    :param second: Of the other, for the same texts.
    """
    return float((second[:, :, None] == first[:, None, :]).any(dim=2).float().mean())


def padded_batches(
    tokenizer: Any, texts: Sequence[str], batch_size: int, max_length: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Tokenize texts and yield them in batches of like length, longest first, padded on the right.

    :param tokenizer: Any tokenizer; where it has no padding token, masked positions hold its end token.
    :param texts: The texts.
    :param batch_size: Texts per batch.
    :param max_length: Tokens per text; what is longer is cut.
    :return: For each batch the places of its texts, and tensors of shape (batch, length).
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    names = [name for name in tokenizer.model_input_names if name in encoded]
    # An empty text may become no token at all; one token keeps its row defined.
    filler = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    sizes = [max(1, len(ids)) for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lambda place: (-sizes[place], place))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        shape = (len(places), sizes[places[0]])
        batch = {name: torch.full(shape, filler if name == "input_ids" else 0) for name in names}
        batch["attention_mask"] = torch.zeros(shape, dtype=torch.long)
        for row, place in enumerate(places):
            for name in names:
                values = torch.tensor(encoded[name][place], dtype=torch.long)
                batch[name][row, : len(values)] = values
            batch["attention_mask"][row, : sizes[place]] = 1
        yield places, batch


def _encoded(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], batch_size: int, max_length: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield for each batch the places of its texts, hidden states (batch, length, dim) and the mask."""
    encoder = _encoder(model)
    accepted = inspect.signature(encoder.forward).parameters
    length = clipped_length(model.config, max_length) if hasattr(model, "config") else max_length
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total = -(-len(texts) // batch_size)
    with evaluating(model), torch.inference_mode():
        batches = padded_batches(tokenizer, texts, batch_size, length)
        for places, batch in track(batches, "embedding texts", total=total):
            inputs = {name: value.to(device) for name, value in batch.items() if name in accepted}
            output = encoder(**inputs)
            yield places, output.last_hidden_state.float().cpu(), batch["attention_mask"]


def _same_shape(what: str, found: Tensor, dense: Tensor) -> None:
    if found.shape != dense.shape:
        raise ValueError(
            f"{what} are {tuple(found.shape)} and the dense model's are {tuple(dense.shape)}: "
            "compare models of one hidden size and one tokenizer"
        )


def _encoder(model: nn.Module) -> nn.Module:
    """Return the part of a model that gives last hidden states: no head, no decoder behind an encoder."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        return model.get_encoder()  # type: ignore[operator]
    return getattr(model, "base_model", model)  # type: ignore[return-value]
