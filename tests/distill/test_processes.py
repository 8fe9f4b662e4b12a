"""Two processes that share a batch learn what one process learns from it, the student whole or spread over them."""

import copy
import json
import multiprocessing
import os
import shutil
import socket

import pytest
import torch
from distill_models import Killed, config, kill_at, make_teacher, make_tokenizer, sentences

import fewfold
from fewfold.distill.run import distil
from fewfold.distill.trainer import DistillTrainer
from fewfold.training import rounding

# texts of unequal length: means over each process's own tokens would differ from the whole batch's
SETTINGS = {
    "steps": 5,
    "accumulation": 2,
    "reduction": "tokens",
    "hidden": [{"layers": "all", "kind": "relative"}],
    "attention": [{"kind": "scores"}],
    "sentence": {},
    "anchors": {"count": 16},
    "rates": "by_size",
    "whole_rate_loss": 100.0,
    "epsilon": 1e-4,  # else Adam blows rounding errors up where gradients vanish
    "validation": 8,
    "checkpoint_minutes": 1e-9,
}


def run(folder=None, stored="fp32"):
    teacher = make_teacher()
    method = fewfold.SharedFactors(rank=6, weighting="none", stored_dtype=stored)
    student = fewfold.compress(copy.deepcopy(teacher), method)
    outcome = distil(
        teacher, student, sentences(96), config=config(**SETTINGS), tokenizer=make_tokenizer(), checkpoints=folder
    )
    history = outcome.histories[0]
    numbers = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    return {
        "curve": [point["loss"] for point in history.curve],
        "tokens": history.tokens,
        "held_out": [point["loss"] for point in history.held_out],
        "numbers": numbers.tolist(),
    }


SHARDED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}  # fmt: skip


def worker(rank, port, folder, options, stored):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    os.environ.update(options)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    torch.set_num_threads(1)
    units, original = [], DistillTrainer.compute_loss

    def counting(self, model, *args, **kwargs):
        units.append(sum(hasattr(module, "reshard") for module in model.modules()))
        return original(self, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillTrainer, "compute_loss", counting)
        live = kill_at(patch, 4)
        with pytest.raises(Killed):
            run(folder / "checkpoints", stored)
        live()
        result = {**run(folder / "checkpoints", stored), "units": sorted(set(units))}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def two_processes(tmp_path, options, stored):
    """Run in two processes; what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=worker, args=(rank, port, tmp_path, options, stored)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(240)
        assert process.exitcode == 0
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        pytest.param({}, "fp32", id="replicas"),
        pytest.param({}, "int3", id="replicas-int3", marks=pytest.mark.full),
        pytest.param(SHARDED, "fp32", id="FSDP2", marks=pytest.mark.full),
        pytest.param(SHARDED, "int3", id="FSDP2-int3", marks=pytest.mark.full),
    ],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that they need not import torch again")
def test_two_processes_learn_as_one(options, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "REFRESH", 2)  # scales change too
    two = two_processes(tmp_path, options, stored)
    one = run(stored=stored)
    assert one["curve"][-1] < one["curve"][0]
    assert len(list((tmp_path / "checkpoints" / "phase-1").glob("checkpoint-*"))) == 2
    for result in two:
        assert result["units"] == ([4] if options else [0])  # embeddings, two layers, and what is around them
        assert result["curve"] == pytest.approx(one["curve"], abs=1e-4)
        assert result["held_out"] == pytest.approx(one["held_out"], abs=1e-4)
        assert result["tokens"] == one["tokens"]
    assert two[0]["numbers"] == two[1]["numbers"]
    assert two[0]["numbers"] == pytest.approx(one["numbers"], abs=1e-4)
    state = tmp_path / "checkpoints" / "phase-1" / "checkpoint-5" / "distill_state.json"
    assert json.loads(state.read_text())["history"]["steps"] == 5
    shutil.rmtree(state.parent)
    alone = run(tmp_path / "checkpoints", stored)  # one process goes on from what two have left
    assert alone["curve"] == pytest.approx(one["curve"], abs=1e-4)
    assert alone["numbers"] == pytest.approx(one["numbers"], abs=1e-4)
