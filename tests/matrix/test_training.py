"""Training: a Trainer saves, resumes and ends where an uninterrupted run ends; adapters and other quantizers on top."""

import copy

import pytest
import torch
from cases import METHODS, compressed, copied
from tiny_models import auto_class, inputs, make, outputs
from torch import nn
from transformers import Trainer, TrainingArguments

import fewfold
from fewfold import Dense, LowRank
from fewfold.assembled import Assembled

VOCAB = 50


class _Examples(torch.utils.data.Dataset):
    def __init__(self, size=24):
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(3, VOCAB, (size, 6), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def _arguments(folder, steps):
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=3, learning_rate=0.01,
        report_to=[], use_cpu=True, seed=0, data_seed=0, logging_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant", dataloader_pin_memory=False,
    )  # fmt: skip


@pytest.mark.checkpoint
@pytest.mark.parametrize(
    ("stored", "origin"),
    [
        ("fp32", "fresh"), pytest.param("int8", "reloaded", marks=pytest.mark.full),
        pytest.param("fp32", "reloaded", marks=pytest.mark.full),
        pytest.param("int8", "fresh", marks=pytest.mark.full),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_a_trainer_resumes(method, stored, origin, tmp_path):
    def start():
        model = copied("gpt2_lm", method, stored)
        if origin == "fresh":
            return model
        model.save_pretrained(tmp_path / "start")
        return auto_class("gpt2_lm").from_pretrained(tmp_path / "start")

    straight = start().train()
    before = outputs(straight.eval(), "gpt2_lm")
    Trainer(straight, _arguments(tmp_path / "straight", 6), train_dataset=_Examples()).train()
    assert float((outputs(straight.eval(), "gpt2_lm") - before).abs().max()) > 0.01
    first = start()
    Trainer(first, _arguments(tmp_path / "run", 3), train_dataset=_Examples()).train()
    second = start()
    Trainer(second, _arguments(tmp_path / "run", 6), train_dataset=_Examples()).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3")
    )
    # an integer form is rounded when it is saved, and fp16 scales are; a float form is not
    tolerance = 0.25 if stored != "fp32" else 0.01 if METHODS[method].rounded else 1e-5
    difference = float((outputs(second.eval(), "gpt2_lm") - outputs(straight.eval(), "gpt2_lm")).abs().max())
    assert difference < tolerance
    loaded = auto_class("gpt2_lm").from_pretrained(tmp_path / "run" / "checkpoint-6")
    assert float((outputs(loaded, "gpt2_lm") - outputs(second, "gpt2_lm")).abs().max()) < tolerance


def _lora(model, **values):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, lora_dropout=0.0, **values)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("form", ["auto", "chained", "rebuilt"])
@pytest.mark.parametrize("targets", [["down", "up"], ["up"], "all-linear"])
@pytest.mark.parametrize("name", ["bert_mlm", "gpt2_lm", "llama_lm"])
def test_lora_on_factors_changes_outputs_and_unloads(name, targets, form):
    model = copied(name, "low_rank", "fp32")
    fewfold.set_form(model, form)
    plain = outputs(model, name)
    adapted = _lora(model, target_modules=targets)
    wrapped = [module for module in model.modules() if hasattr(module, "base_layer")]
    assert len(wrapped) >= 8
    with_adapter = outputs(adapted, name)
    assert float((with_adapter - plain).abs().max()) > 1e-2
    for module in model.modules():
        if isinstance(module, Assembled) and any(hasattr(child, "base_layer") for child in module.children()):
            assert module.running_form == "chained"
    with adapted.disable_adapter():
        torch.testing.assert_close(outputs(adapted, name), plain, rtol=1e-4, atol=5e-5)
    merged = adapted.merge_and_unload()
    assert not any(hasattr(module, "base_layer") for module in merged.modules())
    torch.testing.assert_close(outputs(merged, name), with_adapter, rtol=1e-4, atol=1e-4)


def test_an_adapted_layer_computes_base_plus_adapter():
    model = copied("bert", "low_rank", "fp32")
    fewfold.set_form(model, "rebuilt")
    query = model.encoder.layer[0].attention.self.query
    up, down, bias = query.up.weight.detach().double(), query.down.weight.detach().double(), query.bias.detach()
    _lora(model, target_modules=["up"])
    delta = query.up.lora_B["default"].weight.double() @ query.up.lora_A["default"].weight.double() * 4
    states = torch.randn(3, 16)
    expected = states.double() @ ((up + delta) @ down).T + bias.double()
    torch.testing.assert_close(query(states).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(query.assembled_weight().double(), (up + delta) @ down, rtol=1e-5, atol=1e-5)


def test_an_adapted_table_reaches_the_tied_head():
    model = compressed("gpt2_lm", "low_rank", "fp32")
    plain = outputs(model, "gpt2_lm")
    table = model.transformer.wte
    _lora(model, target_modules="transformer.wte.up")
    weight = table.up.base_layer.weight + 4 * table.up.lora_B["default"].weight @ table.up.lora_A["default"].weight
    states = torch.randn(3, 16)
    expected = states @ (table.latents.weight @ weight.T).T
    torch.testing.assert_close(model.lm_head(states), expected, rtol=1e-4, atol=1e-4)
    assert float((outputs(model, "gpt2_lm") - plain).abs().max()) > 1e-2


def test_adapters_train_while_the_factors_rest():
    model = copied("bert_cls", "low_rank", "int8")
    adapted = _lora(model, target_modules=["down", "up"]).train()
    trains = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trains
    assert all("lora_" in name for name in trains)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted(**inputs("bert_cls"), labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.parametrize("form", ["chained", "rebuilt"])
@pytest.mark.parametrize("name", ["bert_cls", "llama_untied"])
def test_torchao_int8_weight_only_on_factors(name, form):
    quantization = pytest.importorskip("torchao.quantization")
    model = copied(name, "low_rank", "fp32")
    fewfold.set_form(model, form)
    plain = outputs(model, name)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    changed = outputs(model, name)
    difference = float((changed - plain).abs().max())
    assert 0 < difference < 0.1 * float(plain.abs().max())
    first = next(module for module in model.modules() if isinstance(module, Assembled) and hasattr(module, "down"))
    assert type(first.down.weight) is not nn.Parameter
    assert first.running_form == "chained"


@pytest.mark.parametrize("form", ["chained", "rebuilt"])
def test_dynamic_quantization_on_factors(form):
    model = copied("bert_cls", "low_rank", "fp32")
    fewfold.set_form(model, form)
    plain = outputs(model, "bert_cls")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    factor = quantized.bert.encoder.layer[0].output.dense.up
    assert not isinstance(factor, nn.Linear)
    difference = float((outputs(quantized, "bert_cls") - plain).abs().max())
    assert 0 < difference < 0.2 * float(plain.abs().max())


@pytest.mark.parametrize("form", ["auto", "rebuilt"])
@pytest.mark.parametrize("method", METHODS)
def test_dynamic_quantization_under_a_tied_head(method, form):
    model = fewfold.set_form(copied("bert_mlm", method, "fp32"), form)
    plain = outputs(model, "bert_mlm")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    difference = float((outputs(quantized, "bert_mlm") - plain).abs().max())
    assert difference < 0.2 * float(plain.abs().max())


def test_a_rebuilt_weight_follows_its_factors():
    model = copied("bert", "low_rank", "fp32")
    fewfold.set_form(model, "rebuilt")
    with torch.no_grad():
        layer = model.encoder.layer[0].attention.self.query
        states = torch.randn(2, 16)
        first = layer(states)
        assert layer.rebuilt_weight() is layer.rebuilt_weight()
        layer.up.weight.mul_(2)
        bias = layer.bias
        torch.testing.assert_close(layer(states) - bias, 2 * (first - bias), rtol=1e-5, atol=1e-5)
        layer.down.weight = nn.Parameter(layer.down.weight * 3)
        torch.testing.assert_close(layer(states) - bias, 6 * (first - bias), rtol=1e-5, atol=1e-5)
        layer.up.weight.data.mul_(0.5)
        layer.train()
        torch.testing.assert_close(layer(states) - bias, 3 * (first - bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [LowRank(rank=4, weighting="none"), Dense()])
def test_frozen_models_stay_frozen(config):
    model = make("bert").requires_grad_(False)
    model.pooler.requires_grad_(True)
    fewfold.compress(model, config)
    trains = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {"pooler"}
