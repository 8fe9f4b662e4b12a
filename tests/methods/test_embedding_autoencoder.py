import copy

import numpy as np
import pytest
import torch
import transformers
from tiny_models import auto_class, inputs, make, outputs

import fewfold
from fewfold import CalibrationError, EmbeddingAutoencoder, LowRank, RecipeError, compress
from fewfold.calibration.statistics import Moments, Statistics
from fewfold.checkpoint.config import structure_of
from fewfold.linalg.direction import direction_subspace
from fewfold.linalg.tables import smoothed_counts
from fewfold.methods.base import Unit
from fewfold.methods.embedding_autoencoder.modules import AutoencoderEmbedding
from fewfold.methods.registry import method_named
from fewfold.recipe import Recipe
from fewfold.surgery.targets import Target

METHOD = method_named("embedding_autoencoder")
TABLES = {"bert_mlm": "bert.embeddings.word_embeddings", "gpt2_lm": "transformer.wte", "bart_lm": "model.shared"}
PUBLISHED = {"solver": "published", "weighting": "none"}


def unit_of(rows, columns, **fields):
    target = Target("words", "words", "embedding", rows, columns)
    return Unit("embedding_autoencoder", EmbeddingAutoencoder(**fields), (target,))


def table_of(rows=70, dim=6, seed=0):
    generator = np.random.default_rng(seed)
    rows_ = generator.standard_normal((rows, dim)) * np.exp(-0.3 * np.arange(dim)) + 0.3
    return torch.from_numpy(0.2 * rows_).float()


def filled(rows=11, dim=6, rank=3, seed=0, **fields):
    """A module with random tensors, its mean row too."""
    torch.manual_seed(seed)
    module = AutoencoderEmbedding(rows, dim, rank, **fields)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@pytest.mark.parametrize(
    ("rank", "numbers", "times"), [(300, 9387768, 2.497), (150, 4694268, 4.994), (75, 2347518, 9.985)]
)
def test_bert_base_has_the_published_numbers(rank, numbers, times):
    unit = unit_of(30522, 768, rank=rank)
    cost = METHOD.cost(unit, METHOD.fixed(unit))
    assert cost.parameters == numbers == 30522 * rank + rank * 768 + 768
    assert 30522 * 768 / cost.parameters == pytest.approx(times, abs=5e-4)
    assert cost.bytes == 4 * numbers
    assert cost.macs == rank * 768
    with torch.device("meta"):
        (module,) = METHOD.modules(unit, METHOD.fixed(unit)).values()
    assert sum(tensor.numel() for tensor in module.state_dict().values()) == numbers


def test_the_preset_is_the_published_recipe():
    (config,) = Recipe.preset("direction-autoencoder").methods
    assert (config.rank, config.solver, config.weighting, config.targets) == (75, "published", "none", "embeddings")
    assert (config.epochs, config.batch_rows, config.learning_rate, config.seed) == (30, 32, 1e-3, 1)
    assert (config.encoder_activation, config.decoder_activation, config.mean_row) == ("linear", "linear", True)
    assert config.start == "default"


def test_sizes_rise_and_stay_below_the_table():
    for mean_row, last in ((True, 4), (False, 5)):  # 6 · 36 numbers, 42 a rank
        unit = unit_of(36, 6, mean_row=mean_row)
        sizes = METHOD.sizes(unit)
        assert [size["rank"] for size in sizes] == list(range(1, last + 1))
        assert METHOD.cost(unit, sizes[-1]).parameters < 216
        assert METHOD.cost(unit, {**sizes[-1], "rank": last + 1}).parameters >= 216


def test_errors_are_the_directions_that_are_lost():
    table, counts = table_of(), torch.arange(70) % 4
    statistics = Statistics(token_counts={"words": counts})
    share = (smoothed_counts(counts) / smoothed_counts(counts).sum()).numpy()
    units = table.double().numpy() / np.linalg.norm(table.double().numpy(), axis=1, keepdims=True)
    values = np.linalg.svd(np.sqrt(share)[:, None] * units, compute_uv=False) ** 2
    unit = unit_of(70, 6, mean_row=False)
    expected = [values[size["rank"] :].sum() for size in METHOD.sizes(unit)]
    np.testing.assert_allclose(METHOD.errors(unit, METHOD.sizes(unit), {"words": table}, statistics), expected, 1e-5)
    # with gradients at hand: in their unit
    gradients = torch.from_numpy(np.random.default_rng(5).standard_normal((90, 6))).float()
    statistics.gradients["words"] = Moments(6)
    statistics.gradients["words"].add(gradients)
    metric = (gradients.double().T @ gradients.double() / 90).numpy()
    energy = sum(f * row @ metric @ row for f, row in zip(share, table.double().numpy(), strict=True))
    found = METHOD.errors(unit, METHOD.sizes(unit), {"words": table}, statistics)
    np.testing.assert_allclose(found, np.array(expected) * energy, rtol=1e-5)
    with_mean = unit_of(70, 6)
    better = METHOD.errors(with_mean, METHOD.sizes(with_mean), {"words": table}, statistics)
    assert all(a < b for a, b in zip(better, found, strict=False))


@pytest.mark.parametrize("activation", ["linear", "elu"])
@pytest.mark.parametrize("mean_row", [False, True])
@pytest.mark.parametrize("form", ["auto", "chained", "rebuilt"])
def test_heads_and_look_ups_run_as_the_assembled_table(activation, mean_row, form):
    module = filled(mean_row=mean_row, activation=activation, scale=1.5)
    module.form = form
    latents, up, bias = (
        t.detach().double().numpy()
        for t in (module.latents.weight, module.up.weight, module.mean_row if mean_row else torch.zeros(6))
    )
    table = latents @ up.T + bias
    table = np.where(table > 0, table, np.expm1(table)) if activation == "elu" else table
    np.testing.assert_allclose(module.assembled_weight().detach().numpy(), table, atol=1e-6)
    for ids in (torch.tensor(3), torch.tensor([1, 10]), torch.tensor([[[0, 5], [2, 2]]])):
        np.testing.assert_allclose(module(ids).detach().numpy(), 1.5 * table[ids.numpy()], atol=1e-6)
    states = torch.randn(2, 5, 6, requires_grad=True)
    pull = torch.randn(2, 5, 11)
    found = torch.autograd.grad((module.attend(states) * pull).sum(), [states, *module.parameters()])
    np.testing.assert_allclose(module.attend(states).detach().numpy(), states.detach().numpy() @ table.T, atol=1e-5)
    wide = copy.deepcopy(module).double()
    expected_logits = states.double() @ wide.assembled_weight().T
    expected = torch.autograd.grad((expected_logits * pull).sum(), [states, *wide.parameters()])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-5)


def test_a_linear_head_never_assembles_the_table(monkeypatch):
    model = compress(make("gpt2_lm"), EmbeddingAutoencoder(rank=3, weighting="none"))
    expected = outputs(model, "gpt2_lm")
    table = model.transformer.wte

    def refuse():
        raise AssertionError("assembled")

    monkeypatch.setattr(table, "assembled_weight", refuse)
    torch.testing.assert_close(outputs(model, "gpt2_lm"), expected)
    table.activation = "elu"
    with pytest.raises(AssertionError, match="assembled"):
        outputs(model, "gpt2_lm")


def test_padding_rows_get_no_gradient_and_decode_to_their_approximation():
    model = make("bert")
    dense = model.embeddings.word_embeddings.weight.detach().clone()
    compress(model, EmbeddingAutoencoder(rank=16, weighting="none"))
    table = model.embeddings.word_embeddings
    assert table.padding_idx == 0
    torch.testing.assert_close(table(torch.tensor([0]))[0], dense[0], rtol=1e-4, atol=1e-4)
    (table(torch.tensor([0, 0, 4])) * torch.randn(3, 16)).sum().backward()
    assert not table.latents.weight.grad[0].any()
    assert table.latents.weight.grad[4].any()
    assert table.up.weight.grad.any()
    assert table.up.bias.grad.any()


def test_a_rebuilt_head_is_traced():
    model = compress(make("gpt2_lm"), EmbeddingAutoencoder(rank=3, weighting="none", decoder_activation="elu"))
    model.config.use_cache = False
    program = torch.export.export(model, (), inputs("gpt2_lm"), strict=False)
    torch.testing.assert_close(program.module()(**inputs("gpt2_lm")).logits, outputs(model, "gpt2_lm"))


def test_frozen_latents_leave_the_decoder_to_train():
    model = compress(make("bert"), EmbeddingAutoencoder(rank=3, weighting="none"))
    table = model.embeddings.word_embeddings
    assert all(parameter.requires_grad for parameter in table.parameters())
    table.latents.requires_grad_(False)
    model(**inputs("bert")).last_hidden_state.square().sum().backward()
    assert table.latents.weight.grad is None
    assert table.up.weight.grad.any()
    assert table.up.bias.grad.any()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("stored", ["fp32", "int8"])
def test_an_elu_survives_saving_resizing_and_densifying(name, stored, tmp_path):
    config = EmbeddingAutoencoder(rank=5, weighting="none", decoder_activation="elu", stored_dtype=stored)
    model = compress(make(name), config)
    (record,) = structure_of(model).targets
    assert record.settings == {"rank": 5, "mean_row": True, "activation": "elu"}
    table = model.get_submodule(TABLES[name])
    assert float(table.assembled_weight().detach().min()) > -1
    expected = outputs(model, name)
    model.save_pretrained(tmp_path)
    again = auto_class(name).from_pretrained(tmp_path)
    assert again.get_submodule(TABLES[name]).activation == "elu"
    torch.testing.assert_close(outputs(again, name), expected, rtol=0, atol=1e-6)
    again.resize_token_embeddings(70)
    torch.testing.assert_close(outputs(again, name)[..., :61], expected, rtol=0, atol=1e-6)
    dense = fewfold.densify(again)
    torch.testing.assert_close(outputs(dense, name)[..., :61], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["linear", "elu"])
def test_full_rank_is_lossless_and_larger_than_the_table(activation):
    model = make("bert")
    dense = model.embeddings.word_embeddings.weight.detach().clamp_min(-0.9 if activation == "elu" else -9)
    model.embeddings.word_embeddings.weight.data.copy_(dense)
    compress(model, EmbeddingAutoencoder(rank=16, weighting="none", decoder_activation=activation))
    table = model.embeddings.word_embeddings
    torch.testing.assert_close(table.assembled_weight(), dense, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in table.parameters()) > dense.numel()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_rows_weigh_by_token_counts(power):
    model, batches = make("bert"), [inputs("bert", batch=64)]
    table = model.embeddings.word_embeddings.weight.detach().clone()
    counts = torch.zeros(61)
    for token in batches[0]["input_ids"][batches[0]["attention_mask"].bool()]:
        counts[token] += 1
    compress(model, EmbeddingAutoencoder(rank=4, count_power=power), calibration=batches, cache=False)
    expected = direction_subspace(table, 4, smoothed_counts(counts).pow(power), mean_row=True)
    made = expected.decode(expected.encode(table)).float()
    torch.testing.assert_close(model.embeddings.word_embeddings.assembled_weight(), made, rtol=1e-4, atol=1e-5)
    alike = direction_subspace(table, 4, mean_row=True)
    assert float((alike.decode(alike.encode(table)) - made).abs().max()) > 1e-3


def test_without_texts_counts_are_asked_for_and_auto_weighs_alike():
    alone = pytest.warns(UserWarning, match="fitted to their weights alone")
    with pytest.raises(CalibrationError, match="word_embeddings was never looked up"), alone:
        compress(make("bert"), EmbeddingAutoencoder(rank=4, weighting="counts"))
    with alone:
        model = compress(make("bert"), EmbeddingAutoencoder(rank=4))
    alike = compress(make("bert"), EmbeddingAutoencoder(rank=4, weighting="none"))
    torch.testing.assert_close(outputs(model, "bert"), outputs(alike, "bert"), rtol=0, atol=0)
    assert METHOD.calibrates(unit_of(9, 4, solver="published")) == "nothing"


def test_wrong_values_are_named():
    model = make("bert")
    with pytest.raises(RecipeError, match=r"targets='linears'.*is no table"):
        compress(model, EmbeddingAutoencoder(targets="linears", rank=3))
    with pytest.raises(RecipeError, match=r"rank=17.*word_embeddings is 61×16.*1…16"):
        compress(model, EmbeddingAutoencoder(rank=17))
    with pytest.raises(ValueError, match=r"epochs=3 is for solver='published'"):
        EmbeddingAutoencoder(epochs=3)
    target = Target("words", "words", "embedding", 9, 4)
    for settings, message in (
        ({"rank": 5}, "9×4 table takes a rank of 1…4"),
        ({"rank": 2, "core": 1}, "its settings are"),
        ({"rank": 2, "activation": "relu"}, "relu"),
    ):
        with pytest.raises(ValueError, match=message):
            METHOD.build(target, settings, fewfold.stored.StoredDtype())


def test_a_budget_and_overrides_choose_the_rank():
    model = make("gpt2_lm")
    compress(model, EmbeddingAutoencoder(weighting="none"), budget="parameters=1/2 of embeddings")
    table = model.transformer.wte
    assert table.rank == (61 * 16 // 2 - 16) // (61 + 16)
    called = []
    config = EmbeddingAutoencoder(
        **PUBLISHED, rank=2, epochs=2, overrides={"*word_embeddings": {"rank": 3}},
        validation=lambda made: called.append(made.shape) or 0.0,
    )  # fmt: skip
    model = compress(make("bert"), [config, LowRank(rank=2, weighting="none")])
    assert model.embeddings.word_embeddings.rank == 3
    assert called == [(61, 16)] * 2
    assert "validation" not in str(model.config.to_dict())


def test_a_published_table_reloads(tmp_path):
    model = compress(make("bert_cls"), EmbeddingAutoencoder(**PUBLISHED, rank=3, epochs=1))
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "bert_cls"), outputs(model, "bert_cls"), rtol=0, atol=1e-6)
