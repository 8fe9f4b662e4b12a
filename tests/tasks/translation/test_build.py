import pytest

from fewfold.tasks.translation.build import build_model


@pytest.mark.parametrize("kind", ["transformer", "mask-predict"])
def test_fresh_maps_are_small_beside_their_tables(kind, vocabularies):
    model = build_model(kind, vocabularies, size=64, layers=1)
    layer = model.model.decoder.layers[0]
    for module in (layer.self_attn.q_proj, layer.encoder_attn.out_proj, layer.fc1):
        assert float(module.weight.std()) == pytest.approx((3 * module.in_features) ** -0.5, rel=0.05)
    assert float(model.get_input_embeddings().weight.std()) == pytest.approx(64**-0.5, rel=0.05)
