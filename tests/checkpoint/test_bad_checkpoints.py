"""Damaged and altered checkpoints stop with an error that names what is wrong; saving is all or nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers as tf
from cases import METHODS, copied
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, auto_class, make, outputs

import fewfold
from fewfold import CheckpointError, LowRank, TargetError
from fewfold.checkpoint import save as saving
from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.rebuild import apply_structure

pytestmark = pytest.mark.checkpoint


@pytest.fixture
def folder(tmp_path):
    copied("bert_mlm", "low_rank", "int8").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tamper(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def load(folder):
    return tf.AutoModelForMaskedLM.from_pretrained(folder)


def target(structure, name="bert.encoder.layer.0.attention.self.query"):
    return next(record for record in structure["targets"] if record["name"] == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=99), "version 99"),
        (lambda s: s.pop("version"), "version None"),
        (lambda s: target(s)["settings"].update(rank=2), r"attention\.self\.query\.(down|up)\.\w+ has shape"),
        (lambda s: target(s)["settings"].update(rank=400), "attention.self.query.*1…16"),
        (lambda s: target(s)["settings"].update(rank="3"), "attention.self.query"),
        (lambda s: target(s)["settings"].update(rank=True), "attention.self.query"),
        (lambda s: target(s)["settings"].update(other=1), "attention.self.query"),
        (lambda s: target(s)["settings"].clear(), "attention.self.query"),
        (lambda s: target(s).update(rows=17), "query is 17×16.*16×16"),
        (lambda s: target(s).update(rows=-1), "rows"),
        (lambda s: target(s).update(columns="many"), "columns"),
        (lambda s: target(s).update(module="bert.encoder.layer.7.query"), r"layer\.7\.query"),
        (lambda s: target(s).update(module="bert.encoder"), "BertEncoder"),
        (lambda s: target(s).update(method="magic"), "magic.*low_rank"),
        (lambda s: target(s).update(kind="table"), "kind"),
        (lambda s: target(s).update(part="q"), "no part 'q'"),
        (lambda s: target(s).update(code="import os"), "code"),
        (lambda s: target(s).update(stored_dtype="int5"), "stored_dtype"),
        (lambda s: target(s).update(stored_dtype="int4"), "attention.self.query"),
        (lambda s: target(s).update(group_size=0), "group_size"),
        (lambda s: target(s).pop("method"), "method"),
        (lambda s: s.update(extra=[]), "extra"),
        (lambda s: s.update(targets="all"), "targets"),
        (lambda s: s["targets"].append(dict(target(s))), "query.*twice"),
        (lambda s: s["ties"][0].update(table="nowhere"), "nowhere"),
        (lambda s: s["ties"][0].update(role="tail"), "role"),
    ],
)  # fmt: skip
def test_an_altered_structure_is_refused(folder, change, message):
    tamper(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, keep):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(folder)


def test_a_corrupt_header_is_named(folder):
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[8:40] = os.urandom(32)
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(folder)


@pytest.mark.parametrize("suffix", ["down.codes", "down.scales", "up.codes"])
def test_a_missing_tensor_is_named(folder, suffix):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = f"bert.encoder.layer.1.output.dense.{suffix}"
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        fewfold.load(tmp_path)


def test_a_structure_that_does_not_fit_leaves_the_model_as_it_was():
    structure = structure_of(copied("bert_mlm", "low_rank", "fp32"))
    other = make("roberta_mlm")
    before = {name: type(module) for name, module in other.named_modules()}
    with pytest.raises(CheckpointError, match=r"does not have|none of the modules"):
        apply_structure(other, structure)
    assert {name: type(module) for name, module in other.named_modules()} == before
    wide = tf.BertForMaskedLM(tf.BertConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                            intermediate_size=24, max_position_embeddings=40))  # fmt: skip
    with pytest.raises(CheckpointError, match="belongs to another model"):
        apply_structure(wide, structure)
    assert not any("fewfold" in type(module).__module__ for module in wide.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bert_mlm", "gpt2_lm", "t5_lm"])
def test_applying_a_structure_twice_changes_nothing(name, method):
    model = copied(name, method, "int8")
    expected = outputs(model, name)
    modules = [id(module) for module in model.modules()]
    apply_structure(model, structure_of(model))
    assert [id(module) for module in model.modules()] == modules
    torch.testing.assert_close(outputs(model, name), expected, rtol=0, atol=0)


def test_densify_refuses_a_dense_model():
    with pytest.raises(TargetError, match="not compressed"):
        fewfold.densify(make("bert"))


def test_quantization_config_cannot_compress_while_loading(tmp_path):
    from fewfold.checkpoint.config import FewfoldConfig

    make("bert").save_pretrained(tmp_path)
    structure = structure_of(copied("bert", "low_rank", "fp32"))
    with pytest.raises(CheckpointError, match=r"fewfold\.compress"):
        tf.AutoModel.from_pretrained(tmp_path, quantization_config=FewfoldConfig(structure))


def test_a_failing_save_leaves_what_was_there(tmp_path, monkeypatch):
    model = copied("bert_mlm", "low_rank", "int8")
    fewfold.save(model, tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(saving, "write_card", broken)
    for target in ("model", "new"):
        with pytest.raises(OSError, match="disk full"):
            fewfold.save(model, tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before


KILLED = """
import sys, time
import fewfold
from cases import copied
from fewfold.checkpoint import save as saving
def slow(*args, **kwargs):
    print("writing", flush=True)
    time.sleep(60)
saving.write_card = slow
fewfold.save(copied("bert", "dense", "int8"), sys.argv[1])
"""


@pytest.mark.full
def test_a_killed_save_writes_no_half_checkpoint(tmp_path):
    search = [str(Path(fewfold.__file__).parents[1]), str(Path(__file__).parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
    )  # fmt: skip
    assert process.stdout.readline().strip() == "writing"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    time.sleep(0.1)
    assert not (tmp_path / "model").exists()


def test_saving_over_a_folder_replaces_it_whole(tmp_path):
    fewfold.save(copied("bert_mlm", "dense", "fp32"), tmp_path / "model")
    (tmp_path / "model" / "stale.txt").write_text("old")
    model = copied("bert_mlm", "low_rank", "int8")
    fewfold.save(model, tmp_path / "model")
    assert not (tmp_path / "model" / "stale.txt").exists()
    torch.testing.assert_close(
        outputs(fewfold.load(tmp_path / "model"), "bert_mlm"), outputs(model, "bert_mlm"), rtol=0, atol=1e-6
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        fewfold.save(model, file)


def _spoil(model, name):
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = float("nan")


@pytest.mark.parametrize("spoiled", [False, True])
def test_an_error_leaves_the_model_as_it_was(spoiled):
    model = make("bert_mlm")
    if spoiled:
        _spoil(model, "bert.encoder.layer.1.output.dense")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    types = {name: type(module) for name, module in model.named_modules()}
    config = model.config.to_dict()
    recipe = [
        LowRank(targets="linears", rank=3 if spoiled else 17, weighting="none"),
        LowRank(targets="embeddings", rank=2),
    ]
    with pytest.raises(fewfold.FewfoldError, match=r"output\.dense|1…16"):
        fewfold.compress(model, recipe)
    assert {name: type(module) for name, module in model.named_modules()} == types
    assert model.config.to_dict() == config
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, equal_nan=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", MODELS)
def test_every_family_names_its_auto_class(name):
    assert issubclass(type(make(name)), tf.PreTrainedModel)
    assert auto_class(name)
