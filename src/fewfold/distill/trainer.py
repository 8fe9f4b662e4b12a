"""The training loop: transformers' Trainer, with the teacher in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from fewfold.distill.batches import GroupedBatches
from fewfold.distill.bert_adam import BertAdam
from fewfold.distill.checkpoints import STATE
from fewfold.distill.checks import check_parts
from fewfold.distill.clock import Clock, rate_factor
from fewfold.distill.config import DistillConfig
from fewfold.distill.masked import HELD_OUT, BatchMasking
from fewfold.distill.pupil import Pupil, finite
from fewfold.distill.teachers import Teacher
from fewfold.distill.tokens import TokenisedTexts
from fewfold.errors import DistillError
from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.measure.inputs import clipped_length
from fewfold.training.arguments import one_device
from fewfold.training.complete import newest
from fewfold.training.exact import ExactCheckpoints
from fewfold.training.lengths import even_length, length_stride
from fewfold.training.processes import process_count
from fewfold.training.rates import parameter_groups
from fewfold.training.rounding import RoundedSteps
from fewfold.training.sharded import is_sharded, load_optimizer, optimizer_state, whole

MASKS = ("attention_mask", "decoder_attention_mask")
ENDLESS = 10**9  # steps of a run that the clock ends


class DistillTrainer(ExactCheckpoints):
    """Trains a pupil on tokenised texts.

    Parts of a batch (accumulated or in other processes) are weighed by the tokens they hold, so that the loss and
    its gradient are those of the whole batch.

    :param folder: checkpoints are written here.
    :param masking: hides tokens of every batch.
    :param rates: what learning rates are multiplied by, by the name of the student's parameter.
    """

    model: Pupil

    def __init__(
        self, pupil: Pupil, tokens: TokenisedTexts, config: DistillConfig, clock: Clock, folder: Path,
        masking: BatchMasking | None = None, rates: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.tokens, self.clock, self.masking = config, tokens, clock, masking
        self.rates, self.totals = dict(rates or {}), dict[str, float]()
        self.parts = 1
        self.stride = length_stride(pupil.student, config.bf16)
        self.step_losses: dict[str, Tensor] = {}
        super().__init__(pupil, training_arguments(config, clock, folder), train_dataset=tokens)
        check_parts(config.batch_size, config.accumulation, self.args.world_size)
        self.remove_callback(PrinterCallback)
        self.add_callback(RoundedSteps(pupil.rounding))

    def create_accelerator_and_postprocess(self) -> None:
        """As ever; accelerate would not shard on CPUs, though all that it needs is there."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if is_sharded() and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled:  # every process has read the student
            state.fsdp_plugin.cpu_ram_efficient_loading = False

    def get_train_dataloader(self) -> DataLoader:
        """Batches grouped by length, this process's parts of them."""
        config, args = self.config, self.args
        batches = GroupedBatches(
            self.tokens.sizes, config.batch_size, args.max_steps, config.seed, config.accumulation,
            args.process_index, args.world_size,
        )  # fmt: skip
        return DataLoader(self.tokens, batch_sampler=batches, collate_fn=self.tokens.collator(self.padded))

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, None]:
        """The parts of one step; counts them, over all processes, and looks at the clock."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.masking is not None:
            parts = [self.masking(part, self.state.global_step + 1) for part in parts]
        counts = [self.criterion.counts(part) for part in parts]
        names = sorted(counts[0])
        sums = [sum(count[name] for count in counts) for name in names]
        real = sum(int(part[name].sum()) for part in parts for name in MASKS if name in part)
        sums = self.summed([*sums, real, self.clock.now() if self.args.process_index == 0 else 0.0])
        self.totals = dict(zip((*names, "real"), sums, strict=False))
        self.clock.see(sums[-1])
        self.parts, self.step_losses = len(parts), {}
        return parts, None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one part of a batch.

        :raises DistillError: if it is no number; the student is then as after the last good step.
        """
        counts = self.criterion.counts(inputs)
        # the Trainer divides by the parts of a step, and gradients are averaged over processes
        scale = self.parts * self.args.world_size
        losses = model(inputs, {name: scale * count / max(self.totals[name], 1) for name, count in counts.items()})
        if not finite(losses):
            raise DistillError(self.trouble("the loss", {name: loss.item() for name, loss in losses.items()}))
        for name, loss in losses.items():
            self.step_losses[name] = self.step_losses.get(name, 0.0) + loss.detach() / self.parts
        return torch.stack([*losses.values()]).sum()

    def trouble(self, what: str, values: Any) -> str:
        """An error's text: what is no number, at which step, and where the last good state is."""
        kept = newest(Path(str(self.args.output_dir)), STATE)
        good = "no checkpoint yet" if kept is None else f"the last good checkpoint is {kept}"
        return (
            f"{what} is no finite number at step {self.state.global_step + 1} ({values}); {good}. Lower "
            f"learning_rate={self.config.learning_rate:g}, or clip gradients more than clip={self.config.clip:g}"
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """AdamW or BERT's Adam; biases and norms do not decay."""
        if self.optimizer is None:
            config, model = self.config, model or self.model
            decays = set(self.get_decay_parameter_names(model))
            named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
            factors = {f"student.{name}": factor for name, factor in self.rates.items()}
            groups = parameter_groups(named, config.learning_rate, factors, config.weight_decay, decays)
            values: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
            self.optimizer = (
                BertAdam(groups, **values) if config.optimizer == "bert_adam" else AdamW(groups, **values, fused=True)
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Warm-up and decay over the steps or the clock, whichever is further."""
        factor, clock = rate_factor(self.config), self.clock

        def rate(step: int) -> float:
            # a rate is set one step ahead; the first step of a warm-up is not lost on a rate of 0, nor is an only one
            return factor(clock.fraction(step)) if step else factor(clock.fraction(1)) or factor(clock.fraction(0.5))

        self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def slow_down(self, share: float) -> None:
        """Take so much of every learning rate from now on."""
        assert self.lr_scheduler is not None
        assert self.optimizer is not None
        self.lr_scheduler.base_lrs = [rate * share for rate in self.lr_scheduler.base_lrs]
        self.lr_scheduler._last_lr = [rate * share for rate in self.lr_scheduler._last_lr]
        for group in self.optimizer.param_groups:
            group["lr"], group["initial_lr"] = group["lr"] * share, group["initial_lr"] * share

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Whole tensors, as one process writes them: accelerate's form misses parameters without a gradient."""
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        files = [Path(checkpoint) / name for name in (OPTIMIZER_NAME, SCHEDULER_NAME)]
        optimizer, schedule = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
        load_optimizer(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(schedule)

    @torch.no_grad()
    def held_out_losses(self, tokens: TokenisedTexts, teacher: Teacher, batch_size: int = 64) -> dict[str, float]:
        """The weighted losses over texts that are not trained on, as if they were one batch."""
        self.model.eval()
        order = sorted(range(len(tokens)), key=lambda place: int(tokens.sizes[place]))
        collate = tokens.collator(self.padded)
        batches = [collate(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
        if self.masking is not None:
            batches = [self.masking(batch, HELD_OUT) for batch in batches]
        counts = [self.criterion.counts(batch) for batch in batches]
        found: dict[str, float] = {}
        with self.model.rounding.applied():
            for batch, count in zip(batches, counts, strict=True):
                shares = {name: count[name] / max(sum(other[name] for other in counts), 1) for name in count}
                moved = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                for name, loss in self.model(moved, shares, teacher).items():
                    found[name] = found.get(name, 0.0) + float(loss)
        return found

    def padded(self, longest: int) -> int:
        """The length of a batch; where padding counts, always the same."""
        limit = clipped_length(self.model.student.config, self.config.max_length)
        return limit if self.config.count_padding else even_length(longest, self.stride, limit)

    @property
    def criterion(self) -> Any:
        """The pupil's losses."""
        return self.model.objective

    def summed(self, numbers: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.args.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()


def training_arguments(config: DistillConfig, clock: Clock, folder: Path) -> TrainingArguments:
    """What the Trainer does by itself: everything that the watch does is off."""
    part = max(1, config.batch_size // (config.accumulation * process_count()))
    warn_of_slow_bf16(config.bf16)
    args = TrainingArguments(
        output_dir=str(folder), max_steps=clock.steps or ENDLESS, per_device_train_batch_size=part,
        gradient_accumulation_steps=config.accumulation, learning_rate=config.learning_rate, max_grad_norm=0.0,
        bf16=config.bf16, seed=config.seed, data_seed=config.seed, use_cpu=not torch.cuda.is_available(),
        save_strategy="no", save_total_limit=2, logging_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False, ddp_find_unused_parameters=True, label_names=[],
    )  # fmt: skip
    return one_device(args)


Clip = Callable[[], float]


def clipper(config: DistillConfig, parameters: list[nn.Parameter]) -> Clip:
    """Cut gradients to a norm, of the model or tensor by tensor; gives the norm before."""

    def clip() -> float:
        if config.clip_by == "tensor" and config.clip:
            with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
            norms = [nn.utils.clip_grad_norm_([parameter], config.clip) for parameter in with_gradient]
            return float(torch.stack([whole(norm) for norm in norms]).norm()) if norms else 0.0
        return float(whole(nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))))

    return clip
