import numpy as np
import pytest
import torch
from tiny_models import inputs, make
from torch.nn import functional as F

from fewfold import EmbeddingAutoencoder, RecipeError, compress
from fewfold.calibration.statistics import NO_STATISTICS
from fewfold.linalg.direction_loss import direction_loss
from fewfold.methods.base import Unit
from fewfold.methods.embedding_autoencoder.training import table_loss, train
from fewfold.methods.registry import method_named
from fewfold.surgery.targets import Target

PUBLISHED = {"solver": "published", "weighting": "none"}


def table_of(rows=70, dim=6, seed=0):
    generator = np.random.default_rng(seed)
    rows_ = generator.standard_normal((rows, dim)) * np.exp(-0.3 * np.arange(dim)) + 0.3
    return torch.from_numpy(0.2 * rows_).float()


def naive_training(table, rank, epochs, batch, activation):
    """The recipe in numpy float64, gradients by hand."""
    generator = torch.Generator().manual_seed(1)
    dim = table.shape[1]

    def uniform(*shape, fan_in):
        return (2 * torch.rand(shape, generator=generator) - 1).double().numpy() / np.sqrt(fan_in)

    p = [uniform(rank, dim, fan_in=dim), uniform(rank, fan_in=dim), uniform(dim, rank, fan_in=rank)]
    p.append(uniform(dim, fan_in=rank))
    first, second, step = [np.zeros_like(t) for t in p], [np.zeros_like(t) for t in p], 0
    for epoch in range(epochs):
        rate, exponent = 1e-3 * 0.5 ** (epoch // 4), max(1 - 0.9 * epoch / 20, 0.1)
        order = torch.randperm(len(table), generator=generator).numpy()
        for start in range(0, len(order), batch):
            x = table[order[start : start + batch]]
            before_z = x @ p[0].T + p[1]
            z = np.where(before_z > 0, before_z, np.expm1(before_z)) if activation == "elu" else before_z
            before_y = z @ p[2].T + p[3]
            y = np.where(before_y > 0, before_y, np.expm1(before_y)) if activation == "elu" else before_y
            x_norm, y_norm = (np.linalg.norm(t, axis=1, keepdims=True) for t in (x, y))
            cosine = (x * y).sum(1, keepdims=True) / (x_norm * y_norm)
            grad = -0.9975 / 5 / len(x) * (x / (x_norm * y_norm) - cosine * y / y_norm**2)
            off = y - x
            grad += 0.0025 / x.size * exponent * (np.abs(off) + 1e-10) ** (exponent - 1) * np.sign(off)
            grad = grad * np.where(before_y > 0, 1, np.exp(before_y)) if activation == "elu" else grad
            grad_z = grad @ p[2]
            grad_z = grad_z * np.where(before_z > 0, 1, np.exp(before_z)) if activation == "elu" else grad_z
            grads = [grad_z.T @ x, grad_z.sum(0), grad.T @ z, grad.sum(0)]
            step += 1
            for k in range(4):
                first[k] = 0.9 * first[k] + 0.1 * grads[k]
                second[k] = 0.999 * second[k] + 0.001 * grads[k] ** 2
                update = first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
                p[k] = p[k] - rate * update
    return p


@pytest.mark.parametrize("activation", ["linear", "elu"])
def test_training_is_the_published_recipe_step_by_step(activation):
    table = table_of()
    falling = iter(range(6, 0, -1))  # so that the last epoch is kept
    config = EmbeddingAutoencoder(
        **PUBLISHED, rank=3, epochs=6, encoder_activation=activation, decoder_activation=activation,
        validation=lambda made: next(falling),
    )  # fmt: skip
    trained = train(table, 3, config)
    assert trained.epoch == 5
    expected = naive_training(table.double().numpy(), 3, 6, 32, activation)
    for tensor, values in zip(trained.autoencoder.tensors.values(), expected, strict=True):
        np.testing.assert_allclose(tensor.numpy(), values, atol=2e-5)


def test_the_epoch_with_the_best_validation_is_kept():
    seen = []

    def validation(made):
        seen.append(made)
        return [3.0, 1.0, 2.0, 1.0][len(seen) - 1]

    config = EmbeddingAutoencoder(**PUBLISHED, epochs=4, validation=validation)
    trained = train(table_of(), 2, config)
    assert (trained.epoch, trained.measures) == (1, (3.0, 1.0, 2.0, 1.0))
    torch.testing.assert_close(trained.autoencoder.reconstruct(table_of()), seen[1], rtol=0, atol=0)
    assert float((seen[1] - seen[3]).abs().max()) > 1e-4


def test_without_validation_the_loss_of_the_whole_table_decides():
    table, weights = table_of(), torch.linspace(0, 2, 70)
    config = EmbeddingAutoencoder(**PUBLISHED, epochs=3)
    for row_weights in (None, weights):
        trained = train(table, 2, config, row_weights)
        made = trained.autoencoder.reconstruct(table)
        expected = float(direction_loss(made, table, 0.1, row_weights=row_weights))
        assert min(trained.measures) == trained.measures[trained.epoch] == pytest.approx(expected, rel=1e-5)
        assert table_loss(trained.autoencoder, table, row_weights) == pytest.approx(expected, rel=1e-5)
    assert float((train(table, 2, config).autoencoder.reconstruct(table) - made).abs().max()) > 1e-5


def test_training_can_start_at_the_svd():
    table = table_of()
    config = EmbeddingAutoencoder(**PUBLISHED, start="svd", epochs=1, learning_rate=1e-12)
    tensors = train(table, 3, config).autoencoder.tensors
    _, _, right = np.linalg.svd(table.double().numpy(), full_matrices=False)
    np.testing.assert_allclose((tensors["decoder"] @ tensors["encoder"]).numpy(), right[:3].T @ right[:3], atol=1e-5)
    assert float(tensors["encoder_bias"].abs().max()) < 1e-9
    assert float(tensors["decoder_bias"].abs().max()) < 1e-9


def test_training_repeats_under_its_seed_and_leaves_random_numbers_alone():
    table, state = table_of(), torch.get_rng_state()
    config = EmbeddingAutoencoder(**PUBLISHED, epochs=2)
    with torch.no_grad():
        first, second = (train(table, 2, config).autoencoder.reconstruct(table) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    other = train(table, 2, config.model_copy(update={"seed": 2})).autoencoder.reconstruct(table)
    assert float((other - first).abs().max()) > 1e-3


def test_divergence_is_named():
    config = EmbeddingAutoencoder(**PUBLISHED, epochs=1, learning_rate=1e30)
    with pytest.raises(RecipeError, match=r"learning_rate=1e\+30.*words diverged"):
        train(table_of(), 2, config, name="words")


@pytest.mark.parametrize("activation", ["linear", "elu"])
def test_a_trained_table_is_what_was_trained(activation):
    model = make("bert")
    dense = model.embeddings.word_embeddings.weight.detach().clone()
    config = EmbeddingAutoencoder(
        **PUBLISHED, rank=4, epochs=2, encoder_activation=activation, decoder_activation=activation, mean_row=False
    )
    compress(model, config)
    expected = train(dense, 4, config).autoencoder.reconstruct(dense)
    table = model.embeddings.word_embeddings
    torch.testing.assert_close(table.assembled_weight(), expected, rtol=1e-5, atol=1e-6)
    assert table.mean_row is None


def test_the_closed_form_beats_the_training_in_its_own_loss():
    table = table_of(rows=200, dim=16)
    for activation in ("linear", "elu"):
        values = {**PUBLISHED, "start": "svd", "batch_rows": 16, "learning_rate": 3e-3}
        config = EmbeddingAutoencoder(**values, decoder_activation=activation)
        trained = train(table, 4, config)
        target = Target("words", "words", "embedding", 200, 16)
        unit = Unit("embedding_autoencoder", EmbeddingAutoencoder(decoder_activation=activation), (target,))
        tensors = method_named("embedding_autoencoder").fit(
            unit, {"rank": 4, "mean_row": True}, {"words": table}, NO_STATISTICS
        )["words"]
        made = tensors["latents.weight"] @ tensors["up.weight"].T + tensors["up.bias"]
        made = F.elu(made) if activation == "elu" else made
        ours = float(direction_loss(made.float(), table))
        assert ours < min(trained.measures) < 1.5 * ours


def test_a_validation_may_run_the_model_that_is_being_compressed():
    model, seen = make("gpt2_lm"), []
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    batch = {**inputs("gpt2_lm"), "labels": inputs("gpt2_lm")["input_ids"]}

    def validation(table):
        with torch.no_grad():
            weight.copy_(table)
            seen.append((float(model(**batch).loss), table.clone()))
            weight.copy_(before)
        return seen[-1][0]

    config = EmbeddingAutoencoder(**PUBLISHED, rank=3, epochs=5, learning_rate=0.05, validation=validation)
    compress(model, config)
    assert len({loss for loss, _ in seen}) == 5
    best = min(seen, key=lambda pair: pair[0])
    torch.testing.assert_close(model.transformer.wte.assembled_weight(), best[1], rtol=1e-5, atol=1e-6)
    assert float(model(**batch).loss.detach()) == pytest.approx(best[0], rel=1e-5)


@pytest.mark.parametrize("rows", [70, 6, 4])
def test_a_start_by_svd_is_the_truncated_svd(rows):
    table = table_of(rows)
    config = EmbeddingAutoencoder(
        **PUBLISHED, rank=3, start="svd", epochs=1, learning_rate=1e-12, batch_rows=rows, mean_row=False
    )
    found = train(table, 3, config).autoencoder.reconstruct(table)
    lost = np.linalg.svd(table.double().numpy(), compute_uv=False)[3:]
    assert float((found - table).double().square().sum()) == pytest.approx((lost**2).sum(), rel=1e-4)
