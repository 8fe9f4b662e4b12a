"""Save and load whole checkpoint folders: atomically, with tokenizer, side files and model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from fewfold import models as families
from fewfold.checkpoint.card import restore_card, write_card
from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.folders import atomic_folder, copy_side_files
from fewfold.checkpoint.rebuild import present
from fewfold.checkpoint.structure import Structure
from fewfold.errors import CheckpointError
from fewfold.stored import pack
from fewfold.surgery.replace import Replaced

_OF_THE_HUB = ("subfolder", "revision", "token", "cache_dir", "trust_remote_code", "local_files_only")


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    source: str | os.PathLike[str] | None = None,
    numbers: dict[str, Any] | None = None,
) -> Path:
    """Write a complete checkpoint: weights, config, card, and everything else that stands beside the original.

    The folder appears in one step when all is written; a killed save leaves what was there before. A model that stands
    there is replaced as a whole; a folder that holds other files and no model is refused.

    :param model: compressed or dense.
    :param folder: made if missing.
    :param tokenizer: saved along, if given.
    :param source: the folder the model came from: its tokenizer and sentence-transformers files are kept.
    :param numbers: measured figures for the model card.
    :return: the folder.
    :raises CheckpointError: if the folder cannot be written, or holds something else, or if only a part of the model
        was compressed, by itself.
    """
    folder = Path(folder)
    _check_recorded(model)
    with atomic_folder(folder) as partial:
        if source is not None:
            copy_side_files(Path(source), partial)
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if structure_of(model) is not None:
            write_card(model, partial, source=source, numbers=numbers)
        else:
            restore_card(partial)
    return folder


def _check_recorded(model: nn.Module) -> None:
    """Refuse a model of which a part was compressed by itself: only that part's config knows how it is assembled."""
    if not isinstance(model, PreTrainedModel):
        return  # a wrapper, or adapters, which are saved in ways of their own
    structure = present(model, structure_of(model) or Structure())
    known = {record.module for record in structure.targets} | {record.module for record in structure.ties}
    for name, module in model.named_modules():
        if isinstance(module, Replaced) and not any(name == part or name.startswith(f"{part}.") for part in known):
            raise CheckpointError(
                f"{name} was compressed as a part, and {type(model).__name__} does not know how it is assembled, so "
                f"that its checkpoint could not be loaded again: compress the whole model, and name what shall change "
                f"by targets, such as targets='{name.split('.')[0]}.*'"
            )


def load(folder: str | os.PathLike[str], *, packed: bool = False, **kwargs: Any) -> Any:
    """Load a model, compressed or dense, in the class that it was saved from.

    :param folder: that :func:`save` or ``save_pretrained`` wrote, or a name on the Hub.
    :param packed: keep integer-stored tensors in their small form in memory (less memory, slower, no training).
    :param kwargs: passed to ``from_pretrained``.
    :return: the model, in eval mode.
    :raises CheckpointError: if the folder holds no model, or one of a class that is not known here.
    """
    loader = saved_class(folder, **{name: kwargs[name] for name in _OF_THE_HUB if name in kwargs})
    model: nn.Module = loader.from_pretrained(folder, **kwargs)
    return pack(model) if packed else model


def saved_class(folder: str | os.PathLike[str], **hub: Any) -> Any:
    """The class that a model was saved from; ``AutoModel`` where its checkpoint names none.

    :param hub: where on the Hub it stands, as ``from_pretrained`` takes it.
    :raises CheckpointError: as :func:`load`.
    """
    try:
        config = AutoConfig.from_pretrained(folder, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no model that transformers can load: {error}") from error
    homes = (transformers, families)
    classes = [getattr(home, name) for name in config.architectures or [] for home in homes if hasattr(home, name)]
    if classes or not config.architectures:
        return classes[0] if classes else transformers.AutoModel
    name = config.architectures[0]
    for auto, code in (getattr(config, "auto_map", None) or {}).items():  # the checkpoint brings its class
        if str(code).endswith(f".{name}") and hasattr(transformers, auto):
            return getattr(transformers, auto)
    raise CheckpointError(
        f"{folder} was saved as {name}, a class of neither transformers nor fewfold: load it with "
        f"{name}.from_pretrained, after import fewfold"
    )
