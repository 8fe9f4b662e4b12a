"""A checkpoint that loads where fewfold is not installed."""

from __future__ import annotations

import json
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file

from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.folders import atomic_folder, copy_side_files
from fewfold.errors import ModelError
from fewfold.export import alone
from fewfold.export.assembly import record_assembly

CODE = "modeling_standalone.py"


def export_standalone(model: Any, folder: str | PathLike[str], *, source: str | PathLike[str] | None = None) -> Path:
    """Write a compressed model with the code that loads it.

    The file holds the stored tensors, each once, as ``save_pretrained`` would; ``assembly.json`` the operations that
    make dense weights of them; ``modeling_standalone.py`` runs those at load, given ``trust_remote_code=True``. So the
    model is small on disk and on the way, and as large and as fast as the dense one once it is loaded: to run through
    the factors, load with fewfold from the original checkpoint. Without ``trust_remote_code`` loading stops with a size
    mismatch. The loaded model is a plain one, also where fewfold is imported.

    :param source: the folder the model came from: its tokenizer and sentence-transformers files are kept.
    :return: the folder.
    :raises ModelError: if the model is not compressed, or its class is none of transformers' own.
    """
    kind, folder = type(model), Path(folder)
    if structure_of(model) is None:
        raise ModelError(f"this {kind.__name__} is not compressed by fewfold: save_pretrained is stand-alone already")
    if getattr(transformers, kind.__name__, None) is not kind:
        raise ModelError(
            f"{kind.__name__} is a class of fewfold's, which code without fewfold cannot build; export it as ONNX"
        )
    program, tensors = record_assembly(model)
    with atomic_folder(folder) as partial:
        if source is not None:
            copy_side_files(Path(source), partial)
        for stale in ("README.md", "README.original.md"):
            (partial / stale).unlink(missing_ok=True)
        config = model.config.to_dict()
        config.pop("quantization_config", None)
        config["architectures"] = [kind.__name__]
        config["auto_map"] = {name: f"{Path(CODE).stem}.Standalone{name}" for name in auto_names(model)}
        (partial / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
        (partial / "assembly.json").write_text(json.dumps(program, separators=(",", ":")) + "\n", encoding="utf-8")
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        save_file(
            {name: one.contiguous() for name, one in tensors.items()}, partial / "model.safetensors", {"format": "pt"}
        )
        shutil.copyfile(alone.__file__, partial / CODE)
        (partial / "README.md").write_text(_card(kind.__name__), encoding="utf-8")
    return folder


def auto_names(model: Any) -> list[str]:
    """The Auto classes that load this model's class, ``AutoModel`` first."""
    found = ["AutoModel"]
    for name in sorted(dir(transformers)):
        if name.startswith("AutoModel") and name != "AutoModel":
            classes = getattr(transformers, name)._model_mapping
            known = getattr(classes, "_model_mapping", {}).get(model.config.model_type, ())
            if type(model).__name__ in ((known,) if isinstance(known, str) else tuple(known)):
                found.append(name)
    return found


def _card(architecture: str) -> str:
    return (
        f"---\nlibrary_name: transformers\ntags:\n- fewfold\n---\n\n"
        f"# A compressed {architecture} that loads by itself\n\n"
        "```python\nfrom transformers import AutoModel\n"
        'model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)\n```\n\n'
        f"The weights are assembled from the stored tensors while loading (`assembly.json`, `{CODE}`); what is loaded "
        "is a plain model.\n"
    )
