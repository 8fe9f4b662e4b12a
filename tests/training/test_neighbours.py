import numpy as np
import pytest
import torch
from torch import nn

from fewfold.lm.config import LMTraining
from fewfold.lm.corpus import word_corpus
from fewfold.lm.run import train_lm
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.training import neighbours
from fewfold.training.neighbours import begin_at_neighbours, neighbour_vectors

WORDS = 30


def text(tokens=600, words=WORDS, gaps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(tokens, generator=generator).square() * words).long()
    ids[torch.randperm(tokens, generator=generator)[:gaps]] = -1
    return ids


def counted(ids, words):
    """Weighted counts of right neighbours, with loops."""
    found = np.zeros((words, words))
    for place, word in enumerate(ids):
        for distance in range(1, neighbours.WINDOW + 1):
            between = ids[place : place + distance + 1]
            if word >= 0 and len(between) == distance + 1 and min(between) >= 0:
                found[word, between[-1]] += 1 / distance
    return found


def information(counts, contexts):
    counts = counts[:, contexts]
    smoothed = counts.sum(0) ** neighbours.SMOOTHING
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(counts * smoothed.sum() / (counts.sum(1, keepdims=True) * smoothed))
    return np.where((counts > 0) & (found > 0), found, 0.0)


def expected(ids, words, width, most):
    counts = counted(ids.tolist(), words)
    contexts = np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")[:most]
    matrix = np.concatenate([information(counts, contexts), information(counts.T, contexts)], 1)
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    vectors = np.zeros((words, width))
    kept = min(width, len(values))
    vectors[:, :kept] = left[:, :kept] * np.sqrt(values[:kept])
    return vectors


@pytest.mark.parametrize(
    ("width", "contexts", "chunk"), [(30, 100, 10**6), (8, 100, 10**6), (30, 12, 10**6), (30, 100, 37)]
)
def test_vectors_are_those_of_a_decomposition_in_numpy(monkeypatch, width, contexts, chunk):
    monkeypatch.setattr(neighbours, "CONTEXTS", contexts)
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    ids = text()
    found = neighbour_vectors(ids, WORDS, width).double().numpy()
    exact = expected(ids, WORDS, width, contexts)
    products, right = found @ found.T, exact @ exact.T  # free of turn and sign
    share = np.trace(right) / np.trace(products)
    np.testing.assert_allclose(products * share, right, atol=2e-3 * np.abs(right).max())
    assert found.std() == pytest.approx(1, rel=1e-2)


def test_all_columns_count_the_same():
    spread = neighbour_vectors(text(5000), WORDS, 16).std(0)
    exact = expected(text(5000), WORDS, 16, 100).std(0)
    assert float(spread.max() / spread.min()) < 0.6 * exact.max() / exact.min()


def test_words_that_the_text_lacks_get_vectors_too():
    ids = text()
    state = torch.random.get_rng_state()
    found = neighbour_vectors(ids, WORDS + 5, 8)
    assert torch.equal(state, torch.random.get_rng_state())
    assert bool((found[WORDS:].square().sum(1) > 0).all())
    assert torch.equal(found, neighbour_vectors(ids, WORDS + 5, 8))
    lonely = neighbour_vectors(torch.tensor([0, -1, 1, -1, 2]), 3, 4)
    assert torch.isfinite(lonely).all()


def classes_of_words(lines=300, kinds=6, size=12, seed=0):
    """A text in which words of one kind are used alike: kinds follow one another in a fixed turn."""
    draw = np.random.default_rng(seed)
    return [" ".join(f"k{kind}w{draw.integers(size)}" for kind in range(kinds)) for _ in range(lines)]


def slim_lm(words, **values):
    codes = {"positions": 4, "words": 8}
    settings = {"input_codes": codes, "output_codes": codes, "initializer_range": 0.05, **values}
    return SlimLMConfig(vocab_size=words, hidden_size=16, **settings)


def test_words_used_alike_share_sub_vectors_and_tables_keep_their_spread():
    corpus = word_corpus(classes_of_words())
    model = SlimLMForCausalLM(slim_lm(len(corpus.tokenizer)))
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [table.coded.codebooks["0"].weight.std() for table in tables]
    drawn = [table.coded.codes(0).clone() for table in tables]
    assert begin_at_neighbours(tables, torch.from_numpy(corpus.train.ids.astype(np.int64))) == 2
    kinds = {}
    for word, row in corpus.tokenizer.get_vocab().items():
        if word.startswith("k"):
            kinds.setdefault(word[:2], []).append(row)

    def shared(codes):  # of two words of a kind, and of two of different kinds
        equal = (codes[:, None] == codes[None]).double().mean(2)
        same = torch.zeros_like(equal, dtype=torch.bool)
        for rows in kinds.values():
            same[torch.tensor(rows)[:, None], torch.tensor(rows)] = True
        away = ~torch.eye(len(codes), dtype=torch.bool)
        return float(equal[same & away].mean()), float(equal[~same].mean())

    for table, old, codes in zip(tables, before, drawn, strict=True):
        weight = table.coded.codebooks["0"].weight
        assert float(weight.std()) == pytest.approx(float(old), rel=0.35)
        assert len(table.coded.codes(0).unique(dim=0)) == len(codes)  # no two words are equal
        alike, unlike = shared(table.coded.codes(0))
        assert alike > 2.5 * unlike
        assert max(shared(codes)) < 0.2
    assert not torch.equal(tables[0].coded.codes(0), tables[1].coded.codes(0))


@pytest.mark.parametrize("tied", [False, True])
def test_dense_tables_begin_at_the_vectors_where_asked(tied):
    ids = text()
    model = SlimLMForCausalLM(
        SlimLMConfig(vocab_size=WORDS, hidden_size=8, tie_word_embeddings=tied, pad_token_id=3, initializer_range=0.02)
    )
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = tables[0].weight.detach().clone()
    assert begin_at_neighbours(tables, ids) == 0
    assert torch.equal(tables[0].weight, before)
    assert begin_at_neighbours([*tables, None], ids, dense=True) == (1 if tied else 2)
    vectors = neighbour_vectors(ids, WORDS, 8)
    empty = (before == 0).all(1)
    scale = float(before[~empty].std())
    assert torch.allclose(tables[0].weight[~empty], vectors[~empty] * scale, rtol=1e-4)
    assert bool((tables[0].weight[empty] == 0).all())
    assert begin_at_neighbours([nn.Embedding(WORDS - 20, 8)], ids, dense=True) == 0  # of something else than words


def test_training_begins_there_unless_told_otherwise_and_gains_by_it():
    corpus = word_corpus(classes_of_words(), classes_of_words(40, seed=1))
    config = slim_lm(len(corpus.tokenizer))
    losses = {}
    for choice in ("slim", "none"):
        training = LMTraining(steps=60, batch=4, bptt=12, learning_rate=5e-3, neighbours=choice)
        losses[choice] = train_lm(config, corpus, training).valid.perplexity
    assert losses["slim"] < 0.9 * losses["none"]
    default = train_lm(config, corpus, LMTraining(steps=60, batch=4, bptt=12, learning_rate=5e-3))
    assert default.valid.perplexity == losses["slim"]


def test_a_training_that_goes_on_keeps_its_codes(tmp_path, monkeypatch):
    corpus = word_corpus(classes_of_words(), classes_of_words(40, seed=1))
    config = slim_lm(len(corpus.tokenizer))
    training = LMTraining(steps=30, batch=4, bptt=12, checkpoint_minutes=0, log_steps=1)

    def stop(point):
        if point["step"] == 20:
            raise KeyboardInterrupt

    whole = train_lm(config, corpus, training)
    with pytest.raises(KeyboardInterrupt):
        train_lm(config, corpus, training, checkpoints=tmp_path, tell=stop)
    monkeypatch.setattr(neighbours, "WEIGHT", 0.0)  # as if the sums had come out otherwise
    other = train_lm(config, corpus, training)
    again = train_lm(config, corpus, training, checkpoints=tmp_path)
    found, wanted, different = (run.model.get_input_embeddings().coded.codes(0) for run in (again, whole, other))
    assert not torch.equal(wanted, different)
    assert torch.equal(found, wanted)
    assert again.valid.perplexity == pytest.approx(whole.valid.perplexity, rel=1e-6)
