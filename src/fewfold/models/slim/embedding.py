"""A look-up table built from shared sub-vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewfold.errors import ModelError
from fewfold.models.slim.assignment import balanced_codes
from fewfold.models.slim.sizes import SlimCodes
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.dtypes import StoredDtype
from fewfold.stored.kept import Kept
from fewfold.stored.modules import unpack


def slim_matrix(rows: int, columns: int, codes: SlimCodes, std: float) -> CodedMatrix:
    """A coded matrix with fresh sub-vectors and drawn codes; on the meta device in its packed form, ready to load."""
    codes.check(rows, columns)
    stored = StoredDtype(codes.stored_dtype)  # type: ignore[arg-type]
    coded = CodedMatrix(rows, columns, [codes.stage(columns)], stored=stored)
    coded.distinct = True
    if coded.codes(0).is_meta:
        for leaf in coded.modules():
            if isinstance(leaf, Kept):
                leaf.pack_()
        return coded
    coded.set_codes_([balanced_codes(rows, codes.positions, codes.words, codes.pool == "free", codes.seed)])
    for leaf in coded.codebooks.children():
        nn.init.normal_(leaf.weight, std=std)  # type: ignore[arg-type]
    return coded


def ready(coded: CodedMatrix) -> CodedMatrix:
    """The matrix with whole numbers as codes, also after a load that left streams of bits.

    :raises CheckpointError: naming codes that point outside of their pool.
    """
    if coded.is_packed:
        unpack(coded)
    return coded


class SlimEmbedding(nn.Module):
    """``e_w = [a_{f(w,1)} ; … ; a_{f(w,K)}]``: rows are chains of shared sub-vectors, trained from scratch.

    The codes ``f`` are drawn at random, in balance, by a generator of their own, and never change (Li et al., AAAI
    2018, "Slim Embedding Layers for Recurrent Neural Language Models"). They are saved with the sub-vectors; loading
    refuses codes outside of the pool and warns of equal rows. The table keeps ``M · columns / K`` numbers however large
    the vocabulary is.

    :param codes: the shape; see :meth:`SlimCodes.sized` for a pool's size, a ratio or a budget.
    :param padding_idx: a row that comes out as zeros: it has no vector of its own that could be zero.
    :param std: standard deviation of fresh sub-vectors.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        codes: SlimCodes | dict[str, Any],
        padding_idx: int | None = None,
        std: float = 0.05,
    ) -> None:
        super().__init__()
        if not isinstance(codes, SlimCodes):
            codes = SlimCodes.from_dict(codes, num_embeddings, embedding_dim)
        if padding_idx is not None and not 0 <= padding_idx < num_embeddings:
            raise ModelError(f"SlimEmbedding: padding_idx={padding_idx}; it must be 0…{num_embeddings - 1}, or None")
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.codes = codes
        self.coded = slim_matrix(num_embeddings, embedding_dim, codes, std)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids of any shape to ``(…, embedding_dim)``."""
        rows = ready(self.coded)(input_ids)
        if self.padding_idx is not None:
            rows = torch.where((input_ids == self.padding_idx)[..., None], 0.0, rows)
        return rows

    def dense(self) -> nn.Embedding:
        """A plain table with the same rows."""
        table = ready(self.coded)().detach().clone()
        if self.padding_idx is not None:
            table[self.padding_idx] = 0.0
        return nn.Embedding.from_pretrained(table, freeze=False, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {_words(self.codes, self.num_embeddings)}"


def _words(codes: SlimCodes, rows: int) -> str:
    return (
        f"positions={codes.positions}, words={codes.words}, pool={codes.pool}, {codes.ratio(rows):.1f}× fewer numbers"
    )
