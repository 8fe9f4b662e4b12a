"""Run a model over calibration batches and collect statistics at its targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from fewfold.calibration.cache import Cache
from fewfold.calibration.inputs import Batch, count_rows
from fewfold.calibration.statistics import Moments, Statistics
from fewfold.errors import CalibrationError
from fewfold.measure.modes import evaluating
from fewfold.progress import track
from fewfold.surgery.roles import reads_memory
from fewfold.surgery.targets import Target


def collect(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Sequence[Batch],
    *,
    gradients: bool = True,
    seed: int = 0,
    cache: Cache | None = None,
) -> Statistics:
    """Collect input moments, token counts and (optionally) output-gradient moments.

    Gradients are those of ``v · output`` with fresh Gaussian ``v`` on every token: their second moment ``E[g gᵀ]``
    turns an error of a target's output into the expected error of the model's output (a Gauss–Newton metric;
    cf. K-FAC, Martens and Grosse 2015). A head's logits use labels drawn from the model itself, which gives the
    Fisher metric.

    Every fourth batch is enough for gradients where there are many.

    :param targets: where to collect; modules with the same input share one set of moments.
    :param cache: keeps finished batches on disk, so that an interrupted run goes on where it stopped.
    :raises CalibrationError: if the model cannot run on a batch, or gives numbers that are not finite.
    """
    collector = _Collector(model, targets, seed)
    done = 0
    if cache is not None:
        loaded = cache.load()
        if loaded is not None:
            collector.statistics, done = loaded
    every = max(1, min(4, len(batches) // 4))
    if done < len(batches):
        with collector.hooks():
            for index, batch in track(list(enumerate(batches))[done:], "calibrating", total=len(batches) - done):
                collector.run(batch, index, gradients and index % every == 0)
                if cache is not None:
                    cache.save(collector.statistics, index + 1, final=index + 1 == len(batches))
    return collector.statistics


class _Collector:
    def __init__(self, model: nn.Module, targets: Sequence[Target], seed: int) -> None:
        self.model, self.seed = model, seed
        self.targets = {target.module: target for target in targets}
        self.statistics = Statistics()
        self.batch: Batch = {}
        self.calls: Counter[str] = Counter()  # of every target, in this batch
        self.seen: dict[int, tuple[str, Tensor]] = {}
        self.spread = _Spread()

    def hooks(self) -> ExitStack:
        """Hooks on every target; closing the stack removes them."""
        stack = ExitStack()
        for name, target in self.targets.items():
            module = self.model.get_submodule(name)
            handle = module.register_forward_hook(self._hook(name, target))
            stack.callback(handle.remove)
        stack.enter_context(evaluating(self.model))
        return stack

    def _hook(self, name: str, target: Target) -> Callable[..., None]:
        stepwise = is_called_each_step(self.model, name)

        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            del module
            mask = padding_mask(self.batch, name, args[0], self.calls[name] if stepwise else None)
            self.calls[name] += 1
            if target.kind == "embedding":
                self._count(name, target, args[0], mask)
            else:
                self._input(name, args[0], mask)
            if output.requires_grad:
                output.register_hook(lambda gradient: self._gradient(name, gradient, mask))

        return hook

    def _input(self, name: str, hidden_states: Tensor, mask: Tensor | None) -> None:
        known = self.seen.get(id(hidden_states))
        leader = self.statistics.leader.get(name)
        if leader is None:
            leader = known[0] if known is not None else name
            self.statistics.leader[name] = leader
        if known is None:
            self.seen[id(hidden_states)] = (name, hidden_states)
        if leader == name:
            moments = self.statistics.inputs.setdefault(name, Moments(hidden_states.shape[-1]))
            moments.add(rows_of(hidden_states, mask))

    def _count(self, name: str, target: Target, ids: Tensor, mask: Tensor | None) -> None:
        kept = ids[mask] if mask is not None else ids.flatten()
        counts = torch.bincount(kept.cpu(), minlength=target.rows)
        old = self.statistics.token_counts.get(name)
        self.statistics.token_counts[name] = counts if old is None else old + counts

    def _gradient(self, name: str, gradient: Tensor, mask: Tensor | None) -> None:
        rows = rows_of(gradient, mask)
        if not bool(rows.isfinite().all()):
            raise CalibrationError(
                f"the gradient at {name} is not finite in {str(gradient.dtype).removeprefix('torch.')}: load the model "
                "in float32 or bfloat16 to compress it, or take LowRank(weighting='inputs')"
            )
        self.statistics.gradients.setdefault(name, Moments(gradient.shape[-1])).add(rows)

    def run(self, batch: Batch, index: int, gradients: bool) -> None:
        """One forward pass, and one backward pass where gradients are asked for."""
        self.batch, self.seen = batch, {}
        self.calls.clear()
        try:
            if not gradients:
                with torch.no_grad():
                    self.model(**batch)
            else:
                self._forward_backward(batch, index)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, CalibrationError):
                raise
            shapes = {key: tuple(value.shape) for key, value in batch.items()}
            raise CalibrationError(f"the model cannot run on calibration batch {index} {shapes}: {error}") from error
        finally:
            self.seen = {}
        texts, tokens = count_rows([batch])
        self.statistics.texts += texts
        self.statistics.tokens += tokens

    def _forward_backward(self, batch: Batch, index: int) -> None:
        trained = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            # gradients are wanted at activations only: the first embedding output (or pixel input) starts the graph
            with torch.enable_grad(), _graph_starts(self.model, batch) as inputs:
                output = _final_output(self.model(**inputs))
                if not bool(output.isfinite().all()):
                    raise CalibrationError(f"the model's output on calibration batch {index} is not finite")
                rows = rows_of(output, self._output_mask(output)).float()
                score = _random_score(rows, self.spread.energy(rows.detach()), self.seed + index)
                score.backward()
        finally:
            for parameter, flag in trained.items():
                parameter.requires_grad_(flag)

    def _output_mask(self, output: Tensor) -> Tensor | None:
        for key in ("decoder_attention_mask", "attention_mask"):
            mask = self.batch.get(key)
            if mask is not None and tuple(mask.shape) == tuple(output.shape[:-1]):
                return mask.bool()
        return None


class _graph_starts:
    """Make activations require gradients although no parameter does."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch, self.handles = model, batch, []  # type: ignore[var-annotated]

    def __enter__(self) -> Batch:
        def start(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            del module, args
            return output if output.requires_grad else output.requires_grad_()

        from fewfold.assembled import AssembledEmbedding
        from fewfold.models.slim import SlimEmbedding

        for module in self.model.modules():
            if isinstance(module, nn.Embedding | AssembledEmbedding | SlimEmbedding):
                # first in line, so that the collecting hook sees an output that requires gradients
                self.handles.append(module.register_forward_hook(start, prepend=True))
        return {
            name: tensor.clone().requires_grad_() if tensor.is_floating_point() and name == "pixel_values" else tensor
            for name, tensor in self.batch.items()
        }

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()


def padding_mask(batch: Batch, name: str, tensor: Tensor, step: int | None = None) -> Tensor | None:
    """The padding mask that belongs to a module's input, or None where every row counts.

    :param name: the module's name; a decoder's own tokens have a mask of their own.
    :param tensor: its input: ids ``(batch, length)``, hidden states ``(batch, length, width)`` or
        ``(batch · length, width)``, or those of one step of a recurrent layer ``(batch, width)``.
    :param step: which of a module that is called at every step.
    """
    lead = tuple(tensor.shape[:-1] if tensor.is_floating_point() else tensor.shape)
    decoder = "decoder" in name.split(".") and not reads_memory(name)
    for key in ("decoder_attention_mask", "attention_mask") if decoder else ("attention_mask",):
        mask = batch.get(key)
        if mask is None:
            continue
        if tuple(mask.shape) == lead:
            return mask.bool()
        if step is not None and (mask.shape[0],) == lead and step < mask.shape[1]:
            return mask[:, step].bool()
        if step is None and (mask.numel(),) == lead:
            return mask.flatten().bool()
    return None


def is_called_each_step(model: nn.Module, name: str) -> bool:
    """Whether a recurrent layer calls this module of its own once a step, as its ``called_each_step`` says."""
    layer, _, own = name.rpartition(".")
    return own in getattr(model.get_submodule(layer), "called_each_step", ())


def rows_of(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """The rows ``(tokens, width)`` that are not padding."""
    return tensor[mask] if mask is not None else tensor.reshape(-1, tensor.shape[-1])


def _final_output(outputs: object) -> Tensor:
    spans = [getattr(outputs, name, None) for name in ("start_logits", "end_logits")]
    if all(isinstance(value, Tensor) for value in spans):  # two scores a token
        return torch.stack(spans, -1)  # type: ignore[arg-type]
    for name in ("logits", "last_hidden_state"):
        value = getattr(outputs, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(outputs, Tensor):
        return outputs
    for value in outputs if isinstance(outputs, tuple | list) else getattr(outputs, "values", tuple)():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise CalibrationError(
        f"the model returns {type(outputs).__name__}, which holds no logits and no last_hidden_state to "
        "differentiate; use LowRank(weighting='inputs')"
    )


class _Spread:
    """How far a model's outputs lie apart: the mean squared distance of rows from their mean.

    A batch of few rows (scores of single texts) says nothing of it: it goes by all rows so far.
    """

    ENOUGH = 8

    def __init__(self) -> None:
        self.count, self.square = 0, 0.0
        self.total: Tensor | None = None

    def energy(self, rows: Tensor) -> float:
        """Of this batch's rows ``(count, width)``, or of all so far."""
        exact = rows.double()
        self.count, self.square = self.count + len(rows), self.square + float(exact.square().sum())
        self.total = exact.sum(0) if self.total is None else self.total + exact.sum(0)
        if len(rows) >= self.ENOUGH:
            energy = float((rows - rows.mean(0)).square().sum(-1).mean())
        else:  # of very few rows the mean is unknown, and counts as 0
            mean = self.total / self.count if self.count >= self.ENOUGH else torch.zeros(())
            energy = self.square / self.count - float(mean.square().sum())
        return max(energy, 1e-12)


def _random_score(rows: Tensor, energy: float, seed: int) -> Tensor:
    """A scalar whose gradient at the output's rows is Gaussian, in units of the output's energy."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(rows.shape, generator=generator).to(rows.device)
    return (rows * direction).sum() / energy**0.5
