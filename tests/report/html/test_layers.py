"""Ranks, errors and spectra of a compressed folder, against numpy."""

import copy
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from tiny_models import MODELS

import fewfold
from fewfold.report.html.depth import depth_pictures
from fewfold.report.html.layers import relative_error, role_of, roles_of, spectrum, study


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def compressed(request, tmp_path_factory):
    torch.manual_seed(0)
    model = MODELS[request.param].build().eval()
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "dense")
    small = fewfold.compress(copy.deepcopy(model), fewfold.LowRank(rank=3, fused="split"))
    small.save_pretrained(folder / "small")
    return model, small, study(folder / "small", folder / "dense")


def test_rows_tell_rank_error_and_spectrum(compressed):
    dense, small, found = compressed
    plain = fewfold.densify(copy.deepcopy(small))
    assert len(found.layers) == len(fewfold.summary(small).rows)
    checked = 0
    for layer in found.layers:
        assert layer.rank == 3
        assert layer.error is not None
        if ":" in layer.name:
            continue
        ours = plain.get_submodule(layer.name).weight.detach().double().numpy()
        theirs = dense.get_submodule(layer.name).weight.detach().double().numpy()
        assert layer.error == pytest.approx(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs), rel=1e-5)
        values = np.linalg.svd(ours, compute_uv=False)
        assert np.allclose(layer.spectrum, values / values[0], atol=1e-4)
        assert max(layer.spectrum[3:]) < 1e-4 < layer.spectrum[2]
        checked += 1
    assert checked


def test_pictures_of_a_folder(compressed):
    pictures = depth_pictures(compressed[2], "study-0")
    assert [picture.title for picture in pictures] == ["Ranks", "Stored bits", "Errors", "Spectra"]
    for picture in pictures:
        ET.fromstring(picture.markup)


def test_without_the_dense_model_there_are_no_errors(compressed, tmp_path):
    compressed[1].save_pretrained(tmp_path / "small")
    found = study(tmp_path / "small")
    assert all(layer.error is None for layer in found.layers)
    assert "Errors" not in [picture.title for picture in depth_pictures(found, "s")]


def test_long_spectra_are_thinned_and_zeros_have_none():
    weight = torch.randn(40, 200)
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    thin = spectrum(weight, 8)
    assert np.allclose(thin, (values / values[0])[np.linspace(0, 39, 8).round().astype(int)], atol=1e-6)
    assert spectrum(torch.zeros(4, 3)) == ()
    assert relative_error(torch.zeros(4, 3), torch.ones(4, 3)) == 1.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("encoder.layer.3.attention.self.query", ("attention.self.query", 3)),
        ("h.0.attn.c_attn:q", ("attn.c_attn:q", 0)),
        ("decoder.block.1.layer.2.DenseReluDense.wi", ("layer.2.DenseReluDense.wi", 1)),
        ("embeddings.word_embeddings", ("embeddings.word_embeddings", None)),
    ],
)
def test_roles(name, told):
    assert role_of(name) == told


def test_layers_of_two_stacks_are_not_mixed():
    names = [
        f"model.{side}.layers.{layer}.fc1"
        for side, layers in (("encoder", 2), ("decoder", 3))
        for layer in range(layers)
    ]
    found = roles_of([*names, "model.shared", "model.decoder.layers.0.encoder_attn.q_proj"])
    assert [found[name] for name in names] == [
        ("model.encoder.layers.fc1", 0), ("model.encoder.layers.fc1", 1),
        ("model.decoder.layers.fc1", 0), ("model.decoder.layers.fc1", 1), ("model.decoder.layers.fc1", 2),
    ]  # fmt: skip
    assert found["model.decoder.layers.0.encoder_attn.q_proj"] == ("encoder_attn.q_proj", 0)
    assert found["model.shared"] == ("model.shared", None)
