"""The tasks of the embedding-sharing table: what is trained from scratch, on what, for how long; each gives one cell.

A cell holds sizes, throughput and one row of sums an example (`units`), out of which the figure of the task and of any
resample is computed. Sizes and steps are chosen so that a cell takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import BF16
from embedding_sharing_masked import bags_of_words, masked
from embedding_sharing_parts import Cell, Measure, Wish, loaded, mean, perplexity, sizes_of
from word_corpora import read

from fewfold.lm.config import LMTraining
from fewfold.lm.corpus import Corpus
from fewfold.lm.kneser_ney import KneserNey
from fewfold.lm.run import train_lm
from fewfold.lm.step import foretell
from fewfold.measure.modes import evaluating
from fewfold.models import SlimLMConfig
from fewfold.pretrain.settings import PretrainSettings
from fewfold.progress import track
from fewfold.tasks import evaluate
from fewfold.tasks.captioning.run import train_and_save as train_captions
from fewfold.tasks.translation import TranslationTraining, read_corpus
from fewfold.tasks.translation.bleu import bleu_of, sentence_statistics
from fewfold.tasks.translation.run import train_and_save as train_pairs

BLOCK = 500  # words of a text that count as one example
BEAMS = 4  # of translation
FEW = 8  # examples that a try of the program is judged on


def word_texts(scale: float) -> Corpus:
    """WikiText-2 in its 10,000 most frequent words."""
    return read("wikitext-2", 10_000 if scale >= 0.1 else 2000, None if scale >= 0.1 else 300)


def word_model(wish: Wish, cell: str, layers: int) -> Cell:
    """A language model of some layers of 256, its training loss over all words."""
    corpus = word_texts(wish.scale)
    config = SlimLMConfig(
        vocab_size=len(corpus.tokenizer), hidden_size=256, num_layers=layers, cell=cell, tie_word_embeddings=True,
        input_dropout=0.2, hidden_dropout=0.2, output_dropout=0.2, eos_token_id=corpus.boundary,
        loss_chunk=280,
    )  # fmt: skip
    settings = LMTraining.make(
        steps=wish.steps(1800), batch=64 if not wish.trial else 4, learning_rate=4e-3, seed=wish.seed,
        checkpoint_minutes=1.0, evaluate_steps=wish.steps(600), bf16=BF16,
    )  # fmt: skip
    trained = train_lm(
        config, corpus, settings, checkpoints=wish.folder / "lm.checkpoints", recipe=wish.recipe,
        streams=4 if wish.trial else 64,  # the exact figure is computed below
    )  # fmt: skip
    assert corpus.test is not None
    ids = torch.from_numpy(np.concatenate([[corpus.boundary], corpus.test.ids]))
    units, state = [], None
    with evaluating(trained.model), torch.no_grad():
        for start in track(range(0, len(ids) - 1, BLOCK), "judging"):
            labels = ids[start + 1 : start + 1 + BLOCK]
            loss, state = foretell(trained.model, ids[None, start : start + len(labels)], labels[None], state)
            units.append([float(loss) * len(labels), float(len(labels))])
    return {**sizes_of(trained.model), "tokens_a_second": trained.progress.tokens_a_second, "units": units}


def five_gram(scale: float) -> float:
    """Perplexity of interpolated Kneser-Ney on the same words."""
    corpus = word_texts(scale)
    assert corpus.test is not None
    return KneserNey(corpus.train.ids, len(corpus.tokenizer), corpus.boundary).perplexity(corpus.test.ids)


def translation(wish: Wish, kind: str, steps: int, dropout: float) -> Cell:
    """English to German on Multi30k; `kind` as of `build_model`."""
    saved, limit = wish.folder / "mt", 100 if wish.trial else None
    settings = TranslationTraining(
        steps=wish.steps(steps), batch_tokens=1000, warmup=max(1, round(wish.steps(steps) / 8)), seed=wish.seed,
        checkpoint_minutes=1.0, bf16=BF16,
    )  # fmt: skip
    if not (saved / "training.json").is_file():
        corpora = read_corpus().first(limit), read_corpus(split="val").first(limit)
        train_pairs(
            saved, kind, *corpora, settings, vocabulary=500 if limit else 5000, dropout=dropout, recipe=wish.recipe
        )
    record = json.loads((saved / "training.json").read_text())
    model, tokenizer = loaded(saved)
    beams = 1 if kind == "mask-predict" else BEAMS
    found = evaluate(model, "multi30k-en-de", tokenizer=tokenizer, eval_limit=FEW if limit else None, beams=beams)
    judged = found.runs[0].judged.predictions
    from sacrebleu.metrics import BLEU

    units = sentence_statistics(
        BLEU(effective_order=True), [item["prediction"] for item in judged], [item["reference"] for item in judged]
    )
    return {
        **sizes_of(model), "tokens_a_second": record["training"]["tokens_a_second"], "units": units.tolist(),
        "also": {"held-out loss": record["training"]["held_out"][-1]["loss"]},
    }  # fmt: skip


def captioning(wish: Wish) -> Cell:
    """Captions of flickr8k-1k; of methods that carve, the convolutions of the image side stay dense."""
    saved, recipe = wish.folder / "captioner", wish.recipe
    if hasattr(recipe, "expansion"):
        recipe = recipe.model_copy(update={"exclude": ["encoder.stem"]})
    settings = PretrainSettings(
        steps=wish.steps(2500),
        learning_rate=5e-4,
        schedule="cosine",
        seed=wish.seed,
        checkpoint_steps=100,
        bf16=BF16,
    )
    if not (saved / "training.json").is_file():
        train_captions(saved, settings, limit=20 if wish.trial else None, recipe=recipe)
    record = json.loads((saved / "training.json").read_text())
    model, tokenizer = loaded(saved)
    limit = FEW if wish.trial else None
    found = evaluate(model, "flickr8k-captions", tokenizer=tokenizer, beams=3, eval_limit=limit)
    judged = found.runs[0].judged
    gain = judged.metrics["image_gain"]
    return {
        **sizes_of(model), "tokens_a_second": record["training"]["tokens_a_second"],
        "units": [[float(item["cider"]), 1.0] for item in judged.predictions],
        "floor": judged.metrics["cider_shuffled"].value, "above_floor": gain.low > 0,
        "also": {"BLEU": judged.metrics["bleu"].value, "gain of the right image": gain.value,
                 "its interval": [gain.low, gain.high]},
    }  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A task of the table.

    :param title: of its rows.
    :param run: measures a cell.
    :param measure: its figure.
    :param minutes: a dense cell is reckoned to take on two quiet cores of 2.5 GHz: processor seconds of single steps on
        one of them, over 1.75, and what judging takes.
    :param carving: how many times as long a cell with carved weights takes.
    :param floor: what the dense twin has to beat, and its figure at a scale; None where the cell itself knows.
    """

    title: str
    run: Callable[[Wish], Cell]
    measure: Measure
    minutes: float
    carving: float = 1.1
    floor: tuple[str, Callable[[float], float]] | None = None


def _bag_of_words(scale: float) -> float:
    return Measure("accuracy", mean).interval(bags_of_words(scale)["sst2"])[0]


ACCURACY, PERPLEXITY = Measure("accuracy", mean), Measure("perplexity", perplexity, more_is_better=False)
BLEU_SCORE, CIDER = Measure("BLEU", bleu_of), Measure("CIDEr-D", mean)
TASKS = {
    "masked": Task("masked LM, SST-2", masked, ACCURACY, 19, 1.1, ("bag of words", _bag_of_words)),
    "lstm": Task("LSTM LM, WikiText-2", lambda wish: word_model(wish, "lstm", 2), PERPLEXITY, 18, 1.05,
                 ("5-gram", five_gram)),
    "translation": Task("translation, Multi30k", lambda wish: translation(wish, "transformer", 3000, 0.15),
                        Measure(f"BLEU of {BEAMS} beams", bleu_of), 20, 1.1, ("BLEU", lambda scale: 25.0)),
    "captioning": Task("captioning, flickr8k-1k", captioning, CIDER, 13),
    "gated-conv": Task("gated-conv LM, WikiText-2", lambda wish: word_model(wish, "gated_conv", 4), PERPLEXITY, 28, 1.1,
                       ("5-gram", five_gram)),
    "mask-predict": Task("mask-predict, Multi30k", lambda wish: translation(wish, "mask-predict", 6000, 0.15),
                         BLEU_SCORE, 45, 1.1, ("BLEU", lambda scale: 25.0)),
}  # fmt: skip
