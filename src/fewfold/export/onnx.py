"""ONNX: one graph whose batch and length are free, run and compared in ONNX Runtime before it counts as written."""

from __future__ import annotations

import copy
import glob
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fewfold.errors import ModelError
from fewfold.export.dtypes import shorten_dtypes
from fewfold.export.feeds import SIZES, FirstOutput, dynamic_axes, example, first_output
from fewfold.export.graph import Graph, drop_copies, fold_transposes
from fewfold.export.integers import keep_integers
from fewfold.export.late import make_late, shape_late
from fewfold.export.past import PAST_KEY, TRACED, WithPast, compare_past, output_names, past_example, past_shapes
from fewfold.export.products import multiply_integers
from fewfold.measure.modes import evaluating
from fewfold.measure.parameters import stored_bytes
from fewfold.methods.subvector_codes.modules import CodedLinear
from fewfold.optional import require
from fewfold.progress import step

OptimizeFor = Literal["speed", "balance", "memory"]
TOLERANCE = 1e-3  # of the largest output
INT8_TOLERANCE = 0.5
LIMIT = 2**31 - 2**20  # a protobuf holds less than 2 GB
FOLDED = 1024  # numbers of a constant that is computed while exporting


@dataclass(frozen=True)
class OnnxReport:
    """What was written and how it compares.

    :param file: the graph.
    :param bytes: of the graph and its external data.
    :param unique_bytes: of the stored tensors that the model is assembled from, each once.
    :param difference: the largest absolute difference of outputs between ONNX Runtime and torch.
    :param largest: the largest absolute output.
    :param output: the output's name.
    :param integers: weights that are integers in the graph; with ``int8``, products of codes with whole numbers.
    :param external: whether the weights stand in a file of their own.
    """

    file: Path
    bytes: int
    unique_bytes: int
    difference: float
    largest: float
    output: str
    integers: int
    external: bool

    @property
    def overhead(self) -> float:
        """Bytes over unique bytes."""
        return self.bytes / max(self.unique_bytes, 1)


def export_onnx(
    model: Any,
    file: str | PathLike[str],
    *,
    tolerance: float | None = None,
    int8: bool = False,
    optimize_for: OptimizeFor = "balance",
    with_past: bool = False,
) -> OnnxReport:
    """Write a model, compressed or dense, as ONNX and compare it with torch at several batches and lengths.

    Shared tensors stand in the file once, integer-stored weights as integers, codes as codes with their codebooks.
    The weights are inside of the one file; above 2 GB they stand in ``FILE.data``. A model in bf16 or fp16 keeps its
    numbers in two bytes there, and computes in fp32.

    :param tolerance: refuse above this difference, as a share of the largest output (1e-3; with ``int8``, 0.5).
    :param int8: round activations at run time and multiply int8: dense matrices by onnxruntime's dynamic quantization,
        weights of codes by codebooks of int8, the codes kept. Factors that several products share in both orientations
        stay as they are. Such a graph is made for speed.
    :param optimize_for: ``speed`` lets ONNX Runtime make and pack dense weights once, when a session starts: products
        are as fast as the dense model's, and the session takes more than its memory. ``balance`` keeps what codes look
        up, once, and packs it at every run; other weights are as for speed. ``memory`` makes each weight at every run,
        just before its product: a session holds the stored tensors and one weight at a time.
    :param with_past: of a decoder, past keys and values are inputs (``past_key_values.N.key`` and ``.value``) and the
        longer ones outputs (``present.N.key`` and ``.value``): a call reads new tokens only, of an empty past at first.
        Without, every call reads the whole text.
    :raises ModelError: if the outputs differ by more, the model gives neither logits nor last hidden states, or an int8
        graph shall be made for memory.
    :raises ImportError: if onnx, onnxscript or onnxruntime is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx")
    if int8 and optimize_for == "memory":
        raise ModelError("int8 graphs are made for speed: leave out int8 or optimize_for='memory'")
    file, unique = Path(file), stored_bytes(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    share = (INT8_TOLERANCE if int8 else TOLERANCE) if tolerance is None else tolerance
    model = _in_fp32(model)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder, _traceable(model):
        made = Path(folder) / file.name
        with step("tracing"):
            name, proto = trace(model, with_past)
        graph = Graph(proto)
        with step("writing ONNX"):
            drop_copies(graph)
            integers = multiply_integers(graph) if int8 else keep_integers(graph, model)
            fold_transposes(graph)
            if not int8:
                _shorten(graph, optimize_for)
            external = _write(graph.finish(), made)
        if int8:
            with step("quantizing"):
                _quantize(made, external)
        with step("comparing"):
            difference, largest = compare_onnx(model, made)
        if not difference <= share * max(largest, 1e-6):
            raise ModelError(
                f"{type(model).__name__}: ONNX Runtime's outputs differ from torch's by {difference:.3g} where the "
                f"largest is {largest:.3g}; allowed is {share:g} of it. Nothing was written; allow more with tolerance="
            )
        size = _move(made, file)
    return OnnxReport(file, size, unique, difference, largest, name, integers, external)


def _in_fp32(model: nn.Module) -> nn.Module:
    """A copy in fp32 of a model in fewer bits, as ONNX Runtime's processors compute; any other model itself."""
    tensors = (*model.parameters(), *model.buffers())
    if not any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors):
        return model
    return copy.deepcopy(model).float()


def _move(made: Path, file: Path) -> int:
    """Put a graph and its external data in the place of those that stand there; their bytes."""
    size = made.stat().st_size
    data, old = Path(f"{made}.data"), Path(f"{file}.data")
    if data.exists():
        size += data.stat().st_size
        data.replace(old)
    else:
        old.unlink(missing_ok=True)
    made.replace(file)
    return size


def _shorten(graph: Graph, optimize_for: OptimizeFor) -> None:
    """Keep each number in few bytes, and say when they become long."""
    shorten_dtypes(graph, cast_last=optimize_for == "speed")
    if optimize_for == "memory":
        make_late(graph)
    elif optimize_for == "balance":
        shape_late(graph)


def trace(model: Any, with_past: bool = False) -> tuple[str, Any]:
    """The first output's name, and the graph as torch's exporter gives it with small constants computed."""
    values = past_example(model, *TRACED) if with_past else example(model, *SIZES[0])
    names = list(values)
    with torch.no_grad():
        if with_past:
            traced: nn.Module = WithPast(model)
            outputs, axes = output_names(names), past_shapes(names)
        else:
            try:
                outputs = [first_output(model(**values))[0]]
            except ValueError as error:
                raise ModelError(f"{type(model).__name__} cannot become ONNX: {error}") from None
            traced, axes = FirstOutput(model, names), {"values": tuple(dynamic_axes(values).values())}
        with _quiet():
            program = torch.onnx.export(
                traced.eval(), tuple(values.values()), dynamo=True, verbose=False, optimize=False,
                input_names=names, output_names=outputs, dynamic_shapes=axes,
            )  # fmt: skip
    from onnxscript import optimizer

    assert program is not None
    optimizer.optimize(program.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    return outputs[0], program.model_proto


def compare_onnx(model: Any, file: str | PathLike[str]) -> tuple[float, float]:
    """Run a graph and the model on equal inputs of several sizes.

    :return: the largest absolute difference of outputs, and the largest absolute output.
    """
    session = session_of(file)
    names = [entry.name for entry in session.get_inputs()]
    compare = compare_past if PAST_KEY in names else _compare
    with torch.inference_mode(), evaluating(model):
        found = np.array([compare(model, session, *size) for size in SIZES])
    return float(found[:, 0].max()), float(found[:, 1].max())  # NaN is the maximum where there is one


def _compare(model: Any, session: Any, batch: int, length: int) -> tuple[float, float]:
    values = example(model, batch, length)
    expected = first_output(model(**values))[1].float().numpy()
    (found,) = session.run(None, {entry.name: values[entry.name].numpy() for entry in session.get_inputs()})
    return float(np.abs(found - expected).max()), float(np.abs(expected).max())


def session_of(file: str | PathLike[str], threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU that says nothing but errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Eval mode, no cache, outputs with names; all as before afterwards.

    Linear maps of codes run rebuilt: their partial products would be thousands of nodes, and what is made of constants
    is made once a session.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no config to make inputs from; export a transformers model")
    before = {name: getattr(config, name) for name in ("use_cache", "return_dict") if hasattr(config, name)}
    coded = [module for module in model.modules() if isinstance(module, CodedLinear) and module.form == "auto"]
    try:
        for module in coded:
            module.form = "rebuilt"
        with evaluating(model):
            if "use_cache" in before:
                config.use_cache = False
            config.return_dict = True
            yield
    finally:
        for module in coded:
            module.form = "auto"
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _quiet(name: str = "torch.onnx") -> Iterator[None]:
    """The exporter notes packages that no one asked for, and names that two axes share; the quantizer advertises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write(proto: Any, file: Path) -> bool:
    """Write one file, or two where one cannot hold it."""
    import onnx

    external = proto.ByteSize() > LIMIT
    if external:
        onnx.save_model(proto, str(file), save_as_external_data=True, location=f"{file.name}.data")
    else:
        onnx.save_model(proto, str(file))
    return external


def _quantize(file: Path, external: bool) -> None:
    """Dynamic int8 quantization in place: signed weights, a scale for every column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = file.parent / "fp32" / file.name
    plain.parent.mkdir()
    for path in file.parent.glob(f"{glob.escape(file.name)}*"):
        path.rename(plain.parent / path.name)
    with _quiet(""):
        quantize_dynamic(
            str(plain), str(file), weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=external
        )
    shutil.rmtree(plain.parent)
    if not external:
        graph = Graph(onnx.load(str(file)))
        shorten_dtypes(graph)
        _write(graph.finish(), file)
