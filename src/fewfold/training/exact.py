"""Checkpoints of transformers' Trainer that lose nothing."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

from fewfold.training.sharded import exact_state, load_exact

WEIGHTS = "model.safetensors"


class ExactCheckpoints(Trainer):
    """Keeps the floats that stored tensors train as, whatever dtype they are kept in; gathered where they are sharded.

    A model's own ``save_pretrained`` would round them, and Adam's moments are about the floats.
    """

    def kept(self) -> nn.Module:
        """What checkpoints hold."""
        return self.model  # type: ignore[return-value]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the exact floats."""
        state = exact_state(self.kept())  # in all processes
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(state, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read what :meth:`save_model` wrote."""
        load_exact(self.kept(), load_file(Path(resume_from_checkpoint) / WEIGHTS))
