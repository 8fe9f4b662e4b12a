"""Four tasks that models are trained for from scratch, dense or built from methods; each gives one cell of a table.

A cell holds sizes, throughput and one row of sums an example (`units`), out of which the figure of the task and of any
resample is computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from word_corpora import novels, read

import fewfold
from fewfold.lm.config import LMTraining
from fewfold.lm.kneser_ney import KneserNey
from fewfold.lm.run import train_lm
from fewfold.lm.step import foretell
from fewfold.measure.modes import evaluating
from fewfold.models import SlimLMConfig
from fewfold.pretrain.config import PretrainConfig
from fewfold.pretrain.run import pretrain_and_save
from fewfold.pretrain.settings import PretrainSettings
from fewfold.progress import track
from fewfold.tasks import FineTuning, evaluate
from fewfold.tasks.captioning.run import train_and_save as train_captions
from fewfold.tasks.data import wikitext2
from fewfold.tasks.glue import read_glue
from fewfold.tasks.translation import TranslationTraining, read_corpus
from fewfold.tasks.translation.bleu import bleu_of, sentence_statistics
from fewfold.tasks.translation.run import train_and_save as train_pairs

Cell = dict[str, Any]
BLOCK = 500  # words of a text that count as one example
Recipe = Any


def sizes_of(model: Any) -> Cell:
    """Numbers of the model, and those beside token table and vocabulary head."""
    rows = {int(model.config.vocab_size), int(getattr(model.config, "decoder_vocab_size", None) or 0)}
    parameters = [parameter for parameter in model.parameters() if parameter.numel()]
    hidden = sum(parameter.numel() for parameter in parameters if parameter.shape[:1].numel() not in rows)
    return {"parameters": sum(parameter.numel() for parameter in parameters), "hidden": hidden}


def masked(recipe: Recipe, seed: int, scale: float, folder: Path) -> Cell:
    """A masked language model on novels, WikiText-2 and SST-2's sentences, fine-tuned on SST-2."""
    text, saved = folder / "text.txt", folder / "mlm"
    limit = None if scale >= 0.1 else 300
    texts = [*novels()[0], *wikitext2("train"), *(example.first for example in read_glue("sst2", "train").examples)]
    folder.mkdir(parents=True, exist_ok=True)
    text.write_text("\n".join(texts[:limit]), encoding="utf-8")
    chosen = PretrainConfig.read("bert-mini").changed(
        {"steps": max(4, round(6000 * scale)), "seed": seed, "checkpoint_steps": 200},
        vocabulary=8000 if limit is None else 500,
    )
    methods = None if recipe is None else [recipe.model_dump(mode="json")]
    chosen = chosen.model_copy(update={"methods": methods})
    if not (saved / "training.json").is_file():
        pretrain_and_save(saved, chosen, [text])
    record = json.loads((saved / "training.json").read_text())
    model, tokenizer = _loaded(saved)
    tuning = FineTuning(learning_rate=1e-4, epochs=2 if limit is None else 1, limit=limit)
    found = evaluate(
        model, "sst2", tokenizer=tokenizer, finetune=tuning, seeds=(seed,), max_length=64, eval_limit=limit
    )
    judged = found.runs[0].judged.predictions
    return {
        **sizes_of(model), "tokens_a_second": record["training"]["tokens_a_second"],
        "units": [[float(item["label"] == item["prediction"]), 1.0] for item in judged],
        "also": {"masked perplexity": record["training"]["held_out"][-1]["perplexity"]},
    }  # fmt: skip


def lstm(recipe: Recipe, seed: int, scale: float, folder: Path, cell: str = "lstm", layers: int = 2) -> Cell:
    """A language model of LSTM layers, or of another cell, on WikiText-2, 10,000 words."""
    corpus = read("wikitext-2", 10_000, None if scale >= 0.1 else 300)
    config = SlimLMConfig(
        vocab_size=len(corpus.tokenizer), hidden_size=256, num_layers=layers, cell=cell, tie_word_embeddings=True,
        input_dropout=0.2, hidden_dropout=0.2, output_dropout=0.2, eos_token_id=corpus.boundary,
    )  # fmt: skip
    settings = LMTraining.make(steps=max(4, round(6000 * scale)), learning_rate=2e-3, seed=seed)
    trained = train_lm(config, corpus, settings, checkpoints=folder / "lm.checkpoints", recipe=recipe)
    assert corpus.test is not None
    ids = torch.from_numpy(np.concatenate([[corpus.boundary], corpus.test.ids]))
    units, state = [], None
    with evaluating(trained.model), torch.no_grad():
        for start in track(range(0, len(ids) - 1, BLOCK), "judging"):
            labels = ids[start + 1 : start + 1 + BLOCK]
            loss, state = foretell(trained.model, ids[None, start : start + len(labels)], labels[None], state)
            units.append([float(loss) * len(labels), float(len(labels))])
    return {**sizes_of(trained.model), "tokens_a_second": trained.progress.tokens_a_second, "units": units, "also": {}}


def gated_conv(recipe: Recipe, seed: int, scale: float, folder: Path) -> Cell:
    """The same of four gated convolutions."""
    return lstm(recipe, seed, scale, folder, "gated_conv", 4)


def translation(recipe: Recipe, seed: int, scale: float, folder: Path, kind: str = "transformer") -> Cell:
    """English to German on Multi30k; `kind` as of `build_model`."""
    saved, limit = folder / "mt", None if scale >= 0.1 else 200
    settings = TranslationTraining(
        steps=max(4, round(3000 * scale)), batch_tokens=1500, warmup=max(1, round(600 * scale)), seed=seed
    )
    if not (saved / "training.json").is_file():
        corpora = read_corpus().first(limit), read_corpus(split="val").first(limit)
        train_pairs(saved, kind, *corpora, settings, vocabulary=8000 if limit is None else 500, recipe=recipe)
    record = json.loads((saved / "training.json").read_text())
    model, tokenizer = _loaded(saved)
    found = evaluate(model, "multi30k-en-de", tokenizer=tokenizer, eval_limit=None if limit is None else 8)
    judged = found.runs[0].judged.predictions
    from sacrebleu.metrics import BLEU

    units = sentence_statistics(
        BLEU(effective_order=True), [item["prediction"] for item in judged], [item["reference"] for item in judged]
    )
    return {
        **sizes_of(model), "tokens_a_second": record["training"]["tokens_a_second"], "units": units.tolist(),
        "also": {"held-out loss": record["training"]["held_out"][-1]["loss"]},
    }  # fmt: skip


def mask_predict(recipe: Recipe, seed: int, scale: float, folder: Path) -> Cell:
    """The same, all tokens at once."""
    return translation(recipe, seed, scale, folder, "mask-predict")


def captioning(recipe: Recipe, seed: int, scale: float, folder: Path) -> Cell:
    """Captions of flickr8k-1k; of methods that carve, the convolutions of the image side stay dense."""
    saved = folder / "captioner"
    if hasattr(recipe, "expansion"):
        recipe = recipe.model_copy(update={"exclude": ["encoder.stem"]})
    settings = PretrainSettings(
        steps=max(4, round(2500 * scale)), learning_rate=5e-4, schedule="cosine", seed=seed, checkpoint_steps=100
    )
    if not (saved / "training.json").is_file():
        train_captions(saved, settings, limit=None if scale >= 0.1 else 40, recipe=recipe)
    record = json.loads((saved / "training.json").read_text())
    model, tokenizer = _loaded(saved)
    found = evaluate(model, "flickr8k-captions", tokenizer=tokenizer, beams=3, eval_limit=None if scale >= 0.1 else 8)
    judged = found.runs[0].judged
    own = np.array([item["cider"] for item in judged.predictions])
    gain = judged.metrics["image_gain"]
    return {
        **sizes_of(model), "tokens_a_second": record["training"]["tokens_a_second"],
        "units": [[float(value), 1.0] for value in own], "floor": judged.metrics["cider_shuffled"].value,
        "above_floor": gain.low > 0,
        "also": {"BLEU": judged.metrics["bleu"].value, "gain of the right image": gain.value,
                 "its interval": [gain.low, gain.high]},
    }  # fmt: skip


def bag_of_words(scale: float) -> float:
    """SST-2's accuracy of a logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, dev = (read_glue("sst2", split).examples for split in ("train", "dev"))
    train = train[: None if scale >= 0.1 else 300]
    learner = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    learner.fit([example.first for example in train], [example.label for example in train])
    return float(learner.score([example.first for example in dev], [example.label for example in dev]))


def five_gram(scale: float) -> float:
    """Perplexity of interpolated Kneser-Ney on the same words."""
    corpus = read("wikitext-2", 10_000, None if scale >= 0.1 else 300)
    assert corpus.test is not None
    return KneserNey(corpus.train.ids, len(corpus.tokenizer), corpus.boundary).perplexity(corpus.test.ids)


def mean(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sum over count."""
    return np.asarray(sums[:, 0] / sums[:, 1])


def perplexity(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of summed losses and counts."""
    return np.asarray(np.exp(np.minimum(mean(sums), 700)))


TASKS: dict[str, tuple[Callable[..., Cell], str, Callable[..., Any], bool]] = {
    "masked LM, SST-2": (masked, "accuracy", mean, True),
    "LSTM LM, WikiText-2": (lstm, "perplexity", perplexity, False),
    "translation, Multi30k": (translation, "BLEU", bleu_of, True),
    "captioning, flickr8k-1k": (captioning, "CIDEr-D", mean, True),
    "gated-conv LM, WikiText-2": (gated_conv, "perplexity", perplexity, False),
    "mask-predict, Multi30k": (mask_predict, "BLEU", bleu_of, True),
}
FLOORS: dict[str, tuple[str, Callable[[float], float]]] = {
    "masked LM, SST-2": ("bag of words", bag_of_words),
    "LSTM LM, WikiText-2": ("5-gram", five_gram),
    "gated-conv LM, WikiText-2": ("5-gram", five_gram),
    "translation, Multi30k": ("BLEU", lambda scale: 25.0),
    "mask-predict, Multi30k": ("BLEU", lambda scale: 25.0),
}


def _loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    return fewfold.load(folder), AutoTokenizer.from_pretrained(folder)
