"""Find the weights of a model that a method may replace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fewfold.assembled import Assembled, AssembledEmbedding, AssembledLinear
from fewfold.errors import TargetError
from fewfold.linalg.finite import is_finite
from fewfold.stored.coded_state import CodedState
from fewfold.surgery.layouts import FusedLinear, FusedParts, Part, fused_parts
from fewfold.surgery.refusals import embedding_scale, refusal_of, table_readers
from fewfold.surgery.ties import Tie, find_ties, tied_linears

Kind = Literal["linear", "embedding", "conv", "recurrent", "norm"]
OPERATORS = ("conv", "recurrent")  # only found when asked for: few methods serve them

BODY = ("linear", "embedding", *OPERATORS)
_HEAD_WORDS = {"pooler", "classifier", "lm_head", "score", "qa_outputs", "router", "cls"}


@dataclass(frozen=True)
class Target:
    """A weight that a method may replace.

    :param name: the module's name, with ``:part`` for a part of a fused projection.
    :param module: the module's name.
    :param kind: ``linear`` (matrix ``(out, in)``), ``embedding`` (table ``(vocab, dim)``), ``conv`` (kernel, flattened
        to ``(out, in · width)``), ``recurrent`` (all weights of an LSTM or GRU side by side, ``(gates, in)``) or
        ``norm`` (``(width, 1)``; only methods that take norms along make such targets).
    :param rows: ``out`` or ``vocab``.
    :param columns: ``in`` or ``dim``.
    :param bias: whether the module adds a bias.
    :param transposed: whether the module keeps the matrix as ``(in, out)``, as GPT-2's Conv1D.
    :param part: the part of a fused projection, or None for the whole module.
    :param scale: factor that the embedding multiplies its rows with.
    :param padding_idx: the embedding's padding row.
    :param ties: other modules that use the same weight.
    :param head: outside of the encoder or decoder stack (output heads, poolers): only replaced when named.
    :param refusal: why this weight cannot be replaced, or None.
    :param operator: of a ``conv`` or ``recurrent`` target: its class's name.
    :param arguments: of that class's constructor.
    :param shapes: of its weights, by their names in the module.
    """

    name: str
    module: str
    kind: Kind
    rows: int
    columns: int
    bias: bool = False
    transposed: bool = False
    part: Part | None = None
    scale: float = 1.0
    padding_idx: int | None = None
    ties: tuple[Tie, ...] = ()
    head: bool = False
    refusal: str | None = None
    operator: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)

    @property
    def numel(self) -> int:
        """Numbers of the dense weight."""
        return self.rows * self.columns

    @property
    def heads(self) -> int:
        """How many output layers multiply by this weight, tied to it."""
        return sum(tie.role == "head" for tie in self.ties)

    @property
    def dense_macs(self) -> int:
        """A token's multiply-accumulates with the dense weight: a linear map's, or those of a table's tied heads."""
        return self.numel * (self.heads if self.kind == "embedding" else self.kind == "linear")

    @property
    def layer(self) -> int | None:
        """The first number in the name that stands alone: the layer, 0-based."""
        return next((int(piece) for piece in self.module.split(".") if piece.isdigit()), None)

    @property
    def layout(self) -> str:
        """In words: how the matrix sits in its module."""
        if self.kind in ("embedding", "norm"):
            return "table" if self.kind == "embedding" else "vector"
        if self.kind in OPERATORS:
            return self.operator
        words = "in×out" if self.transposed else "out×in"
        return f"{words}[{self.part.name}]" if self.part else words


def _describe(name: str, module: nn.Module, parent: nn.Module | None) -> Target | None:
    """The target that a module is, if it is one."""
    refusal = refusal_of(module, parent)
    if isinstance(module, AssembledLinear):
        return Target(
            name, name, "linear", module.out_features, module.in_features, bias=module.bias is not None,
            transposed=bool(module.original) and isinstance(module.original[0], Conv1D),
        )  # fmt: skip
    if isinstance(module, AssembledEmbedding):
        return Target(
            name, name, "embedding", module.num_embeddings, module.embedding_dim,
            scale=module.scale, padding_idx=module.padding_idx,
        )  # fmt: skip
    if isinstance(module, FusedLinear):
        first: Any = next(iter(module.parts.values()))
        return Target(
            name, name, "linear", module.out_features, first.in_features,
            refusal="its parts are compressed apart already; densify the model, then compress it anew",
        )  # fmt: skip
    if isinstance(module, nn.Linear):
        rows, columns = module.weight.shape
        return Target(name, name, "linear", rows, columns, bias=module.bias is not None, refusal=refusal)
    if isinstance(module, Conv1D):
        columns, rows = module.weight.shape
        return Target(name, name, "linear", rows, columns, bias=True, transposed=True, refusal=refusal)
    if isinstance(module, nn.Embedding):
        rows, columns = module.weight.shape
        scale = embedding_scale(module)
        return Target(
            name, name, "embedding", rows, columns, scale=1.0 if scale is None else scale,
            padding_idx=module.padding_idx, refusal=refusal,
        )  # fmt: skip
    return None


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Every module once, with its parent, not descending into modules that are already assembled."""
    seen: set[int] = set()

    def visit(
        name: str, module: nn.Module, parent: nn.Module | None
    ) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module, parent
        if isinstance(module, Assembled | FusedLinear | CodedState):
            return
        for child_name, child in module.named_children():
            yield from visit(f"{name}.{child_name}" if name else child_name, child, module)

    yield from visit("", model, None)


def _is_head(model: nn.Module, name: str) -> bool:
    if any(piece in _HEAD_WORDS for piece in name.split(".")):
        return True
    prefix = getattr(model, "base_model_prefix", "")
    outside = bool(prefix) and hasattr(model, prefix) and not name.startswith(f"{prefix}.")
    if outside:
        return True
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return output is not None and model.get_submodule(name) is output


def find_targets(model: nn.Module, operators: bool = False) -> list[Target]:
    """Every weight of ``model`` that a method may replace, in the model's own order.

    :param operators: convolutions and recurrent layers too.

    A weight that several modules use (tied heads, encoder–decoder tables) is one target: the embedding is its home,
    the others are listed in ``ties``. Weights that cannot be served carry the reason in ``refusal``.
    """
    from fewfold.surgery.operators import describe_operator

    ties, alike, readers = find_ties(model), tied_linears(model), table_readers(model)
    tied_elsewhere = {tie.module for group in ties.values() for tie in group}
    targets = []
    for name, module, parent in _walk(model):
        target = _describe(name, module, parent)
        if target is None and operators:
            target = describe_operator(name, module)
        if target is None or target.module in tied_elsewhere:
            continue
        own = tuple(ties.get(name, ()))
        refusal = target.refusal or _refusal_of_ties(model, own)
        if name in alike:
            refusal = f"it shares its weight with {alike[name]}, which would end: leave both out"
        elif target.kind == "embedding" and (reader := readers.get(name.rpartition(".")[2])):
            refusal = f"{reader} reads this weight instead of calling the module"
        targets.append(replace(target, ties=own, head=_is_head(model, name), refusal=refusal))
    return targets


def _refusal_of_ties(model: nn.Module, ties: Iterable[Tie]) -> str | None:
    """Why a table cannot be replaced for those that are tied to it, or None."""
    for tie in ties:
        parent = model.get_submodule(tie.module.rpartition(".")[0])
        refusal = refusal_of(model.get_submodule(tie.module), parent)
        if refusal is not None:
            return f"its weight is tied to {tie.module}, and {refusal}"
    return None


def split_fused(model: nn.Module, target: Target) -> list[Target]:
    """The q, k and v of a fused projection as targets of their own; ``[target]`` where nothing is fused."""
    parts: FusedParts | None = fused_parts(target.module, target.rows, model)
    if parts is None or target.kind != "linear":
        return [target]
    return [replace(target, name=f"{target.name}:{part.name}", rows=part.rows, part=part) for part in parts]


def is_token_table(model: nn.Module, target: Target) -> bool:
    """Whether an embedding target is looked up by token ids (not positions or types)."""
    if not isinstance(model, PreTrainedModel):
        return target.kind == "embedding"
    homes = {id(sub.get_input_embeddings()) for sub in _text_models(model)}
    names = (target.module, *(tie.module for tie in target.ties))
    return any(id(model.get_submodule(name)) in homes for name in names)


def _text_models(model: nn.Module) -> Iterator[PreTrainedModel]:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            try:
                module.get_input_embeddings()
            except (NotImplementedError, AttributeError):
                continue
            yield module


def matches(pattern: str, name: str) -> bool:
    """Whether a name, glob or ``re:`` pattern names a target; a pattern also names what lies below it."""
    if pattern.startswith("re:"):
        try:
            return re.search(pattern[3:], name) is not None
        except re.error as error:
            raise TargetError(f"{pattern!r} is no regular expression: {error}") from None
    regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(regex + r"([.:].*)?", name) is not None


def select(model: nn.Module, targets: Iterable[Target], pattern: str) -> list[Target]:
    """The targets that one pattern names.

    ``linears`` and ``embeddings`` (token tables) are the model's body, ``all`` is both and what else ``targets`` hold.
    ``rest`` is what they leave: heads that are not tied, poolers, tables of positions and types; it may be nothing.

    :raises TargetError: if nothing is named, or what is named cannot be replaced.
    """
    targets = list(targets)
    if pattern in ("linears", "embeddings", "all"):
        kinds = {"linears": ("linear",), "embeddings": ("embedding",), "all": BODY}[pattern]
        body = {target.name for kind in kinds for target in _body(model, targets, kind)}
        chosen = [target for target in targets if target.name in body]
        refused = [target for target in targets if target.kind in kinds and target.refusal]
    elif pattern == "rest":
        body = {t.name for kind in BODY for t in _body(model, targets, kind)}
        return [target for target in targets if target.refusal is None and target.name not in body]
    else:
        chosen = [target for target in targets if matches(pattern, target.name)]
        refused = [target for target in chosen if target.refusal]
        chosen = [target for target in chosen if not target.refusal]
    if refused and not chosen:
        raise TargetError(f"{refused[0].name} cannot be replaced: {refused[0].refusal}")
    if not chosen:
        raise TargetError(f"{pattern!r} names no weight of this model; {describe_names(targets)}")
    return chosen


def _body(model: nn.Module, targets: Iterable[Target], kind: str) -> list[Target]:
    return [
        target
        for target in targets
        if target.kind == kind
        and target.refusal is None
        and not (target.head and kind != "embedding")
        and (kind != "embedding" or is_token_table(model, target))
    ]


def describe_names(targets: Iterable[Target]) -> str:
    """What exists, for an error: names with layer numbers folded to ``*``."""
    names: dict[str, None] = {}
    for target in targets:
        names[re.sub(r"(?<=\.)\d+(?=\.)", "*", target.name)] = None
    listed = list(names)
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return "there are " + ", ".join(listed[:20]) + more if listed else "it has no linear or embedding at all"


def read_weight(model: nn.Module, target: Target) -> Tensor:
    """The dense weight of a target as ``(rows, columns)``, fp32, detached.

    :raises TargetError: if the weight is on the meta device or not finite.
    """
    module: Any = model.get_submodule(target.module)
    weight = module.assembled_weight() if isinstance(module, Assembled) else module.weight
    if weight.is_meta:
        raise TargetError(f"{target.name} is on the meta device: load the weights before compressing")
    weight = weight.detach()
    if target.kind == "norm" and not isinstance(module, Assembled):
        weight = weight[:, None]
    if target.transposed and not isinstance(module, Assembled):
        weight = weight.t()
    if target.part is not None:
        weight = target.part.take(weight)
    weight = weight.float()
    if not is_finite(weight):
        bad = int((~weight.isfinite()).sum())
        raise TargetError(f"{target.name} holds {bad} numbers that are NaN or infinite: repair the model first")
    return weight


def read_bias(model: nn.Module, target: Target) -> Tensor | None:
    """The bias of a target, ``(rows,)``, or None."""
    bias = getattr(model.get_submodule(target.module), "bias", None)
    if bias is None:
        return None
    bias = bias.detach()
    return target.part.take(bias) if target.part else bias
