"""Trainers whose checkpoints lose nothing, in several processes."""

import pytest
import torch
from tiny_models import make
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

import fewfold
from fewfold import SubvectorCodes
from fewfold.training.arguments import trainer_arguments
from fewfold.training.exact import ExactCheckpoints


@pytest.fixture
def one_process():
    init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    yield
    destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without processes")
def test_codes_of_many_words_stay_where_they_are(one_process, tmp_path):
    model = make("bert")
    fewfold.compress(model, SubvectorCodes(targets="linears", width=1, words=300, weighting="none"))
    assert any(buffer.dtype == torch.int16 for buffer in model.buffers())
    trainer = ExactCheckpoints(model, trainer_arguments(output_dir=str(tmp_path)))
    wrapped = DistributedDataParallel(trainer.model, broadcast_buffers=True)
    ids = torch.arange(2, 8)[None]
    output = wrapped(input_ids=ids).last_hidden_state
    torch.testing.assert_close(output, model(input_ids=ids).last_hidden_state)
    output.sum().backward()
