"""transformers' Trainer with checkpoints that lose nothing, and a decay that spares shared norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from fewfold.training.decay import shared_vectors
from fewfold.training.sharded import exact_state, load_exact

WEIGHTS = "model.safetensors"
CODES = (torch.uint8, torch.int8, torch.int16, torch.int32)  # dtypes of what is looked up, and not trained


class ExactCheckpoints(Trainer):
    """Keeps the floats that stored tensors train as, whatever dtype they are kept in; gathered where they are sharded.

    A model's own ``save_pretrained`` would round them, and Adam's moments are about the floats. Processes do not send
    each other the codes: all have read the same ones, they never change, and gloo has no word for integers of 16 bits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.model is not None
        codes = [name for name, buffer in self.model.named_buffers() if buffer.dtype in CODES]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, codes)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Trainer's own, less the norms and biases that layers share."""
        shared = shared_vectors(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in shared]

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
