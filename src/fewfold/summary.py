"""What a compressed model is made of, target by target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from fewfold.assembled import Assembled
from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.rebuild import present
from fewfold.checkpoint.structure import StoreRecord, Structure, TargetRecord
from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.methods.registry import method_named
from fewfold.store import Store, stores_of
from fewfold.stored import StoredEmbedding, StoredLinear
from fewfold.surgery.layouts import FusedLinear
from fewfold.surgery.wrappers import unwrapped

COLUMNS = ("target", "method", "rank", "layout", "form", "stored", "parameters", "dense", "bytes", "macs")


@dataclass(frozen=True)
class SummaryRow:
    """One replaced weight, or one store that several share; biases are left out of all counts.

    :param rank: the method's settings in short.
    :param form: how it runs now: chained or rebuilt.
    :param parameters: stored numbers.
    :param dense: numbers of the dense weight.
    :param bytes: bytes of the stored tensors on disk.
    :param macs: multiply-accumulates a token as it runs now.
    """

    target: str
    method: str
    rank: str
    layout: str
    form: str
    stored: str
    parameters: int
    dense: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """All rows and the whole model's totals. ``print`` gives a table.

    :param parameters: unique parameters of the whole model.
    :param bytes: bytes of its tensors on disk.
    :param dense_parameters: unique parameters before compression.
    :param budgets: what was asked and reached.
    :param notes: what a method wants known of itself: what it saves, and what it does not.
    """

    rows: list[SummaryRow]
    parameters: int
    bytes: int
    dense_parameters: int
    budgets: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[SummaryRow]:
        return iter(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.rows:
            return f"not compressed: {self.parameters:,} unique parameters, {self.bytes / 1e6:,.2f} MB"
        cells = [list(COLUMNS)] + [
            [row.target, row.method, row.rank, row.layout, row.form, row.stored]
            + [f"{value:,}" for value in (row.parameters, row.dense, row.bytes, row.macs)]
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 6 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(
            f"whole model: {self.parameters:,} unique parameters (dense {self.dense_parameters:,}, "
            f"{self.dense_parameters / max(self.parameters, 1):.2f}× fewer), {self.bytes / 1e6:,.2f} MB"
        )
        lines += [f"budget {b['asked']}: limit {b['limit']:,.6g}, reached {b['reached']:,.6g}" for b in self.budgets]
        return "\n".join([*lines, *self.notes])


def summary(model: nn.Module) -> Summary:
    """Describe a model: one row a replaced weight, and totals."""
    model = unwrapped(model)
    structure = present(model, structure_of(model) or Structure())
    records, stores = structure.targets, structure.stores
    rows = [_row(model, record) for record in records]
    rows += [_store_row(stores_of(model)[record.name], record) for record in stores]
    parameters = stored_numbers(model)
    dense = parameters - sum(row.parameters for row in rows) + sum(row.dense for row in rows)
    steps = structure.provenance.get("steps", [])
    budgets = [budget for step in steps for budget in step["budgets"]]
    notes = []
    for method in dict.fromkeys(record.method for record in records):
        counts = [sum(record.method == method for record in found) for found in (records, stores)]
        notes += method_named(method).notes(*counts)
    return Summary(rows, parameters, stored_bytes(model), dense, budgets, notes)


def _row(model: nn.Module, record: TargetRecord) -> SummaryRow:
    module = model.get_submodule(record.module)
    if isinstance(module, FusedLinear) and record.part is not None:
        module = module.parts[record.part]
    assert isinstance(module, Assembled)
    bias = getattr(module, "bias", None)
    held = [value for name, value in module.named_parameters(recurse=False) if name.startswith("bias")]
    held += [bias] if isinstance(bias, nn.Parameter) else []
    own = {id(one): one for one in held}.values()
    biases, bias_bytes = sum(b.numel() for b in own), sum(b.numel() * b.element_size() for b in own)
    # a bias that a store owns counts there, and as part of what was dense
    shared = record.rows if isinstance(bias, Tensor) and not isinstance(bias, nn.Parameter) else 0
    layouts = {"embedding": "table", "conv": "kernel", "recurrent": "gates", "norm": "vector"}
    layout = layouts.get(record.kind, "in×out" if record.transposed else "out×in")
    form = module.running_form
    numbers = stored_numbers(module)
    return SummaryRow(
        target=record.name, method=record.method,
        rank=_settings(record.settings),
        layout=layout + (f"[{record.part}]" if record.part else ""), form=form, stored=record.stored_dtype,
        parameters=numbers - biases, dense=record.rows * record.columns + shared,
        bytes=stored_bytes(module) - bias_bytes,
        macs=module.dense_macs() if form == "rebuilt" else module.chain_macs(),
    )  # fmt: skip


def _store_row(store: Store, record: StoreRecord) -> SummaryRow:
    """Tensors that several targets share count here, and nowhere else."""
    return SummaryRow(
        target=f"({record.name})", method=record.method, rank=_settings(record.settings), layout="store", form="–",
        stored=record.stored_dtype, parameters=stored_numbers(store), dense=0, bytes=stored_bytes(store), macs=0,
    )  # fmt: skip


def _settings(settings: dict[str, Any]) -> str:
    counted = {name: len(value) if name == "slots" else value for name, value in settings.items()}
    words = (str(value) if name == "rank" else f"{name}={value}" for name, value in counted.items())
    return ", ".join(words) or "–"


def stored_numbers(model: nn.Module) -> int:
    """Unique parameters, and the numbers of tensors that stand in memory in their small form only."""
    packed = [
        leaf.matrix_shape
        for leaf in model.modules()
        if isinstance(leaf, StoredLinear | StoredEmbedding) and leaf.is_packed
    ]
    return unique_parameters(model) + sum(rows * columns for rows, columns in packed)
