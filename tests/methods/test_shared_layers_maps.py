"""Maps: the tables of the literature, and what they have in common."""

import pytest
from layer_models import deep

import fewfold
from fewfold import RecipeError, SharedLayers
from fewfold.methods.shared_layers.maps import anchor, block_count, layer_map, stepwise_layers
from fewfold.methods.shared_layers.presets import LAYERS

LETTERS = "ABCDEFGHIJKL"


@pytest.mark.parametrize(
    ("name", "layers", "blocks", "expected"),
    [
        ("unshared", 6, None, "ABCDEF"),
        ("all", 6, None, "AAAAAA"),
        ("albert", 6, 3, "AABBCC"),
        ("albert", 6, 4, "AABCCD"),
        ("sequence", 6, 3, "AABBCC"),
        ("sequence", 7, 3, "AAABBBC"),
        ("cycle", 6, 3, "ABCABC"),
        ("cycle", 7, 3, "ABCABCA"),
        ("cycle_rev", 6, 3, "ABCCBA"),
        ("cycle_rev", 6, 2, "ABABBA"),
        ("cycle_rev", 7, 3, "ABCACBA"),
        ("cycle_rev", 18, 6, "ABCDEFABCDEFFEDCBA"),
        ("pairs", 6, None, "AABBCC"),
        ("pairs", 5, None, "AABBC"),
        ("sandwich", 6, None, "ABBBBC"),
        ([0, 1, 0, 2, 1, 0], 6, None, "ABACBA"),
    ],
)
def test_the_tables(name, layers, blocks, expected):
    assert "".join(LETTERS[block] for block in layer_map(layers, name, blocks)) == expected


@pytest.mark.parametrize("name", ["sequence", "albert", "cycle", "cycle_rev"])
def test_one_block_and_one_a_layer_are_the_same_in_every_map(name):
    for layers in range(1, 13):
        assert layer_map(layers, name, 1) == [0] * layers
        assert layer_map(layers, name, layers) == list(range(layers))


@pytest.mark.parametrize("name", ["albert", "cycle"])
def test_every_block_is_used(name):
    for layers in range(1, 20):
        for blocks in range(1, layers + 1):
            assert set(layer_map(layers, name, blocks)) == set(range(blocks))


def test_the_closed_form_of_the_reversed_cycle_runs_all_blocks_backwards_at_the_end():
    for blocks in range(1, 7):
        for layers in range(2 * blocks, 25):
            found = layer_map(layers, "cycle_rev", blocks)
            assert found[-blocks:] == list(reversed(range(blocks)))
            assert found[:-blocks] == [layer % blocks for layer in range(layers - blocks)]


@pytest.mark.parametrize(
    ("name", "layers", "blocks", "message"),
    [
        ("sequence", 6, 4, r"6 layers in runs of 2 make 3 blocks, not 4; give blocks=1, 2, 3, 6, or map='albert'"),
        ("cycle_rev", 6, 4, r"6 layers are too few; give blocks=1…3"),
        ("cycle", 6, 7, r"blocks=7: 6 layers have 1…6 blocks"),
        ("cycle", 6, 0, r"blocks=0"),
        ("cycle", 6, None, r"leaves the number of blocks open; give blocks=1…6"),
        ("all", 6, 2, r"has 1 blocks for 6 layers; drop blocks=2"),
        ("pairs", 6, 2, r"has 3 blocks for 6 layers"),
        ("sandwich", 2, None, r"needs 3 layers, not 2"),
        ([0, 1], 6, None, r"names the blocks of 2 layers; there are 6"),
        ([0, 0, 2], 3, None, r"missing \[1\]"),
        ([0, 1, -1], 3, None, r"blocks are 0…1"),
        ([0, 1, 1], 3, 3, r"has 2 blocks; drop blocks=3"),
    ],
)
def test_what_cannot_be(name, layers, blocks, message):
    with pytest.raises(RecipeError, match=message):
        layer_map(layers, name, blocks)


def test_blocks_as_a_share_of_the_layers():
    assert [block_count("1/2", layers) for layers in (1, 6, 12)] == [1, 3, 6]
    assert block_count(4, 12) == 4
    assert block_count(None, 12) is None
    assert [block_count("1/2", layers, "cycle_rev") for layers in (1, 2, 3, 5, 7, 11)] == [1, 1, 1, 2, 3, 5]
    assert [block_count("1/2", layers, "sequence") for layers in (3, 5, 7, 9)] == [2, 2, 4, 3]
    assert block_count("1/1", 5, "cycle_rev") == 5
    assert block_count("3/4", 8, "cycle_rev") == 4
    for wrong in ("half", "3/2", "0/2"):
        with pytest.raises(ValueError, match="a share of the layers such as '1/2'"):
            SharedLayers(blocks=wrong)


@pytest.mark.parametrize("name", ["takase-sequence", "takase-cycle", "takase-cycle-rev"])
def test_presets_of_half_as_many_blocks_take_any_number_of_layers(name):
    ((config,),) = (recipe for known, _, recipe in LAYERS if known == name)
    for layers in range(2, 13):
        blocks = block_count(config.blocks, layers, config.map)
        found = layer_map(layers, config.map, blocks)
        assert set(found) == set(range(blocks))
        assert layers / 3 <= blocks <= (layers + 1) / 2
        larger = blocks + 1
        if larger <= layers // 2:
            with pytest.raises(RecipeError):
                layer_map(layers, config.map, larger)


def test_a_preset_of_half_as_many_blocks_takes_odd_layers():
    model = deep(layers=7)
    fewfold.compress(model, "takase-cycle-rev")
    blocks = [model.encoder.layer[number].output.dense.store.name for number in range(7)]
    assert [blocks.index(name) for name in blocks] == [0, 1, 2, 0, 2, 1, 0]


def test_anchors_are_the_blocks_own_layers_near_the_stepwise_ones():
    def anchors(letters):
        blocks = sorted(set(letters))
        return [
            anchor([place for place, its in enumerate(letters) if its == name], len(letters), number, len(blocks))
            for number, name in enumerate(blocks)
        ]

    assert anchors("AABBCC") == [0, 2, 5]
    assert anchors("ABCABC") == [0, 1, 5]
    assert anchors("ABCCBA") == [5, 1, 3]
    assert anchors("AAAAAA") == [5]
    assert anchors("ABBBBC") == [0, 2, 5]
    assert anchors("AABBCCDDEEFF") == [0, 2, 4, 7, 9, 11]


def test_stepwise_layers_hold_the_first_and_the_last():
    assert stepwise_layers(18, 3) == [0, 8, 17]
    assert stepwise_layers(6, 1) == [0]
    for layers in range(2, 13):
        for blocks in range(2, layers + 1):
            found = stepwise_layers(layers, blocks)
            assert found[0] == 0
            assert found[-1] == layers - 1
            assert sorted(set(found)) == found
