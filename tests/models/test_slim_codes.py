"""Sizes and codes of slim tables."""

import math
import warnings

import pytest
import torch

from fewfold import CheckpointError, ModelError
from fewfold.models import SlimCodes, SlimEmbedding
from fewfold.models.slim.assignment import balanced_codes, codes_of_vectors
from fewfold.stored.coded_state import _equal_rows
from fewfold.stored.stages import StageSpec


@pytest.mark.parametrize(("positions", "words", "free"), [(4, 7, False), (1, 50, False), (3, 20, True), (5, 200, True)])
def test_codes_are_balanced_distinct_and_seeded(positions, words, free):
    before = torch.get_rng_state()
    codes = balanced_codes(50, positions, words, free, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    pools = [codes.flatten()] if free else list(codes.T)
    for pool in pools:
        used = torch.bincount(pool, minlength=words)
        assert len(used) == words
        assert used.max() - used.min() <= 1
        assert used.min() >= 1
    assert len(codes.unique(dim=0)) == 50
    assert torch.equal(codes, balanced_codes(50, positions, words, free, seed=3))
    assert not torch.equal(codes, balanced_codes(50, positions, words, free, seed=4))


def test_rows_that_come_out_equal_are_told_apart_without_losing_the_balance():
    codes = balanced_codes(60, 2, 8, False, seed=0)  # 60 of 64 possible rows: many twins at first
    first = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(0)) % 8 for _ in range(2)], 1)
    assert len(first.unique(dim=0)) < 60
    assert len(codes.unique(dim=0)) == 60
    for pool in codes.T:
        used = torch.bincount(pool)
        assert used.max() - used.min() <= 1


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    ("rows", "positions", "words"),
    [(60, 2, 8), (64, 2, 8), (25, 2, 5), (8, 3, 2), (200, 2, 16), (250, 2, 16), (16, 4, 2), (15, 4, 2), (7, 1, 7),
     (81, 4, 3), (79, 4, 3), (1295, 4, 6), (1000, 5, 4), (36, 2, 6), (31, 2, 6), (60, 6, 2), (243, 5, 3)],
)  # fmt: skip
def test_codes_are_balanced_and_distinct_up_to_the_last_possible_row(rows, positions, words, free):
    for seed in range(3):
        codes = balanced_codes(rows, positions, words, free, seed)
        assert codes.shape == (rows, positions)
        assert len(codes.unique(dim=0)) == rows
        for pool in [codes.flatten()] if free else codes.T:
            used = torch.bincount(pool, minlength=words)
            assert len(used) == words
            assert used.max() - used.min() <= 1


def test_a_free_pool_that_nearly_all_rows_are_needed_of_tells_them_apart():
    layer = SlimEmbedding(60, 12, {"positions": 2, "words": 8, "pool": "free"})
    assert len(layer.dense().weight.unique(dim=0)) == 60
    with pytest.raises(ModelError, match="tell 64 rows apart, the table has 65"):
        SlimEmbedding(65, 12, {"positions": 2, "words": 8, "pool": "free"})


@pytest.mark.parametrize("pool", ["positions", "free"])
def test_loading_warns_of_equal_rows_once(pool):
    codes = {"positions": 2, "words": 8, "pool": pool}
    old, new = SlimEmbedding(60, 12, codes), SlimEmbedding(60, 12, codes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.load_state_dict(old.state_dict())
    held = old.coded.codes_0.long()
    held[[3, 50, 51]] = held[[7, 8, 8]]
    old.coded.set_codes_([held])
    with pytest.warns(UserWarning, match=r"^coded\.codes_0: 3 of 60 rows have the codes of an earlier row") as found:
        new.load_state_dict(old.state_dict())
    assert len(found) == 1
    assert torch.equal(new.dense().weight, old.dense().weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.load_state_dict(old.state_dict())
    with pytest.raises(CheckpointError, match="a code outside the pool of 7 words"):
        SlimEmbedding(49, 12, {**codes, "words": 7}).load_state_dict(
            {"coded.codes_0": torch.full((37,), 255, dtype=torch.uint8)}, strict=False
        )


def test_equal_rows_are_counted_in_tables_of_many_words():
    codes = torch.randint(3000, (250_000, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    assert _equal_rows(codes) == 0
    codes[1000:1010] = codes[-10:]
    assert _equal_rows(codes) == 10


def test_codes_of_a_seed_stay_what_they_were():
    assert balanced_codes(6, 3, 4, False, 0).tolist() == [
        [2, 3, 1], [1, 0, 2], [3, 1, 1], [0, 0, 3], [1, 2, 0], [0, 1, 0],
    ]  # fmt: skip
    assert balanced_codes(6, 3, 4, True, 0).tolist() == [
        [0, 0, 3], [3, 1, 1], [1, 2, 3], [1, 0, 3], [0, 1, 0], [2, 2, 2],
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "shared"), [(4, False), (4, True), (5, False)])  # 12 columns, or padded to 15
def test_rows_take_the_nearest_words_and_words_are_the_centres_of_their_rows(width, shared):
    generator = torch.Generator().manual_seed(1)
    vectors, weights = torch.randn(60, 12, generator=generator), torch.rand(60, generator=generator) + 0.1
    stage = StageSpec(width, 30, shared)
    codes, words = codes_of_vectors(vectors, stage, weights)
    positions = -(-12 // width)
    assert words.shape == ((30 if shared else 30 * positions), width)
    assert len(codes.unique(dim=0)) == 60
    pieces = torch.nn.functional.pad(vectors, (0, positions * width - 12)).view(60, positions, width).double()
    further = 0
    for row in range(60):
        for place in range(positions):
            book = words if shared else words[30 * place : 30 * place + 30]
            distances = [float((pieces[row, place] - word).square().sum()) for word in book.double()]
            further += distances[codes[row, place]] > min(distances) + 1e-5
    assert further <= 1  # of two rows that came out equal
    if not shared:  # Lloyd's fixed point: centres of what is nearest to them
        largest = int(torch.bincount(codes[:, 0]).argmax())
        held, mass = pieces[:, 0][codes[:, 0] == largest], weights.double()[codes[:, 0] == largest, None]
        assert len(held) > 2
        torch.testing.assert_close(words[largest].double(), (held * mass).sum(0) / mass.sum(), rtol=0, atol=0.05)


def test_equal_rows_are_told_apart_and_the_weightiest_keeps_its_words():
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).repeat(10, 1)
    weights = torch.arange(1.0, 41.0)
    codes, words = codes_of_vectors(vectors, StageSpec(2, 6), weights)
    assert len(codes.unique(dim=0)) == 40
    for kind in range(4):
        distances = torch.stack([
            torch.cdist(vectors[kind, 2 * place : 2 * place + 2][None], words[6 * place : 6 * place + 6])[0]
            for place in range(4)
        ])  # fmt: skip
        taken = distances.gather(1, codes[kind::4].T).T
        same = taken < distances.min(1).values + 1e-4
        assert bool(same[-1].all())  # the heaviest
        assert bool((same.sum(1) >= 3).all())  # the others differ at one place


def test_rows_draw_codes_where_all_words_close_by_are_taken():
    codes, _ = codes_of_vectors(torch.zeros(60, 4) + torch.arange(60.0)[:, None] % 2, StageSpec(2, 8), torch.ones(60))
    assert len(codes.unique(dim=0)) == 60  # of 64


@pytest.mark.parametrize(
    ("rows", "columns", "words"), [(1024, 4, 32), (1000, 4, 32), (64, 4, 8), (64, 6, 4), (7, 2, 7)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_equal_vectors_take_every_possible_row_once(rows, columns, words, shared):
    for seed in range(4):
        codes, _ = codes_of_vectors(torch.zeros(rows, columns), StageSpec(2, words, shared), torch.ones(rows), seed)
        assert len(codes.unique(dim=0)) == rows
        assert int(codes.min()) >= 0
        assert int(codes.max()) < words


def test_vectors_of_full_tables_take_every_possible_row_once():
    vectors = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    codes, _ = codes_of_vectors(vectors, StageSpec(2, 16), torch.rand(256) + 0.1)
    assert len(codes.unique(dim=0)) == 256


def test_more_rows_than_possible_ones_stay_equal():
    codes, _ = codes_of_vectors(torch.zeros(12, 2), StageSpec(1, 3), torch.ones(12))
    assert len(codes.unique(dim=0)) == 9


def test_sizes_follow_the_formulas():
    rows, columns, positions = 1000, 64, 8
    by_words = SlimCodes.sized(rows, columns, positions, words=100)
    assert by_words.pool_size == 800
    assert by_words.numbers(columns) == 800 * 64 // 8
    assert by_words.ratio(rows) == pytest.approx(8 * 1000 / 800)
    same = [{"pool_size": 800}, {"pool_size": 807}, {"ratio": 10}, {"numbers": 6400}]
    assert all(SlimCodes.sized(rows, columns, positions, **size) == by_words for size in same)
    bits = math.ceil(math.log2(100))
    assert by_words.bytes(rows, columns) == 6400 * 4 + math.ceil(rows * positions * bits / 8)
    limit = by_words.bytes(rows, columns)
    assert SlimCodes.sized(rows, columns, positions, bytes=limit).words == 100
    assert SlimCodes.sized(rows, columns, positions, bytes=limit - 1).words == 99
    free = SlimCodes.sized(rows, columns, positions, ratio=10, pool="free")
    assert (free.words, free.pool_size, free.numbers(columns)) == (800, 800, 6400)


@pytest.mark.parametrize(
    ("ratio", "words", "numbers", "packed"),
    [(2.5, 12208, 9.38e6, 417), (5, 6104, 4.69e6, 387), (10, 3052, 2.34e6, 358), (100, 305, 0.234e6, 268)],
)
def test_sizes_of_a_vocabulary_of_bert(ratio, words, numbers, packed):
    codes = SlimCodes.sized(30522, 768, 8, ratio=ratio)
    assert codes.words == words
    assert codes.ratio(30522) >= ratio
    assert codes.numbers(768) == pytest.approx(numbers, rel=2e-3)
    assert round((codes.bytes(30522, 768) - 4 * codes.numbers(768)) / 1024) == packed


@pytest.mark.parametrize("ratio", [1.1, 1.2, 4 / 3, 1.7, 2.3, 10 / 3, 4.9, 6.6])
def test_a_ratio_that_comes_out_even_loses_no_word_to_rounding(ratio):
    for words in range(50, 90):
        assert SlimCodes.sized(1000, 64, 8, ratio=1000 / words).words == words
    assert SlimCodes.sized(1000, 64, 8, ratio=ratio).ratio(1000) >= ratio - 1e-9


def test_the_layer_holds_what_its_codes_say():
    layer = SlimEmbedding(1000, 64, {"positions": 8, "ratio": 10})
    assert sum(p.numel() for p in layer.parameters()) == layer.codes.numbers(64) == 1000 * 64 // 10
    saved = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert saved == layer.codes.bytes(1000, 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positions": 7, "words": 5}, "positions=7; it must divide the table's 64 columns"),
        ({"positions": 8}, "exactly one of .* got none"),
        ({"positions": 8, "words": 5, "ratio": 3}, "exactly one of .* got words, ratio"),
        ({"positions": 8, "words": 1001}, "1001 words .* must be 2…1000"),
        ({"positions": 8, "words": 1}, "1 words .* must be 2…1000"),
        ({"positions": 1, "words": 10}, "tell 10 rows apart, the table has 1000"),
        ({"positions": 8, "ratio": -1}, "ratio=-1; it must be a positive number"),
        ({"positions": 8, "bytes": 100}, "bytes=100 is too few"),
        ({"positions": 8, "words": 5, "pool": "shared"}, "pool='shared'"),
        ({"position": 8, "words": 5}, "have no position; there are"),
        ({"positions": 8, "words": 5, "seed": 1.5}, "seed=1.5"),
    ],
)
def test_unusable_sizes_are_refused_with_the_mend(values, message):
    with pytest.raises(ModelError, match=message):
        SlimCodes.from_dict(values, 1000, 64)
