"""Modules whose weight is a coded matrix: looked up row by row, multiplied by partial dot products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import Assembled, AssembledEmbedding, AssembledLinear, RunningForm, must_be_called
from fewfold.linalg.gather_sum import chain_is_cheaper
from fewfold.methods.factors import bias_of, matrix_of
from fewfold.store import Store
from fewfold.stored import StoredDtype, make_linear
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.stages import StageSpec

MOST_FORMS = 4096  # numbers of rows whose form is remembered
TRACED_BATCH = 32  # rows that a traced graph, which must serve any number, is judged by


class _Coded(Assembled):
    """What both modules share; ``coded`` is the matrix, ``(rows, columns)``."""

    coded: CodedMatrix
    _shared: tuple[Store, ...]
    _forms: dict[tuple[int, bool, int], RunningForm]

    @property
    def store(self) -> Store | None:
        """The owner of codebooks that other targets use too."""
        return self._shared[0] if self._shared else None

    def leaves(self) -> Iterator[nn.Module]:
        """The matrix, its codebooks wherever they live, and what else there is."""
        coded: Any = self._modules["coded"]
        yield coded
        yield from coded.leaves()
        yield from (child for child in self._modules.values() if child is not coded and child is not None)

    def resized_settings(self) -> dict[str, Any]:
        """Stages that cover some rows cover fewer when rows are cut off."""
        return {"stages": [stage.to_dict() for stage in self.coded.stages]}

    def form_for(self, batch: int) -> RunningForm:
        """As set, else the cheaper form for ``batch`` rows; see :func:`chain_is_cheaper`."""
        if any(must_be_called(leaf) for leaf in self.leaves()):
            return "chained"
        return self._cheaper(batch)

    def _cheaper(self, batch: int) -> RunningForm:
        """The form for ``batch`` rows where no leaf has to be called; reckoned once for every number of rows."""
        if self.form != "auto":
            return "rebuilt" if self.form == "rebuilt" else "chained"
        compiling = torch.compiler.is_compiling()
        kept = not (compiling or torch.is_grad_enabled())
        key = (batch, kept, self._dense_numbers())
        if compiling or key not in self._forms:
            chained = chain_is_cheaper(batch, self._dense_numbers(), self._products(), self.coded.gathers, kept)
            if compiling or len(self._forms) >= MOST_FORMS:
                return "chained" if chained else "rebuilt"
            self._forms[key] = "chained" if chained else "rebuilt"
        return self._forms[key]

    def _dense_numbers(self) -> int:
        return self.coded.rows * self.coded.columns

    def _products(self) -> int:
        return self.coded.macs

    def _form_at(self, hidden_states: Tensor) -> RunningForm:
        if torch.compiler.is_compiling():
            return self.form_for(TRACED_BATCH)
        return self.form_for(_rows(hidden_states))


def _rows(hidden_states: Tensor) -> int:
    return max(1, hidden_states.numel() // hidden_states.shape[-1])


class CodedLinear(_Coded, AssembledLinear):
    """``y = x · codedᵀ + bias``; the form is chosen anew at every call, by its number of rows.

    :param store: the owner of ``codebooks``, where some are not the module's own.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stages: Sequence[StageSpec],
        bias: bool,
        scales: bool = False,
        stored: StoredDtype | None = None,
        codebooks: Sequence[nn.Module | None] | None = None,
        store: Store | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self._shared = () if store is None else (store,)
        self._forms = {}
        self.coded = CodedMatrix(out_features, in_features, stages, scales, stored, codebooks)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.coded.reset_parameters(math.sqrt(1.0 / (3 * in_features)))

    @property
    def running_form(self) -> RunningForm:
        """The form for a single row."""
        return self.form_for(1)

    def chain_macs(self) -> int:
        """Partial products; the look-ups that are summed multiply nothing."""
        return self.coded.macs

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        key = self.assembly_key()
        if key is not None:  # no gradients, no graph, no leaf that must be called: as little else as can be
            if self._cheaper(_rows(hidden_states)) == "chained":
                return self.chained(hidden_states)
            return F.linear(hidden_states, self._rebuilt_at(key), self.bias)
        if self._form_at(hidden_states) == "chained":
            return self.chained(hidden_states)
        if torch.compiler.is_exporting():
            return self._traced(hidden_states)
        return F.linear(hidden_states, self.rebuilt_weight(), self.bias)

    def _traced(self, hidden_states: Tensor) -> Tensor:
        """As rebuilt, with the fewest steps from codes to products: a graph may take them anew at every run."""
        weight = self.coded.unscaled()
        missing = weight.shape[1] - self.in_features
        out = F.linear(F.pad(hidden_states, (0, missing)) if missing else hidden_states, weight)
        out = out if self.coded.scales is None else out * self.coded.scales
        return out if self.bias is None else out + self.bias

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Partial dot products, gathered and summed."""
        out = self.coded(hidden_states)
        return out if self.bias is None else out + self.bias

    def assembled_weight(self) -> Tensor:
        """``(out, in)``."""
        return self.coded()

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New outputs get codes near the mean row, all different, and the mean bias; kept ones stay equal."""
        self.coded.resize_(rows)
        if self.bias is not None:
            filling = self.bias.mean().expand(max(0, rows - len(self.bias)))
            self.bias = nn.Parameter(torch.cat([self.bias[:rows], filling]), self.bias.requires_grad)
        self.out_features, self._rebuilt = rows, None


class CodedEmbedding(_Coded, AssembledEmbedding):
    """``rows = up(coded[ids])`` with ``coded: (vocab, rank)`` and ``up: rank → dim``; no ``up`` where rank is None.

    :param rank: columns of the coded latents (None: the table itself is coded).
    :param map_stored: how ``up`` is kept (None: as the codebooks).
    :param mean_row: whether ``up`` adds a row to every row (its bias, ``(dim,)``).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        stages: Sequence[StageSpec],
        rank: int | None = None,
        padding_idx: int | None = None,
        scale: float = 1.0,
        scales: bool = False,
        stored: StoredDtype | None = None,
        mean_row: bool = True,
        codebooks: Sequence[nn.Module | None] | None = None,
        store: Store | None = None,
        map_stored: StoredDtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, scale)
        stored = stored or StoredDtype()
        self._shared = () if store is None else (store,)
        self._forms = {}
        self.coded = CodedMatrix(num_embeddings, rank or embedding_dim, stages, scales, stored, codebooks)
        self.up = None if rank is None else make_linear(rank, embedding_dim, mean_row, map_stored or stored)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Fresh codes and words whose rows have standard deviation ``std``."""
        self.coded.reset_parameters(std)
        if self.up is not None and not matrix_of(self.up).is_meta:
            matrix_of(self.up).normal_(std=1.0 / math.sqrt(self.coded.columns))
            if self.mean_row is not None:
                self.mean_row.zero_()

    @property
    def mean_row(self) -> nn.Parameter | None:
        """What is added to every row, ``(dim,)``."""
        return None if self.up is None else bias_of(self.up)

    def chain_macs(self) -> int:
        """``rank · dim`` a looked-up row; without ``up``, nothing."""
        return 0 if self.up is None else self.coded.columns * self.embedding_dim

    def lookup(self, ids: Tensor) -> Tensor:
        """Gather sub-vectors, then one product; the padding row's codes send no gradient to their words."""
        rows = self.coded(ids)
        if self.padding_idx is not None and rows.requires_grad:
            rows = torch.where((ids == self.padding_idx)[..., None], rows.detach(), rows)
        return rows if self.up is None else self.up(rows)

    def attend(self, hidden_states: Tensor) -> Tensor:
        """``(h · up) · codedᵀ``: the table is never assembled where the chain is cheaper."""
        if self._form_at(hidden_states) == "rebuilt":
            return super().attend(hidden_states)
        if self.up is None:
            return self.coded(hidden_states)
        logits = self.coded(F.linear(hidden_states, matrix_of(self.up).t()))
        return logits if self.mean_row is None else logits + (hidden_states @ self.mean_row)[..., None]

    def assembled_weight(self) -> Tensor:
        """``coded``, or ``coded @ up.weightᵀ + mean row``: ``(vocab, dim)``."""
        if self.up is None:
            return self.coded()
        table = self.coded() @ matrix_of(self.up).t()
        return table if self.mean_row is None else table + self.mean_row

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New rows get codes near the mean latent, all different; kept rows stay equal."""
        self.coded.resize_(rows)
        if self.padding_idx is not None and self.padding_idx >= rows:
            self.padding_idx = None
        self.num_embeddings, self._rebuilt = rows, None

    def _dense_numbers(self) -> int:
        return self.num_embeddings * self.embedding_dim

    def _products(self) -> int:
        return self.coded.macs + self.chain_macs()
