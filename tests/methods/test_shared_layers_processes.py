"""Two processes with every layer wrapped by FSDP2 compute, and learn, what one process does."""

import json
import multiprocessing
import os
import socket

import pytest
import torch
from layer_models import deep
from tiny_models import inputs

import fewfold
from fewfold import SharedLayers


def make_shared():
    config = SharedLayers(map="cycle", blocks=2, norms_and_biases="shared", weighting="none", delta_rank=2)
    return fewfold.compress(deep("bert", 4), config)


def steps(model, count=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        loss = model(**inputs("bert")).last_hidden_state.square().mean()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def worker(rank, port, folder):
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    model = make_shared()
    for layer in model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    (folder / f"{rank}.json").write_text(json.dumps({"losses": steps(model), "held": held}))
    distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that they need not import torch again")
def test_two_processes_with_wrapped_layers(tmp_path):
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
    model = make_shared()
    whole = sum(parameter.numel() for parameter in model.parameters())
    expected = steps(model)
    assert expected[-1] < expected[0]
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["losses"] == pytest.approx(expected, rel=1e-5)
        assert result["held"] < 0.6 * whole
