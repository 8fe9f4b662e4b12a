"""Coded tables and linear weights: forms, padding, records, resizing, checkpoints and exports."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, inputs, make, outputs
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from fewfold import CheckpointError, densify, set_form
from fewfold.checkpoint.config import FewfoldConfig
from fewfold.checkpoint.rebuild import record_of, ties_of
from fewfold.checkpoint.structure import StoreRecord, Structure
from fewfold.linalg.gather_sum import chain_is_cheaper
from fewfold.methods.registry import METHODS
from fewfold.methods.subvector_codes.build import build_codebooks, build_coded
from fewfold.methods.subvector_codes.modules import CodedEmbedding, CodedLinear
from fewfold.stored import StoredDtype
from fewfold.stored.stages import StageSpec
from fewfold.surgery.replace import replace_modules
from fewfold.surgery.targets import find_targets

STAGES = [StageSpec(4, 6), StageSpec(3, 300, shared=True, rows=9)]
NAME = "coded_for_tests"


@pytest.fixture
def method(monkeypatch):
    known = SimpleNamespace(name=NAME, build=build_coded, build_store=build_codebooks)
    monkeypatch.setitem(METHODS, NAME, known)


def random_codes(module, seed=0):
    coded, generator = module.coded, torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(s.words, (s.covered(coded.rows), coded.positions(i)), generator=generator)
        for i, s in enumerate(coded.stages)
    ]
    coded.set_codes_(codes, None if coded.rank is None else torch.randperm(coded.rows, generator=generator))
    return module


@pytest.mark.parametrize("form", ["chained", "rebuilt", "auto"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_its_assembled_weight_in_every_form(form, bias):
    module = random_codes(CodedLinear(13, 20, STAGES, bias, scales=True)).double()
    module.form = form
    if bias:
        torch.nn.init.normal_(module.bias)
    for shape in ((13,), (1, 13), (2, 40, 13)):
        states = torch.randn(*shape, dtype=torch.float64)
        expected = states.numpy() @ module.assembled_weight().detach().numpy().T
        expected = expected + (module.bias.detach().numpy() if bias else 0)
        np.testing.assert_allclose(module(states).detach().numpy(), expected, atol=1e-12)
        with torch.no_grad():
            np.testing.assert_allclose(module(states).numpy(), expected, atol=1e-12)
            np.testing.assert_allclose(module(states).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("form", ["chained", "rebuilt", "auto"])
@pytest.mark.parametrize("rank", [None, 8])
def test_table_looks_up_and_attends_alike_in_every_form(rank, form):
    torch.manual_seed(0)
    table = random_codes(CodedEmbedding(20, 13, STAGES, rank, padding_idx=3, scale=2.0, scales=True)).double()
    table.form = form
    if rank is not None:
        torch.nn.init.normal_(table.mean_row)
        latents, up = table.coded().detach().numpy(), table.up.weight.detach().numpy()
        dense = latents @ up.T + table.mean_row.detach().numpy()
    else:
        assert table.up is None
        dense = table.coded().detach().numpy()
    ids, states = torch.tensor([[0, 3], [19, 3]]), torch.randn(2, 5, 13, dtype=torch.float64)
    np.testing.assert_allclose(table(ids).detach().numpy(), 2.0 * dense[ids.numpy()], atol=1e-12)
    np.testing.assert_allclose(table.attend(states).detach().numpy(), states.numpy() @ dense.T, atol=1e-12)
    by_form = {}
    for name in ("chained", "rebuilt"):
        table.zero_grad()
        table.form = name
        table.attend(states).square().sum().backward()
        by_form[name] = [p.grad.clone() for p in table.parameters()]
    for one, other in zip(*by_form.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_padding_sends_no_gradient_to_words():
    table = random_codes(CodedEmbedding(20, 8, [StageSpec(4, 6)], padding_idx=3))
    table(torch.tensor([3, 3])).sum().backward()
    assert not table.coded.codebooks["0"].weight.grad.any()
    table(torch.tensor([3, 4])).sum().backward()
    assert table.coded.codebooks["0"].weight.grad.sum() == 8


def test_the_rebuilt_weight_follows_codes_words_and_scales():
    module = random_codes(CodedLinear(12, 20, [StageSpec(4, 6)], False, scales=True))
    module.form, states = "rebuilt", torch.randn(3, 12)
    with torch.no_grad():
        for change in (
            lambda: random_codes(module, 1),
            lambda: module.coded.codebooks["0"].weight.mul_(2.0),
            lambda: module.coded.scales.fill_(3.0),
        ):
            before = module(states)
            change()
            assert not torch.allclose(module(states), before)
            torch.testing.assert_close(module(states), F.linear(states, module.coded()))


def test_auto_follows_the_rule_by_the_batch_at_hand(monkeypatch):
    module = CodedLinear(64, 3000, [StageSpec(4, 16)], False)
    calls = []
    monkeypatch.setattr(module, "chained", lambda states: calls.append(len(states)) or states.new_zeros(len(states), 1))
    numbers = 64 * 3000, 64 * 16, 3000 * 16
    with torch.no_grad():
        for batch in (1, 2, 16, 500):
            calls.clear()
            module(torch.randn(batch, 64))
            assert bool(calls) == chain_is_cheaper(batch, *numbers, kept=True)
    large = 33278 * 512, 256 * 512
    assert all(chain_is_cheaper(batch, *large, 33278 * 16, kept=True) for batch in (1, 32, 256, 4096))
    assert not any(chain_is_cheaper(batch, *large, 33278 * 256, kept=True) for batch in (1, 32, 256, 4096))
    assert chain_is_cheaper(4, 33278 * 512, 256 * 512, 33278 * 200, kept=False)
    # the stated rule, once by hand: 0.4 and 0.02 a number of a weight, 2 and 0.15 a look-up, 90,000 for the steps
    at = (0.4 + 0.02 * 32) * 512 * 33278
    gathers = int((at - 90_000 - 256 * 512 * (0.05 + 0.02 * 32)) / (2.0 + 0.15 * 32))
    assert chain_is_cheaper(32, *large, gathers - 1, kept=True)
    assert not chain_is_cheaper(32, *large, gathers + 2, kept=True)
    assert not chain_is_cheaper(16, 384 * 384, 384 * 16, 384 * 24, kept=True)  # a few small calls cost more than one


def test_resident_memory_is_codes_and_words():
    table = CodedEmbedding(30000, 64, [StageSpec(8, 256)], rank=32)
    held = sum(t.numel() * t.element_size() for t in (*table.parameters(), *table.buffers()))
    codes, words, up = 30000 * 4, 256 * 32 * 4, (64 * 32 + 64) * 4
    assert held == codes + words + up
    with torch.no_grad():
        table(torch.tensor([1, 2]))
        logits = table.attend(torch.randn(2, 64))
    assert logits.shape == (2, 30000)
    assert table._rebuilt is None
    (plan,) = table.coded._sums[1]["sums"]
    kept = sum(t.numel() * t.element_size() for t in (plan.flat, plan.offsets))
    assert kept == 30000 * 4 * 4 + 30001 * 4
    assert held + kept < 30000 * 64 * 4 / 5
    wide = CodedEmbedding(100, 64, [StageSpec(8, 300), StageSpec(8, 40000)])
    assert (wide.coded.codes_0.dtype, wide.coded.codes_1.dtype) == (torch.int16, torch.int32)


def compressed(name, stored="fp32", rank=8):
    """A tiny model whose table, and two linear maps with one codebook between them, are coded at random."""
    model = make(name).eval()
    stored_dtype = StoredDtype(stored, 8)
    targets = {target.name: target for target in find_targets(model)}
    table = next(target for target in targets.values() if target.kind == "embedding" and target.ties)
    linears = [t for t in targets.values() if t.kind == "linear" and t.columns == 16 and t.rows == 16][:2]
    store_settings = {"codebooks": {"common": [40, 4]}}
    store = build_codebooks(store_settings, stored_dtype)
    store.name = "books"
    both = [stage.to_dict() for stage in STAGES]
    chosen = {table.name: {"stages": both, "scales": True, "rank": rank}}
    for linear in linears:
        stages = [{"width": 4, "words": 40, "shared": True, "rows": None}, {"width": 5, "words": 3, "shared": False}]
        chosen[linear.name] = {"stages": stages, "scales": False, "codebooks": ["common", None]}
    built, records = [], []
    for key, settings in chosen.items():
        target, shared = targets[key], store if "codebooks" in settings else None
        module = random_codes(build_coded(target, settings, stored_dtype, shared))
        for leaf in module.coded.leaves():
            leaf.round_()
        module.coded.round_()
        if module.coded.scales is not None:
            torch.nn.init.uniform_(module.coded.scales, 0.5, 2.0)
            module.coded.round_()
        if getattr(module, "up", None) is not None and hasattr(module.up, "round_"):
            module.up.round_()
        built.append((target, module.eval()))
        records.append(record_of(target, NAME, settings, stored_dtype, "books" if shared else None))
    replace_modules(model, built)
    stores = [StoreRecord(name="books", method=NAME, settings=store_settings, stored_dtype=stored, group_size=8)]
    structure = Structure(targets=records, stores=stores, ties=ties_of([target for target, _ in built]))
    model.config.quantization_config = FewfoldConfig(structure)
    return model


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("rank", [8, None])
def test_checkpoints_come_back(method, tmp_path, stored, rank):
    model = compressed("bert_mlm", stored, rank)
    expected = outputs(model, "bert_mlm")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(outputs(loaded, "bert_mlm"), expected, rtol=0, atol=1e-6)
    table = loaded.get_input_embeddings()
    assert not table.coded.is_packed
    assert table.coded.codes_0.dtype == torch.uint8
    assert table.coded.codes_1.dtype == torch.int16
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    small = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(small.get_input_embeddings().coded.codes_1, table.coded.codes_1)
    assert outputs(small, "bert_mlm").dtype == torch.bfloat16
    state = {key: value for key, value in model.state_dict().items() if "codes_" in key or key.endswith("rank")}
    again = loaded.state_dict()
    assert state
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_a_code_outside_the_pool_stops_the_load(method, tmp_path):
    from safetensors.torch import load_file, save_file

    compressed("bert_mlm").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("word_embeddings.coded.codes_0"))
    tensors[name] = torch.full_like(tensors[name], 255)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"word_embeddings\.coded\.codes_0 holds 7, a code outside the pool of 6"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("rows", [VOCAB + 6, 30])
def test_resized_models_come_back(method, tmp_path, rows):
    model = compressed("bert_mlm")
    before = model.get_input_embeddings().assembled_weight().detach()
    model.resize_token_embeddings(rows)
    table = model.get_input_embeddings()
    kept = min(rows, VOCAB)
    torch.testing.assert_close(table.assembled_weight()[:kept], before[:kept], rtol=0, atol=0)
    assert model(torch.tensor([[rows - 1, 0]])).logits.shape == (1, 2, rows)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    found = loaded.get_input_embeddings().assembled_weight()
    torch.testing.assert_close(found, table.assembled_weight(), rtol=2e-3, atol=1e-4)
    assert loaded.get_input_embeddings().coded.stages == table.coded.stages


def test_densified_models_compute_the_same(method):
    model = compressed("bert_mlm")
    expected = outputs(model, "bert_mlm")
    torch.testing.assert_close(outputs(densify(copy.deepcopy(model)), "bert_mlm"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["chained", "rebuilt", "auto"])
def test_torch_export_agrees(method, form):
    model = set_form(compressed("bert_mlm"), form)
    values, expected = inputs("bert_mlm"), outputs(model, "bert_mlm")
    with torch.no_grad():
        program = torch.export.export(model, (), values, strict=False)
        torch.testing.assert_close(program.module()(**values).logits, expected, rtol=1e-4, atol=1e-5)


class _Logits(torch.nn.Module):
    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        return self.model(**dict(zip(self.names, values, strict=True))).logits


@pytest.mark.parametrize("form", ["chained", pytest.param("rebuilt", marks=pytest.mark.full)])
def test_onnx_runtime_agrees(method, form, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = set_form(compressed("bert_mlm"), form)
    values, expected = inputs("bert_mlm"), outputs(model, "bert_mlm")
    with torch.no_grad():
        program = torch.onnx.export(
            _Logits(model, tuple(values)).eval(), tuple(values.values()), dynamo=True, verbose=False,
            input_names=list(values), optimize=False,
        )  # fmt: skip
    file = tmp_path / "model.onnx"
    program.save(str(file))
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (result,) = session.run(None, {key: values[key].numpy() for key in names})
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-3, atol=1e-4)
    graph = onnx.load(str(file)).graph
    held = {entry.data_type for entry in graph.initializer if entry.name.endswith(("codes_0", "codes_1"))}
    assert held == {onnx.TensorProto.UINT8, onnx.TensorProto.INT16}
    assert any(node.op_type == "Gather" for node in graph.node)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": []}, "at least one stage"),
        ({"stages": [{"width": 99, "words": 4}]}, "width=99"),
        ({"stages": [{"width": 4, "words": 4, "rows": 999}]}, "rows=999"),
        ({"stages": [{"width": 4, "words": 1}]}, "1 words"),
        ({"stages": [{"width": 4, "words": 4, "depth": 1}]}, "depth"),
        ({"stages": [{"width": 4.0, "words": 4}]}, "whole numbers"),
        ({"stages": [{"width": 4, "words": 4}], "rank": 99}, "rank=99"),
        ({"stages": [{"width": 4, "words": 4}], "colour": 1}, "colour"),
        ({"stages": [{"width": 4, "words": 4}], "codebooks": ["common"]}, "lie in a store"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    model = make("bert_mlm")
    target = next(target for target in find_targets(model) if target.kind == "embedding" and target.ties)
    with pytest.raises(ValueError, match=message):
        build_coded(target, settings, StoredDtype())
