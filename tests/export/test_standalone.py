"""Stand-alone checkpoints: recorded assembly equals densify, and a process without fewfold loads them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from cases import METHODS, copied, spread
from tiny_models import auto_class, inputs, make, outputs
from transformers import GenerationConfig

import fewfold
from fewfold import ModelError
from fewfold.export.alone import assemble
from fewfold.export.assembly import record_assembly
from fewfold.export.standalone import export_standalone
from fewfold.measure.disk import file_bytes
from fewfold.measure.parameters import stored_bytes


@pytest.mark.parametrize(("method", "stored"), spread(list(METHODS), ["fp32", "fp16", "int8", "int4"]))
def test_recorded_operations_give_the_dense_weights(method, stored):
    model = copied("bert_mlm", method, stored)
    program, tensors = record_assembly(model)
    found = assemble(json.loads(json.dumps(program)), tensors)
    expected = fewfold.densify(model).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


_LOAD = """
import sys, torch, transformers
assert not any(name.split(".")[0].startswith("fewfold") for name in sys.modules)
folder, auto = sys.argv[1:]
try:
    getattr(transformers, auto).from_pretrained(folder)
except RuntimeError as error:
    assert "size" in str(error) and "mismatch" in str(error), error
else:
    raise SystemExit("loaded without its weights")
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
assert not any(name.split(".")[0] == "fewfold" for name in sys.modules)
with torch.no_grad():
    torch.save(model(**torch.load(folder + "/inputs.pt"))[0], folder + "/outputs.pt")
if model.can_generate():
    model.generation_config.save_pretrained(folder + "/generation")
"""


@pytest.mark.parametrize(
    ("name", "method"),
    [("bert_mlm", "subvector_codes"), pytest.param("gpt2_lm", "shared_factors", marks=pytest.mark.full)],
)
def test_a_process_without_fewfold_loads_it(name, method, tmp_path):
    model = copied(name, method, "int8")
    expected = outputs(model, name)
    if model.can_generate():
        model.generation_config.update(eos_token_id=[2, 3], pad_token_id=0, max_new_tokens=5)
    folder = export_standalone(model, tmp_path / "alone")
    assert file_bytes(folder) < stored_bytes(model) + 40_000
    torch.save(inputs(name), folder / "inputs.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", _LOAD, str(folder), auto_class(name).__name__]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    torch.testing.assert_close(torch.load(folder / "outputs.pt"), expected, rtol=1e-4, atol=1e-5)
    if model.can_generate():
        found = GenerationConfig.from_pretrained(folder / "generation")
        assert found.to_diff_dict() == model.generation_config.to_diff_dict()


def test_harmless_where_fewfold_is_imported(tmp_path):
    model = copied("bert_mlm", "low_rank", "fp32")
    folder = export_standalone(model, tmp_path / "alone")
    for auto in ("AutoModelForMaskedLM", "AutoModel"):
        import transformers

        loaded = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
        assert type(loaded).__module__.startswith("transformers.")
        assert fewfold.compress(loaded, fewfold.LowRank(rank=2, weighting="none")) is loaded
    plain = auto_class("bert_mlm").from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(outputs(plain, "bert_mlm"), outputs(model, "bert_mlm"), rtol=1e-4, atol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_what_cannot_stand_alone_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not compressed"):
        export_standalone(make("bert"), tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
