"""The main line: find, calibrate, allocate, fit, replace, record, recover."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fewfold.budget.plan import Choice, Plan, Reached, competing, plan
from fewfold.calibration.cache import Cache, model_fingerprint
from fewfold.calibration.collect import collect
from fewfold.calibration.inputs import Batch, calibration_batches, count_rows, count_tokens, fingerprint
from fewfold.calibration.statistics import NO_STATISTICS, Statistics
from fewfold.checkpoint.config import carry, structure_of
from fewfold.checkpoint.rebuild import present, record_of, ties_of
from fewfold.checkpoint.structure import StoreRecord, Structure
from fewfold.distill.presets import planned
from fewfold.distill.recovery import Recovery, prepare
from fewfold.errors import FewfoldWarning
from fewfold.fitting import Fitter
from fewfold.measure.latency import latency
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.recipe import Recipe, as_budgets
from fewfold.store import free_name
from fewfold.surgery.replace import replace_modules
from fewfold.surgery.targets import Target, is_token_table, read_weight
from fewfold.surgery.units import find_units
from fewfold.surgery.wrappers import inner_model

METRIC_BYTES = 8e9  # memory for output metrics, beyond which fits see the inputs alone


def compress(
    model: nn.Module,
    recipe: Any,
    *,
    budget: Any = None,
    calibration: Any = None,
    tokenizer: Any = None,
    fit: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    max_length: int = 128,
    max_tokens: int | None = None,
    pieces: bool | None = None,
    cache: bool = True,
    sequential: bool | None = None,
    calibration_name: str | None = None,
    recover: Any = None,
    recovery: Recovery | None = None,
) -> Any:
    """Compress a model in place: same class, fewer stored numbers.

    :param model: a transformers model, also inside a SentenceTransformer, ``torch.compile`` or ``DataParallel`` (any
        nn.Module works, but only transformers models save their structure).
    :param recipe: a method config, a list of them, a Recipe, a YAML path or a preset's name.
    :param budget: what it may cost, for example ``Budget(parameters="1/4 of linears")``; one or several.
    :param calibration: texts (with ``tokenizer``), model-input dicts, or a datasets.Dataset.
    :param tokenizer: the model's; it reads the texts.
    :param fit: False builds the structure with fresh weights, for training from scratch.
    :param seed: of everything random (gradient probes, fresh weights).
    :param batch_size: calibration texts in a batch.
    :param max_length: tokens kept of a calibration text.
    :param max_tokens: read about this many tokens of the calibration texts (None: twelve for every input of the
        widest target, at least 24,576).
    :param pieces: cut calibration texts into pieces of 4 to 32 words, so that statistics cover all lengths (None: do
        so unless the model is a causal language model).
    :param cache: keep calibration statistics on disk (``FEWFOLD_CACHE``, else ``~/.cache/fewfold``).
    :param sequential: fit target by target on the inputs that the compressed part before it gives (None: as the
        recipe says, by default yes); False fits every target on the dense model's inputs, in less time.
    :param calibration_name: what records and cards call the calibration data.
    :param recover: distil from the dense model afterwards: minutes, '20min', '300 steps', a preset's name or a
        DistillConfig (None: as the recipe says, by default not at all). A recipe's own recovery keeps to a limit.
    :param recovery: which texts to distil on (None: the calibration texts), and where to keep checkpoints.
    :return: ``model``.
    :raises FewfoldError: naming what is wrong; the model is then as it was.
    """
    recipe, given = Recipe.of(recipe), model
    model = inner_model(model)
    budgets = [*recipe.budget, *as_budgets(budget)]
    units = find_units(model, recipe)
    for unit in units:
        method_named(unit.method).check_model(unit, model, fit)
    targets = [target for unit in units for target in unit.targets]
    replaced = {target.module for target in targets}
    distillation = prepare(model, planned(recover, recipe.recover), recovery, calibration, tokenizer, replaced)
    # statistics are kept on the CPU, and fits are made there, wherever the model is
    weights = {target.name: read_weight(model, target).cpu() for target in targets} if fit else {}
    asking = [unit for unit in units if method_named(unit.method).calibrates(unit) != "nothing"] if fit else []
    batches: list[Batch] = []
    if asking and calibration is None:
        warnings.warn(
            f"no calibration data: {len(asking)} targets are fitted to their weights alone, which keeps much less "
            "quality; pass calibration=texts and tokenizer=tokenizer",
            FewfoldWarning,
            stacklevel=2,
        )
    elif asking:
        if isinstance(calibration, Iterator):
            calibration = list(calibration)
        widest = max((t.columns for unit in asking for t in unit.targets if t.kind == "linear"), default=0)
        batches = calibration_batches(
            calibration,
            tokenizer,
            model,
            batch_size,
            max_length,
            max(24576, 12 * widest) if max_tokens is None else max_tokens,
            not is_causal(model) if pieces is None else pieces,
            seed,
        )
    in_sequence = recipe.sequential if sequential is None else sequential
    # what is fitted in sequence gathers its own moments later: ranks are weighed on every fourth batch
    sample = batches[:: max(1, min(4, len(batches) // 4))] if in_sequence and tokenizer is not None else batches
    statistics = _statistics(model, units, competing(model, units, budgets) if batches else [], sample, seed, cache)
    if batches:
        statistics.texts, statistics.tokens = count_rows(batches)
        _count_everything(model, statistics, asking, calibration, tokenizer)
    sizes = plan(model, units, budgets, weights, statistics, fit)
    choices = _settled(model, sizes.choices, weights, statistics, fit)
    fitter = Fitter(model, weights, statistics, seed)
    if not fit:
        replacements = fitter.fresh(choices)
    elif batches and in_sequence:
        replacements = fitter.in_sequence(choices, batches)
    else:
        replacements = fitter.at_once(choices)
    replace_modules(model, replacements)
    _record(model, recipe, sizes, choices, statistics, fit, calibration_name)
    if distillation is not None:
        distillation.run(model)
    return given


def _settled(
    model: nn.Module, choices: Sequence[Choice], weights: Mapping[str, Tensor], statistics: Statistics, fit: bool
) -> list[Choice]:
    """The choices that replace something, with what the weights decide and names for their stores."""
    settled: list[Choice] = []
    for choice in choices:
        if choice.settings is None:
            continue
        method, unit = method_named(choice.unit.method), choice.unit
        settings = method.settle(unit, choice.settings, weights, statistics) if fit else choice.settings
        store = ""
        if method.records(unit, settings).store is not None:
            store = free_name(model, method.store_name(unit), (other.store for other in settled))
        settled.append(replace(choice, settings=settings, store=store))
    return settled


def _count_everything(
    model: nn.Module, statistics: Statistics, units: Sequence[Unit], calibration: Any, tokenizer: Any
) -> None:
    """Let token tables weigh their rows by all calibration texts, not only by those that the model was run on."""
    for target in (target for unit in units for target in unit.targets if target.kind == "embedding"):
        if target.module in statistics.token_counts and is_token_table(model, target):
            counts = count_tokens(calibration, tokenizer, target.rows)
            if counts is not None:
                statistics.token_counts[target.module] = counts


def is_causal(model: nn.Module) -> bool:
    """Whether a model is of a family that only continues text (GPT-2, Llama), whose inputs are long."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _statistics(
    model: nn.Module,
    units: Sequence[Unit],
    beside: Sequence[Unit],
    batches: Sequence[Batch],
    seed: int,
    use_cache: bool,
) -> Statistics:
    """Calibrate on the batches, or read what an earlier calibration on the same left.

    :param beside: units that are not calibrated, and whose errors have to be in the unit of the others'.
    """
    if not batches:
        return NO_STATISTICS
    wanted = [method_named(unit.method).calibrates(unit) for unit in units]
    gradients = "inputs and gradients" in wanted
    asking = [unit for unit, what in zip(units, wanted, strict=True) if what != "nothing"]
    targets = {target.module: target for unit in asking for target in unit.targets}
    needed = _metric_bytes(targets.values())
    if gradients and needed > METRIC_BYTES:
        warnings.warn(
            f"output metrics of {len(targets)} targets would take {needed / 1e9:.0f} GB: fitting "
            "on the inputs alone. Compress in parts (layers='0-7', …) to keep them",
            FewfoldWarning,
            stacklevel=3,
        )
        gradients = False
    more = {target.module: target for unit in beside for target in unit.targets}
    if gradients and needed + _metric_bytes(more.values()) <= METRIC_BYTES:  # else their errors stay shares
        targets = {**more, **targets}
    cache = None
    if use_cache:
        key = f"{model_fingerprint(model)}|{fingerprint(batches)}|{sorted(targets)}|{gradients}|{seed}"
        cache = Cache(key)
    return collect(model, list(targets.values()), batches, gradients=gradients, seed=seed, cache=cache)


def _metric_bytes(targets: Iterable[Target]) -> int:
    """What the metrics at the outputs take."""
    widths = [target.columns if target.kind == "embedding" else target.rows for target in targets]
    return sum(8 * width * width for width in widths)


def _record(
    model: nn.Module,
    recipe: Recipe,
    sizes: Plan,
    choices: Sequence[Choice],
    statistics: Statistics,
    fit: bool,
    calibration_name: str | None,
) -> None:
    """Write the structure into the model's config, joined with what an earlier compression recorded."""
    from fewfold import __version__

    new, stores = [], []
    for choice in choices:
        unit = choice.unit
        method, stored = method_named(unit.method), unit.config.stored
        records = method.records(unit, choice.settings or {})
        new += [
            record_of(target, unit.method, dict(records.targets[target.name]), stored, choice.store or None)
            for target in unit.targets
        ]
        if records.store is not None:
            stores.append(
                StoreRecord(
                    name=choice.store, method=unit.method, settings=dict(records.store), stored_dtype=stored.name,
                    group_size=stored.group,
                )
            )  # fmt: skip
    targets = [target for choice in choices for target in choice.unit.targets]
    old = present(model, structure_of(model) or Structure())
    names = {record.module for record in new}
    ties = ties_of(targets)
    step = {
        "fewfold": __version__,
        "recipe": recipe.name,
        "source": recipe.source,
        "methods": [
            {"method": config.method, **config.model_dump(mode="json", exclude_defaults=True)}
            for config in recipe.methods
        ],
        "budgets": [_outcome(model, reached) for reached in sizes.reached],
        "fitted": fit,
        "calibration": {
            "name": calibration_name or ("unnamed" if statistics.texts else "none"),
            "texts": statistics.texts,
            "tokens": statistics.tokens,
        },
    }
    if sizes.timing:
        step["timing"] = sizes.timing
    kept = [record for record in old.targets if record.module not in names]
    used = {record.store for record in kept}
    structure = Structure(
        targets=kept + new,
        stores=[store for store in old.stores if store.name in used] + stores,
        ties=[tie for tie in old.ties if tie.module not in {t.module for t in ties}] + ties,
        provenance={"steps": [*old.provenance.get("steps", []), step]},
    )
    carry(model, structure)


def _outcome(model: nn.Module, reached: Reached) -> dict[str, Any]:
    """A budget's record; a latency is measured on the finished model as well."""
    record = {"asked": reached.budget.text, "limit": reached.limit, "reached": reached.reached}
    limit = reached.budget.limit
    if reached.budget.quantity == "latency" and limit.part is None:
        timing = latency({"model": model}, batch=limit.batch, length=limit.length, threads=limit.threads)["model"]
        record["measured"] = timing.median
        if timing.median > 1.1 * reached.limit:
            warnings.warn(
                f"budget {reached.budget.text!r}: the finished model takes {timing.median:.2f} ms; the machine was "
                "busy, or the rest of the model weighs more than was measured. Ask for less, or measure again",
                FewfoldWarning,
                stacklevel=4,
            )
    return record
