"""Data-parallel training: two processes with half of the texts each get the gradients of one with all."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from fewfold.models import ShareBertConfig, ShareBertForMaskedLM

SIZES = {
    "vocab_size": 101, "factor_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def start():
    torch.manual_seed(0)
    model = ShareBertForMaskedLM(ShareBertConfig(**SIZES, use_pooler=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model, torch.randint(1, 101, (4, 6), generator=torch.Generator().manual_seed(1))


def train(model, body, ids):
    """Two steps of two accumulated backward passes, the layers checkpointed in the second."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for turn in range(2):
        if turn:
            body.gradient_checkpointing_enable({"use_reentrant": False})
        for _ in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in body.parameters()])


def work(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, ids = start()
    found = train(DistributedDataParallel(model), model, ids[2 * rank : 2 * rank + 2])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.full
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    model, ids = start()
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    expected = train(model, model, ids)
    assert float((expected - before).abs().max()) > 1e-3
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-9, atol=1e-11)
