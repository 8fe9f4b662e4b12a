"""What cannot be replaced is refused by name, and what stands beside it runs."""

import pytest
import torch
import transformers as tf
from torch import nn

import fewfold
from fewfold import LowRank, TargetError
from fewfold.checkpoint.config import structure_of
from fewfold.surgery.targets import find_targets


def names(model):
    return [record.name for record in structure_of(model).targets]


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        (lambda: tf.DebertaV2Model(tf.DebertaV2Config(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            relative_attention=True, position_buckets=8, max_position_embeddings=32, pos_att_type=["c2p", "p2c"],
        )), {"encoder.rel_embeddings"}),
        (lambda: tf.MambaModel(tf.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)),
         {"layers.0.mixer.x_proj", "layers.0.mixer.dt_proj", "layers.0.mixer.out_proj"}),
    ],
)  # fmt: skip
def test_weights_that_are_read_are_refused_and_the_rest_runs(model, refused):
    made = model().eval()
    assert {target.name for target in find_targets(made) if target.refusal} >= refused
    ids = torch.randint(40, (2, 6))
    fewfold.compress(made, [fewfold.Dense(targets="all", stored_dtype="int8"), fewfold.Dense(targets="rest")])
    assert made(input_ids=ids).last_hidden_state.isfinite().all()


class Twins(nn.Module):
    """Two linear layers of one weight, and one beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, states):
        return self.third(self.second(self.first(states)))


def test_linear_layers_of_one_weight_are_refused():
    model, states = Twins(), torch.randn(2, 8)
    refusals = {target.name: target.refusal for target in find_targets(model)}
    assert "second" in refusals["first"]
    assert "first" in refusals["second"]
    assert refusals["third"] is None
    expected = model(states)
    fewfold.compress(model, LowRank(rank=8, weighting="none"))
    assert names(model) == ["third"]
    assert model.first.weight is model.second.weight
    torch.testing.assert_close(model(states), expected)
    with pytest.raises(TargetError, match="first cannot be replaced: it shares its weight with second"):
        fewfold.compress(model, LowRank(targets="first", rank=2, weighting="none"))


@pytest.mark.full
def test_the_shared_blocks_of_zamba_stay_shared(tmp_path):
    config = tf.ZambaConfig(
        vocab_size=61, hidden_size=16, attention_hidden_size=32, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=24, attn_layer_period=3, attn_layer_offset=2, n_mamba_heads=2,
        mamba_d_state=4, mamba_dt_rank=2, pad_token_id=0, max_position_embeddings=40,
    )  # fmt: skip
    model, ids = tf.ZambaForCausalLM(config).eval(), torch.tensor([[5, 6, 7, 8]])
    before = sum(parameter.numel() for parameter in model.parameters())
    fewfold.compress(model, LowRank(targets="linears", rank=3, weighting="none"))
    assert not any("shared_transf" in name for name in names(model))
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    fewfold.save(model, tmp_path / "out")
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(fewfold.load(tmp_path / "out")(ids, use_cache=False).logits, expected)


class Doubled(nn.Linear):
    def forward(self, states):
        return 2 * super().forward(states)


class Halved(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) / 2


@pytest.mark.parametrize(
    ("tied", "why"),
    [
        (lambda: Doubled(8, 30, bias=False), "Doubled computes something else"),
        (lambda: Halved(30, 8), "Halved computes something else"),
        (lambda: nn.Embedding(30, 8, max_norm=1.0), "renormalises its rows"),
    ],
)
def test_a_table_is_refused_for_what_is_tied_to_it(tied, why):
    model = nn.ModuleDict({"table": nn.Embedding(30, 8), "other": tied()})
    model["other"].weight = model["table"].weight
    for targets in ("table", "embeddings"):
        with pytest.raises(TargetError, match=f"table cannot be replaced: its weight is tied to other, and .*{why}"):
            fewfold.compress(model, LowRank(targets=targets, rank=8, weighting="none"))
    assert isinstance(model["other"], nn.Linear | nn.Embedding)


_SMALL = {
    "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "table"),
    [
        (lambda: tf.DebertaForMaskedLM(tf.DebertaConfig(**_SMALL, legacy=False)), "deberta.embeddings.word_embeddings"),
        (
            lambda: tf.DebertaV2ForMaskedLM(tf.DebertaV2Config(**_SMALL, legacy=False)),
            "deberta.embeddings.word_embeddings",
        ),
        (
            lambda: tf.PerceiverForMaskedLM(
                tf.PerceiverConfig(
                    vocab_size=61, d_model=16, d_latents=16, num_latents=4, num_blocks=1, num_self_attends_per_block=1,
                    num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=6,
                )
            ),
            "perceiver.input_preprocessor.embeddings",
        ),
    ],
)  # fmt: skip
def test_tables_that_another_module_reads_are_refused(build, table):
    model = build().eval()
    refused = {target.name: target.refusal for target in find_targets(model)}[table]
    assert refused is not None
    assert "reads this weight" in refused
    fewfold.compress(model, LowRank(targets="linears", rank=2, weighting="none"))
    with torch.no_grad():
        assert model(torch.randint(61, (2, 6))).logits.isfinite().all()


def test_layers_that_pytorch_fuses_in_eval_mode_run():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 8)

        def forward(self, states):
            return self.head(self.layer(states))

    model = Body().eval()
    fewfold.compress(model, LowRank(rank=2, weighting="none"))
    assert names(model) == ["head"]
    with torch.no_grad():
        assert model(torch.randn(2, 3, 8)).isfinite().all()


def test_a_sequence_of_modules_takes_no_store():
    layers, states = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(2, 8)
    recipe, expected = fewfold.SharedFactors(rank=(2, 2), weighting="none"), layers(states)
    with pytest.raises(TargetError, match="wrap it in a module"):
        fewfold.compress(layers, recipe)
    assert torch.equal(layers(states), expected)
    model = nn.ModuleDict({"layers": layers})
    fewfold.compress(model, recipe)
    assert model["layers"](states).isfinite().all()
