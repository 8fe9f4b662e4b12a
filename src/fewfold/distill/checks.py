"""Refuse, before hours are spent, what cannot come out well."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fewfold.distill.config import DistillConfig
from fewfold.distill.examples import Examples
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.tokens import TokenisedTexts
from fewfold.errors import DistillError, FewfoldWarning

AT_ONCE = "fewfold_mask_predict"  # the family whose decoder does not go token by token
PROBE = "The Cat, naïve Ångström 1,234!"  # tokenizers that share their tokens may still differ in case and accents
REPEATS = 200  # passes over the data beyond which a warning says that it is little


def check_models(teacher: Any, student: Any, tokenizer: Any, student_tokenizer: Any = None) -> None:
    """Whether the two models read the same tokens, and the student can train.

    :raises DistillError: naming the difference.
    """
    for who, model in (("teacher", teacher), ("student", student)):
        if getattr(model, "config", None) is None or not hasattr(model, "base_model"):
            raise DistillError(f"the {who} is a {type(model).__name__}; distillation needs transformers models")
        reads = getattr(model, "main_input_name", "input_ids") == "input_ids"
        if not reads or not hasattr(model.config.get_text_config(), "vocab_size"):
            raise DistillError(f"the {who} {type(model).__name__} reads no tokens; distillation needs models of text")
        if model.config.model_type == AT_ONCE:
            raise DistillError(
                f"the {who} {type(model).__name__} predicts all tokens of a target at once, and distillation feeds "
                "decoders token by token (teacher forcing)"
            )
    if is_seq2seq(teacher) != is_seq2seq(student):
        kinds = ["an encoder–decoder" if is_seq2seq(model) else "a model of one stack" for model in (teacher, student)]
        raise DistillError(f"the teacher is {kinds[0]} and the student {kinds[1]}: distil between models of one kind")
    if teacher is student:
        raise DistillError("teacher and student are the same object: keep a copy of the dense model before compressing")
    sizes = [model.config.get_text_config().vocab_size for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise DistillError(
            f"the teacher's vocabulary has {sizes[0]} tokens and the student's {sizes[1]}: distil between models with "
            "one tokenizer"
        )
    if tokenizer is None:
        raise DistillError("texts need a tokenizer: pass tokenizer=…, or save one beside the teacher")
    for side in ("source", "target") if is_seq2seq(student) else ("",):
        own = getattr(tokenizer, side, tokenizer)
        _check_tokenizers(own, getattr(student_tokenizer, side, student_tokenizer))
        known = getattr(student.config, "decoder_vocab_size", None) if side == "target" else None
        if len(own) > (known or sizes[0]):
            raise DistillError(f"the tokenizer gives {len(own)} tokens and the models know {known or sizes[0]}")
    _check_trainable(student)


def check_cache(phases: Sequence[DistillConfig]) -> None:
    """Whether what a cache keeps of a teacher is what the phases learn from.

    :raises DistillError: saying what to leave out.
    """
    if any(phase.masking is not None for phase in phases):
        raise DistillError("cache_teacher keeps what the teacher says of whole texts: leave out the cache, or masking")
    if any(phase.count_padding and (phase.hidden or phase.of_vectors) for phase in phases):
        raise DistillError(
            "cache_teacher keeps nothing of padding: leave out the cache, or count_padding (count_padding=False)"
        )


def vocabularies_of(tokenizer: Any) -> Any:
    """The tokenizers of an encoder–decoder's two sides; one of both sides comes back as it is."""
    from fewfold.tasks.translation.vocabulary import Vocabularies

    both = Vocabularies.of(tokenizer)
    return tokenizer if both.is_joint else both


def decoder_start(model: Any) -> int:
    """The token that an encoder–decoder's decoder begins with.

    :raises DistillError: if its config names none.
    """
    named = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = next(
        (getattr(model.config, name, None) for name in named if getattr(model.config, name, None) is not None), None
    )
    if start is None:
        raise DistillError(f"{type(model).__name__} tells no token that its decoder begins with: set config.{named[0]}")
    return int(start)


def _check_tokenizers(teacher: Any, student: Any) -> None:
    if student is None or student is teacher:
        return
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    apart = [token for token, number in theirs.items() if ours.get(token) != number]
    other = min(apart, key=theirs.__getitem__, default=None)
    if other is not None or len(theirs) != len(ours):
        named = f"for example {other!r} is {theirs.get(other)} and {ours.get(other)}" if other else "one has more"
        raise DistillError(f"the tokenizers of teacher and student differ ({named}): distil between models with one")
    read = [list(tokenizer(PROBE)["input_ids"]) for tokenizer in (teacher, student)]
    if read[0] != read[1]:
        pieces = [" ".join(teacher.convert_ids_to_tokens(ids)) for ids in read]
        raise DistillError(
            f"the tokenizers of teacher and student have the same tokens and read a text as {pieces[0]!r} and "
            f"{pieces[1]!r}: distil between models with one"
        )


def _check_trainable(student: nn.Module) -> None:
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not trained:
        raise DistillError("no parameter of the student trains: student.requires_grad_(True), or unpack a packed model")
    half = next((p.dtype for p in trained if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise DistillError(f"the student's weights are {half}: train student.float(), with bf16=True for autocast")


def check_data(tokens: TokenisedTexts, config: DistillConfig, steps: int | None) -> None:
    """Whether there is enough text for the run.

    :param tokens: the texts to train on.
    :param steps: planned steps, if known.
    :raises DistillError: if there are fewer texts than one batch has.
    """
    if len(tokens) < config.batch_size:
        raise DistillError(
            f"{len(tokens)} texts to train on do not fill one batch of {config.batch_size} ({config.validation} are "
            "asked for validation): give more text, or lower batch_size"
        )
    if int(tokens.lengths.max()) < 4:
        raise DistillError("no text is longer than 3 tokens: give sentences or paragraphs")
    if steps is not None and steps * config.batch_size > REPEATS * len(tokens):
        passes = steps * config.batch_size / len(tokens)
        warnings.warn(
            f"{steps} steps read each of {len(tokens)} texts {passes:.0f} times: give more text",
            FewfoldWarning,
            stacklevel=3,
        )


def check_parts(batch_size: int, accumulation: int, processes: int) -> None:
    """Whether a batch can be dealt to all processes and their parts.

    :raises DistillError: saying which sizes go.
    """
    if batch_size % (accumulation * processes):
        raise DistillError(
            f"batch_size={batch_size} is not divided by {processes} processes × accumulation={accumulation}: choose a "
            f"multiple of {accumulation * processes}"
        )


def check_labels(examples: Examples, student: Any) -> None:
    """Whether labels fit the student's head.

    :raises DistillError: naming the label that does not, and its text.
    """
    classes = getattr(student.config, "num_labels", 1)
    if examples.labels is None or classes == 1:
        return
    for text, label in zip(examples.texts, examples.labels, strict=True):
        if label != int(label) or not 0 <= label < classes:
            raise DistillError(
                f"label {label:g} of {text[:40]!r} is no class of the student, which has {classes} (0…{classes - 1}): "
                "number classes from 0, or load both models with num_labels=…"
            )
