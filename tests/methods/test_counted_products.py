"""Multiply-accumulates that modules tell of, against those that torch counts while they run."""

import pytest
import torch
import transformers as tf
from torch.utils.flop_counter import FlopCounterMode

import fewfold
from fewfold import LowRank, SharedBasis, SharedFactors, SharedLayers, TensorTrain, Tucker
from fewfold.assembled import AssembledLinear

WIDTH, INNER, LAYERS, TOKENS = 48, 192, 2, 7  # products divide evenly between those that share them
CONFIGS = {
    "low rank": LowRank(rank=12),
    "shared factors": SharedFactors(rank=(24, 12)),
    "shared factors, banks apart": SharedFactors(rank=(24, 12), apart=True),
    "tucker": Tucker(rank=(24, 12), bank=5),
    "tensor train": TensorTrain(rank=6),
    "bases": SharedBasis(rank=12),
    "layers": SharedLayers(map="all", delta_rank=4),
}


def llama():
    """Without biases, which some forms multiply by ones."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=30, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=INNER
    )
    return tf.LlamaModel(config).eval()


def counted(model):
    """Products of matrices in one pass, attention's own apart, for each token."""
    ids = torch.arange(3, 3 + TOKENS)[None]
    with torch.no_grad():
        model(ids)  # what is made once is made
        with FlopCounterMode(display=False) as counter:
            model(ids)
    found = counter.get_flop_counts()["Global"]
    total = sum(count for op, count in found.items() if str(op) in ("aten.mm", "aten.addmm", "aten.bmm"))
    assert total % (2 * TOKENS) == 0
    return total // (2 * TOKENS)


def test_a_dense_model_is_counted_so():
    assert counted(llama()) == LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)


@pytest.mark.parametrize("form", ["chained", "folded", "rebuilt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_modules_tell_what_they_multiply(name, form):
    model = fewfold.compress(llama(), CONFIGS[name], fit=False)
    fewfold.set_form(model, form)
    maps = [module for module in model.modules() if isinstance(module, AssembledLinear)]
    told = sum(module.dense_macs() if form == "rebuilt" else module.chain_macs() for module in maps)
    assert told == counted(model)


def test_shared_factors_multiply_as_published():
    """16 D d + 12 d² of every layer of BERT with two factors for all slices (Ren et al., ICLR 2022, III-d)."""
    width, rank = 48, 6
    config = tf.BertConfig(vocab_size=30, hidden_size=width, num_hidden_layers=3, num_attention_heads=2,
                           intermediate_size=4 * width)  # fmt: skip
    model = fewfold.compress(tf.BertModel(config, add_pooling_layer=False), SharedFactors(rank=rank), fit=False)
    fewfold.set_form(model, "chained")
    told = sum(module.chain_macs() for module in model.modules() if isinstance(module, AssembledLinear))
    assert told == 3 * (16 * width * rank + 12 * rank**2)
