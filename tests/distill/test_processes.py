"""Two processes that share a batch learn what one process learns from it."""

import json
import multiprocessing
import os
import socket

import pytest
import torch
from distill_models import config, make_student, make_teacher, make_tokenizer, sentences

from fewfold.distill.run import distil

# texts of unequal length: means over each process's own tokens would differ from the whole batch's
SETTINGS = {
    "steps": 5,
    "accumulation": 2,
    "reduction": "tokens",
    "hidden": [{"layers": "all", "kind": "relative"}],
    "attention": [{"kind": "scores"}],
    "sentence": {},
    "epsilon": 1e-4,  # else Adam blows rounding errors up where gradients vanish
    "validation": 8,
}


def run(folder=None):
    teacher = make_teacher()
    student = make_student(teacher)
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


def worker(rank, port, folder):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    torch.set_num_threads(1)
    result = run(folder / "checkpoints")
    (folder / f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that they need not import torch again")
def test_two_processes_learn_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=worker, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
        assert process.exitcode == 0
    one = run()
    two = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert one["curve"][-1] < one["curve"][0]
    for result in two:
        assert result["curve"] == pytest.approx(one["curve"], abs=1e-4)
        assert result["held_out"] == pytest.approx(one["held_out"], abs=1e-4)
        assert result["tokens"] == one["tokens"]
    assert two[0]["numbers"] == two[1]["numbers"]
    assert two[0]["numbers"] == pytest.approx(one["numbers"], abs=1e-4)
    (state,) = (tmp_path / "checkpoints" / "phase-1").glob("*/distill_state.json")
    assert json.loads(state.read_text())["history"]["steps"] == 5
