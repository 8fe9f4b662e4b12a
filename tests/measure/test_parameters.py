import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fewfold.measure.parameters import parameter_table, stored_bytes, unique_parameters


def tiny_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))


def test_tied_head_counts_once():
    model = tiny_gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    d = 8
    block = (d * 3 * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d
    assert unique_parameters(model) == 50 * d + 16 * d + block + 2 * d
    assert stored_bytes(model) == 4 * unique_parameters(model)


def test_same_tensor_under_two_parameters_counts_once():
    model = nn.ModuleDict({"a": nn.Linear(4, 3, bias=False), "b": nn.Linear(4, 3, bias=False)})
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    assert model["a"].weight is not model["b"].weight
    assert unique_parameters(model) == 12
    assert stored_bytes(model) == 48


def test_views_of_one_storage_count_what_they_cover():
    base = torch.randn(10, 6)
    model = nn.ParameterDict({"rows": nn.Parameter(base[:4]), "more": nn.Parameter(base[2:6])})
    assert unique_parameters(model) == 6 * 6
    columns = nn.ParameterDict({"left": nn.Parameter(base[:, :2])})
    assert unique_parameters(columns) == 20
    transposed = nn.ParameterDict({"a": nn.Parameter(base), "b": nn.Parameter(base.T)})
    assert unique_parameters(transposed) == 60


def test_buffers_are_stored_but_are_no_parameters():
    model = nn.BatchNorm1d(5)
    assert unique_parameters(model) == 10
    assert stored_bytes(model) == (5 + 5 + 5 + 5) * 4 + 8
    model.register_buffer("scratch", torch.zeros(100), persistent=False)
    assert stored_bytes(model) == 88


def test_packed_integers_and_halves_count_their_own_bytes(tmp_path):
    model = nn.Module()
    model.register_buffer("codes", torch.zeros(7, 5, dtype=torch.uint8))
    model.register_parameter("scales", nn.Parameter(torch.ones(7, dtype=torch.float16)))
    assert stored_bytes(model) == 35 + 14
    assert unique_parameters(model) == 7
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little")
    assert len(content) - 8 - header == stored_bytes(model)


def test_meta_model_counts_like_the_real_one():
    with torch.device("meta"):
        model = tiny_gpt2()
    model.tie_weights()
    assert unique_parameters(model) == unique_parameters(tiny_gpt2())


def test_parameter_table_lists_each_parameter_once():
    model = tiny_gpt2().half()
    rows = parameter_table(model)
    assert [row.name for row in rows] == [name for name, _ in model.named_parameters()]
    assert rows[0] == ("transformer.wte.weight", 400, 800)
    assert sum(row.numel for row in rows) == unique_parameters(model)
    assert "lm_head.weight" not in {row.name for row in rows}
