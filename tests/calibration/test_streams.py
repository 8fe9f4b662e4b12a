import copy

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_models import inputs, make

import fewfold
from fewfold import LowRank, compress
from fewfold.calibration.inputs import calibration_batches
from fewfold.calibration.streams import CannotStream, Streams, find_stacks
from fewfold.surgery.targets import find_targets, select

FAMILIES = ["bert", "roberta_mlm", "distilbert", "gpt2_lm", "llama", "t5_lm", "bart", "vit"]


def rows_read(model, batches, name):
    caught = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, args: caught.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return caught


@pytest.mark.parametrize("family", FAMILIES)
def test_drift_is_what_the_two_models_read(family):
    dense = make(family)
    partial = copy.deepcopy(dense)
    with torch.no_grad():  # stands for a compressed part before the stack
        for parameter in partial.get_input_embeddings().parameters():
            parameter.mul_(1.1)
    batches = calibration_batches([{k: v for k, v in inputs(family).items() if "mask" not in k}], None, dense)
    targets = select(dense, find_targets(dense), "linears")
    seen = set()
    for number, blocks in enumerate(find_stacks(dense, targets)):
        for drifts in Streams(dense, partial, blocks, targets, batches, first=number == 0).stages():
            for name, drift in drifts.items():
                own = torch.cat([t.flatten(0, -2) for t in rows_read(partial, batches, name)]).double().numpy()
                theirs = torch.cat([t.flatten(0, -2) for t in rows_read(dense, batches, name)]).double().numpy()
                np.testing.assert_allclose(drift.product.numpy(), own.T @ own, rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(drift.cross.numpy(), theirs.T @ own, rtol=1e-3, atol=1e-3)
                seen.add(name)
    inside = {t.module for t in targets if any(piece.isdigit() for piece in t.module.split("."))}
    assert seen == inside


def test_stages_follow_execution_and_share_inputs():
    model = make("bert")
    batches = calibration_batches([inputs("bert")], None, model)
    targets = select(model, find_targets(model), "linears")
    (blocks,) = find_stacks(model, targets)
    stages = [list(drifts) for drifts in Streams(model, copy.deepcopy(model), blocks, targets, batches).stages()]
    tails = [[name.split("layer.")[1] for name in stage] for stage in stages]
    assert tails[:4] == [
        ["0.attention.self.query", "0.attention.self.key", "0.attention.self.value"],
        ["0.attention.output.dense"],
        ["0.intermediate.dense"],
        ["0.output.dense"],
    ]
    assert len(tails) == 8


@pytest.mark.parametrize("kind", ["answers", "own"])
def test_caches_of_keys_stay_empty(kind):
    torch.manual_seed(0)
    config = tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, use_cache=True)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tf.GPT2Model(config)

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids).last_hidden_state

    model = (tf.GPT2ForQuestionAnswering(config) if kind == "answers" else Own()).eval()
    given = [{"input_ids": torch.randint(40, (2, 9))} for _ in range(3)]
    fewfold.compress(model, fewfold.LowRank(rank=4), calibration=given, cache=False)
    assert config.use_cache


def test_blocks_that_are_skipped_cannot_be_streamed():
    model = make("bert")
    batches = calibration_batches([inputs("bert")], None, model)
    targets = select(model, find_targets(model), "linears")
    model.encoder.layer[1].register_forward_pre_hook(lambda m, args: (args[0] + 1.0, *args[1:]))
    (blocks,) = find_stacks(model, targets)
    with pytest.raises(CannotStream):
        list(Streams(model, copy.deepcopy(model), blocks, targets, batches).stages())


@pytest.mark.parametrize("family", FAMILIES)
def test_fitting_in_sequence_is_no_worse_than_at_once(family):
    """On the texts that were calibrated on, the model's own output error falls."""
    dense = make(family)
    batches = [inputs(family, batch=32), inputs(family, batch=16)]
    errors = {}
    for sequential in (False, True):
        model = compress(copy.deepcopy(dense), LowRank(rank=5), calibration=batches, sequential=sequential, cache=False)
        with torch.no_grad():
            errors[sequential] = float(sum((model(**batch)[0] - dense(**batch)[0]).square().sum() for batch in batches))
    assert errors[True] < 1.05 * errors[False]
