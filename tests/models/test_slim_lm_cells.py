"""Recurrent layers: fused, step by step, and torch's own modules."""

import pytest
import torch
from torch import nn

from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.models.slim_lm.cells import CELLS


def layer_of(cell, projection, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    layer = CELLS[cell](5, 8, projection, dropout).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def torch_twin(cell, layer, projection):
    if cell == "lstm":
        twin = nn.LSTM(5, 8, batch_first=True, proj_size=projection or 0).double()
    else:
        twin = nn.GRU(5, 8, batch_first=True).double()
    with torch.no_grad():
        twin.weight_ih_l0.copy_(layer.input_map.weight)
        twin.weight_hh_l0.copy_(layer.hidden_map.weight)
        twin.bias_ih_l0.copy_(layer.input_map.bias)
        twin.bias_hh_l0.zero_() if cell == "lstm" else twin.bias_hh_l0.copy_(layer.hidden_map.bias)
        if cell == "lstm" and projection:
            twin.weight_hr_l0.copy_(layer.projection.weight)
    return twin


@pytest.mark.parametrize("projection", [None, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_way_of_running_equals_torch(cell, projection):
    layer = layer_of(cell, projection)
    inputs = torch.randn(3, 6, 5, dtype=torch.float64)
    expected, final = torch_twin(cell, layer, projection)(inputs)
    if cell == "gru" and projection:
        expected = layer.projection(expected)
    final = final if isinstance(final, tuple) else (final,)
    fused, state = layer(inputs)
    torch.testing.assert_close(fused, expected)
    mask = torch.ones(3, 6, dtype=torch.bool)
    stepwise, other = layer(inputs, None, mask)
    torch.testing.assert_close(stepwise, expected)
    single, carried = [], None
    for step in range(6):
        output, carried = layer(inputs[:, step : step + 1], carried)
        single.append(output)
    torch.testing.assert_close(torch.cat(single, 1), expected)
    for found in (state, other, carried):
        for part, wanted in zip(found, final, strict=True):
            torch.testing.assert_close(part, wanted[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_hooks_see_the_matrices_inputs_and_change_nothing(cell):
    layer = layer_of(cell, 3)
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    expected, _ = layer(inputs)
    seen = []
    layer.hidden_map.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    found, _ = layer(inputs)
    torch.testing.assert_close(found, expected)
    assert len(seen) == 4
    fed_back = found if cell == "lstm" else None
    if fed_back is not None:
        torch.testing.assert_close(torch.stack(seen[1:], 1), fed_back[:, :-1])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_padding_leaves_the_state_as_it_is(cell):
    layer = layer_of(cell, None)
    inputs = torch.randn(2, 5, 5, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    _, state = layer(inputs, None, mask)
    for row, kept in ((0, slice(2, 5)), (1, slice(0, 3))):
        _, alone = layer(inputs[row : row + 1, kept])
        for part, wanted in zip(state, alone, strict=True):
            torch.testing.assert_close(part[row], wanted[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_weight_dropout_drops_recurrent_weights_once_for_all_steps(cell):
    layer = layer_of(cell, None, dropout=0.5).train()
    inputs = torch.randn(2, 5, 5, dtype=torch.float64)
    torch.manual_seed(3)
    dropped, _ = layer(inputs)
    torch.manual_seed(3)
    mask = nn.functional.dropout(torch.ones_like(layer.hidden_map.weight), 0.5)
    same = layer_of(cell, None).eval()
    with torch.no_grad():
        same.hidden_map.weight.mul_(mask)
    torch.testing.assert_close(dropped, same(inputs)[0])
    torch.manual_seed(3)
    stepwise, _ = layer(inputs, None, torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(stepwise, dropped)
    layer.eval()
    torch.testing.assert_close(layer(inputs)[0], layer_of(cell, None)(inputs)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru", "gated_conv"])
def test_models_start_as_their_layers_do(cell):
    torch.manual_seed(0)
    model = SlimLMForCausalLM(SlimLMConfig(vocab_size=40, hidden_size=64, num_layers=2, cell=cell))
    for layer in model.model.layers:
        if cell == "gated_conv":
            assert float(layer.conv.weight.std()) == pytest.approx((64 * layer.kernel_size) ** -0.5, rel=0.05)
            continue
        for linear in (layer.input_map, layer.hidden_map):
            assert float(linear.weight.abs().max()) == pytest.approx(64**-0.5, rel=0.01)
        opened = layer.input_map.bias.unflatten(0, (-1, 64)).mean(1)
        assert opened.tolist() == ([0, 1, 0, 0] if cell == "lstm" else [0, 0, 0])


def test_missing_maps_of_a_checkpoint_are_drawn_as_fresh_ones(tmp_path):
    model = SlimLMForCausalLM(SlimLMConfig(vocab_size=40, hidden_size=64, num_layers=2))
    kept = {key: value for key, value in model.state_dict().items() if "layers.1.input_map" not in key}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = SlimLMForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.layers[1].hidden_map.weight, model.model.layers[1].hidden_map.weight)
    drawn = loaded.model.layers[1].input_map
    assert float(drawn.weight.abs().max()) == pytest.approx(64**-0.5, rel=0.01)
    assert drawn.bias.unflatten(0, (4, 64)).mean(1).tolist() == [0, 1, 0, 0]


def test_forget_gates_start_open():
    layer = CELLS["lstm"](5, 8, None, 0.0)
    assert torch.equal(layer.input_map.bias, torch.cat([torch.zeros(8), torch.ones(8), torch.zeros(16)]))
