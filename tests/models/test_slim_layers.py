"""Slim look-ups and output layers against tables that are built naively."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewfold import CheckpointError, ModelError
from fewfold.linalg.gather_sum import chain_is_cheaper, chain_trains_cheaper
from fewfold.models import SlimCodes, SlimEmbedding, SlimSoftmax

ROWS, COLUMNS = 30, 12


def naive_table(coded):
    """Row by row, sub-vector by sub-vector."""
    stage, codes = coded.stages[0], coded.codes(0).numpy()
    book = coded.book(0).detach().numpy().reshape(-1, stage.words, stage.width)
    table = np.zeros((coded.rows, coded.columns), book.dtype)
    for row in range(coded.rows):
        for position in range(codes.shape[1]):
            pool = book[0 if stage.shared else position]
            table[row, position * stage.width : (position + 1) * stage.width] = pool[codes[row, position]]
    return table


@pytest.mark.parametrize("pool", ["positions", "free"])
def test_look_ups_are_chains_of_sub_vectors(pool):
    layer = SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7, "pool": pool}).double()
    ids = torch.randint(ROWS, (2, 5))
    np.testing.assert_array_equal(layer(ids).detach().numpy(), naive_table(layer.coded)[ids.numpy()])


def test_look_up_gradients_gather_by_code():
    layer = SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7}).double()
    ids, weights = torch.randint(ROWS, (40,)), torch.randn(40, COLUMNS, dtype=torch.float64)
    (layer(ids) * weights).sum().backward()
    expected = np.zeros((3, 7, 4))
    codes = layer.coded.codes(0)
    for token, row in enumerate(ids.tolist()):
        for position in range(3):
            expected[position, codes[row, position]] += weights[token, 4 * position : 4 * position + 4].numpy()
    np.testing.assert_allclose(layer.coded.codebooks["0"].weight.grad.numpy().reshape(3, 7, 4), expected, atol=1e-12)


@pytest.mark.parametrize("positions", [1, 3])
def test_codes_that_name_every_row_make_a_dense_table(positions):
    """K = 1 and K > 1 with a sub-vector of its own for every row: equal to nn.Embedding and nn.Linear, bit by bit."""
    embedding = SlimEmbedding(ROWS, COLUMNS, SlimCodes(positions, ROWS))
    head = SlimSoftmax(COLUMNS, ROWS, embedding, bias=False)
    embedding.coded.set_codes_([torch.arange(ROWS)[:, None].expand(ROWS, positions)])
    book = embedding.coded.codebooks["0"].weight
    dense = book.detach().unflatten(0, (positions, ROWS)).transpose(0, 1).flatten(1).clone().requires_grad_()
    ids, states = torch.randint(ROWS, (4, 6)), torch.randn(70, COLUMNS)
    assert torch.equal(embedding(ids), F.embedding(ids, dense))
    assert torch.equal(F.linear(states, head.matrix()), F.linear(states, dense))
    torch.testing.assert_close(head(states), F.linear(states, dense), atol=1e-6, rtol=0)
    (embedding(ids).square().sum() + F.linear(states, head.matrix()).square().sum()).backward()
    (F.embedding(ids, dense).square().sum() + F.linear(states, dense).square().sum()).backward()
    found = book.grad.unflatten(0, (positions, ROWS)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found, dense.grad, atol=1e-5, rtol=1e-5)


def test_as_many_positions_as_columns_share_single_numbers():
    layer = SlimEmbedding(ROWS, COLUMNS, {"positions": COLUMNS, "words": 5})
    assert sum(p.numel() for p in layer.parameters()) == 5 * COLUMNS
    for column in range(COLUMNS):
        assert len(layer(torch.arange(ROWS))[:, column].unique()) == 5


def test_words_of_equal_codes_have_equal_vectors():
    layer = SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7})
    codes = layer.coded.codes(0).clone()
    codes[4] = codes[9]
    layer.coded.set_codes_([codes])
    assert torch.equal(layer(torch.tensor(4)), layer(torch.tensor(9)))
    assert not torch.equal(layer(torch.tensor(5)), layer(torch.tensor(9)))


@pytest.mark.parametrize("batch", [1, 5, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_products_with_the_table_in_both_forms(batch, bias, monkeypatch):
    head = SlimSoftmax(COLUMNS, ROWS, {"positions": 3, "words": 7}, bias).double()
    if bias:
        nn.init.normal_(head.bias)
    states = torch.randn(batch, COLUMNS, dtype=torch.float64, requires_grad=True)
    expected = states.detach().numpy() @ naive_table(head.coded).T + (head.bias.detach().numpy() if bias else 0)
    gradients = []
    for chained in (True, False):
        monkeypatch.setattr("fewfold.models.slim.softmax.chain_is_cheaper", lambda *a, c=chained, **k: c)
        states.grad = None
        head.zero_grad()
        logits = head(states)
        np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-12)
        logits.square().sum().backward()
        gradients.append([states.grad, *[p.grad for p in head.parameters()]])
    for chained, rebuilt in zip(*gradients, strict=True):
        torch.testing.assert_close(chained, rebuilt, atol=1e-11, rtol=1e-11)


def test_padding_comes_out_as_zeros_and_sends_no_gradient():
    layer = SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7}, padding_idx=2)
    rows = layer(torch.tensor([2, 3]))
    assert not rows[0].any()
    assert rows[1].all()
    rows[0].sum().backward()
    assert not layer.coded.codebooks["0"].weight.grad.any()
    assert torch.equal(layer.dense()(torch.arange(ROWS)), layer(torch.arange(ROWS)))


def test_saving_keeps_the_codes_and_loading_checks_them():
    layer, other = (SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7, "seed": seed}) for seed in (0, 1))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    other.load_state_dict(state)
    ids = torch.arange(ROWS)
    assert torch.equal(other(ids), layer(ids))
    assert torch.equal(copy.deepcopy(layer)(ids), layer(ids))
    half = copy.deepcopy(layer).half()
    assert torch.equal(half.coded.codes(0), layer.coded.codes(0))
    damaged = {name: t.clone() for name, t in state.items()}
    damaged["coded.codes_0"].fill_(255)  # three bits of ones: word 7 of 0…6
    with pytest.raises(CheckpointError, match=r"coded\.codes_0 holds 7, a code outside the pool of 7 words"):
        other.load_state_dict(damaged)


def test_errors_name_the_mend():
    with pytest.raises(ModelError, match="pool='positions'"):
        SlimSoftmax(COLUMNS, ROWS, {"positions": 3, "words": 7, "pool": "free"})
    with pytest.raises(ModelError, match="cannot use a table of 30×12"):
        SlimSoftmax(COLUMNS, ROWS + 1, SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7}))
    with pytest.raises(ModelError, match="padding_idx=30"):
        SlimEmbedding(ROWS, COLUMNS, {"positions": 3, "words": 7}, padding_idx=30)


def test_forms_follow_the_batch_and_the_number_of_look_ups():
    weights, products, look_ups = 33278 * 512, 3328 * 512, 33278 * 8
    assert chain_is_cheaper(1, weights, products, look_ups, kept=False)
    assert chain_trains_cheaper(700, weights, products, look_ups, 3328 * 8)
    assert not chain_trains_cheaper(700, weights, weights, 33278 * 512, 33278 * 512)  # single numbers are looked up
