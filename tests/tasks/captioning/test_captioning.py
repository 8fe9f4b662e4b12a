"""Captioners: data, training that can be taken up again, captions, judgement."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import fewfold
from fewfold import EmbeddingSharing, SharedLayers, TaskError
from fewfold.pretrain.settings import PretrainSettings
from fewfold.tasks import FineTuning, evaluate
from fewfold.tasks.captioning import (
    Cider,
    build_captioner,
    caption,
    normalized,
    read_captions,
    train_captioner,
    train_vocabulary,
)
from fewfold.tasks.captioning.batching import Examples, collate, jitter, scaled
from fewfold.tasks.captioning.task import shuffled_scores
from fewfold.tasks.captioning.training import held_out_loss

SIZES = {"size": 64, "encoder_layers": 1, "decoder_layers": 2, "image_size": 16, "stem": 8, "dropout": 0.0}
VEPS = EmbeddingSharing(exclude=["encoder.stem"])


@pytest.fixture
def data(root):
    return {split: read_captions(split, 16) for split in ("train", "val", "test")}


@pytest.fixture
def tokenizer(data):
    return train_vocabulary(data["train"], 300)


def test_data(data, root):
    assert [len(data[split]) for split in data] == [24, 3, 3]
    assert data["val"].names == ["024.jpg", "025.jpg", "026.jpg"]
    assert data["train"].captions[1] == ["a green wall all green", "everything here is green"]
    picture = np.asarray(Image.open(io.BytesIO(_bytes(root, "027.jpg"))).resize((16, 16)))
    assert np.abs(data["test"].pixels[0].permute(1, 2, 0).numpy().astype(int) - picture).max() <= 1
    with pytest.raises(ValueError, match="choose one of"):
        read_captions("dev")


def _bytes(root, name):
    return zipfile.ZipFile(root / "images.zip").read(name)


def test_fresh_maps_are_small_beside_their_tables(tokenizer):
    model = build_captioner(tokenizer, **SIZES)
    for module in (model.encoder.layers[0].fc1, model.decoder.layers[1].self_attn.q_proj):
        assert float(module.weight.std()) == pytest.approx((3 * module.in_features) ** -0.5, rel=0.05)
    assert float(model.get_input_embeddings().weight.std()) == pytest.approx(64**-0.5, rel=0.05)


def test_examples(data, tokenizer):
    examples = Examples(data["train"], tokenizer)
    assert len(examples) == 48
    assert tokenizer.decode(examples.rows[3], skip_special_tokens=True).strip() == "everything here is green"
    assert examples.image[3] == 1
    batch = collate([examples.plain(0), examples.plain(3)])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    torch.testing.assert_close(batch["pixel_values"][1], data["train"].pixels[1] / 127.5 - 1)
    assert batch["labels"][0, len(examples.rows[0]) - 1] == tokenizer.eos_token_id
    pixels, seen = torch.arange(1.0, 769.0).view(3, 16, 16), set()
    for seed in range(60):
        moved = jitter(pixels, torch.Generator().manual_seed(seed))
        mirrored = bool(moved[1, 8, 5] > moved[1, 8, 6])
        middle = moved.flip(-1) if mirrored else moved
        offset = int(middle[1, 8, 8] - pixels[1, 8, 8])
        assert divmod(offset + 34, 16)[0] in range(5)
        seen.add((offset, mirrored))
    assert len(seen) > 25


@pytest.mark.parametrize("recipe", [VEPS, SharedLayers(map="all")])
def test_learns_and_goes_on(data, tokenizer, tmp_path, recipe):
    settings = PretrainSettings(
        steps=20, batch=12, learning_rate=3e-3, warmup=0.1, checkpoint_steps=8, log_steps=10, checkpoints_kept=3
    )
    models, folder = [], tmp_path / "checkpoints"
    for _ in range(2):
        model = build_captioner(tokenizer, recipe=recipe, **SIZES)
        before = held_out_loss(model, Examples(data["val"], tokenizer))
        history = train_captioner(model, tokenizer, data["train"], data["val"], settings, folder=folder)
        assert history.held_out[-1]["loss"] < 0.7 * before
        assert [point["step"] for point in history.curve] == [10, 20]
        models.append(model.state_dict())
        for number in (16, 20):  # as if it had been stopped after step 8
            shutil.rmtree(folder / f"checkpoint-{number}")
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, msg=name)
    other, fresh = settings.model_copy(update={"learning_rate": 1.0}), build_captioner(tokenizer, **SIZES)
    with pytest.raises(fewfold.CheckpointError, match="run with another model"):
        train_captioner(fresh, tokenizer, data["train"], data["val"], other, folder=folder)


def test_carved_saved_and_judged(data, tokenizer, tmp_path):
    model = build_captioner(tokenizer, recipe=VEPS, **SIZES)
    stem = sum(parameter.numel() for parameter in model.encoder.stem.parameters())
    assert isinstance(model.encoder.stem[0], torch.nn.Conv2d)
    assert stem == 8 * 27 + 16 * 72 + 64 * 144 + 3 * (8 + 16 + 64)
    assert not any(type(module) is torch.nn.Linear for module in model.decoder.layers.modules())
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    again = fewfold.load(tmp_path / "m")
    batch = collate([Examples(data["train"], tokenizer).plain(place) for place in (0, 5)])
    torch.testing.assert_close(again.eval()(**batch).logits, model.eval()(**batch).logits)
    found = evaluate(again, "flickr8k-captions", tokenizer=tokenizer, beams=2, resamples=20,
                     predictions=tmp_path / "p.jsonl")  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    written = [normalized(text) for text in caption(model, tokenizer, data["test"].pixels, beams=2).texts]
    assert [record["prediction"] for record in records] == written
    assert found.metrics["cider"]["mean"] == pytest.approx(Cider(data["test"].captions).scores(written).mean())
    assert found.data["test"] == {"source": "flickr8k-1k, test", "examples": 3}
    assert found.data["signature"].startswith("nrefs:2|")
    assert found.settings["beams"] == 2


def test_cached_generation_equals_repeated_forwards(data, tokenizer):
    model = build_captioner(tokenizer, **SIZES, seed=3).eval()
    pixels = scaled(data["test"].pixels[:1])
    ids = model.generate(pixel_values=pixels, max_new_tokens=8, do_sample=False, num_beams=1)
    for length in range(1, ids.shape[1] - 1):
        logits = model(pixel_values=pixels, decoder_input_ids=ids[:, :length]).logits
        assert int(logits[0, -1].argmax()) == int(ids[0, length])


def test_shuffled():
    references = [["red dog"], ["green cat"], ["blue bird"], ["old man"]]
    cider = Cider(references)
    texts = [captions[0] for captions in references]
    assert cider.scores(texts).min() == pytest.approx(5.0)
    assert np.allclose(shuffled_scores(cider, texts), 0)  # no image meets its own caption
    same = ["red dog"] * 4
    np.testing.assert_allclose(shuffled_scores(cider, same), cider.scores(same))


def test_refusals(data, tokenizer):
    model = build_captioner(tokenizer, **SIZES)
    with pytest.raises(TaskError, match="no fine-tuning"):
        evaluate(model, "flickr8k-captions", tokenizer=tokenizer, finetune=FineTuning())
    with pytest.raises(ValueError, match="3×16×16"):
        model(pixel_values=torch.zeros(1, 3, 8, 8), labels=torch.tensor([[5]]))
    with pytest.raises(TaskError, match="multiple of 64"):
        build_captioner(tokenizer, size=100)
    with pytest.raises(TaskError, match="0 images"):
        caption(model, tokenizer, torch.zeros(0, 3, 16, 16))
    from transformers import BertConfig, BertModel

    body = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(TaskError, match="give a captioning model"):
        evaluate(body, "flickr8k-captions", tokenizer=tokenizer)
