"""The masked language model of the embedding-sharing table: pretrained or distilled, fine-tuned on three tasks, probed.

It is a small ModernBERT, learns on novels and SST-2's sentences and is judged on other novels. (BERT, this narrow, says
no more than how frequent words are for thousands of steps.) The head's bias begins at 0 in all cells. `veps-int8` keeps
what `veps` learned in bytes, fine-tuned models too, and trains nothing. `veps-distilled` takes as many steps on
the same windows, taught by `dense`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import BF16
from embedding_sharing_parts import (
    TRY,
    Cell,
    Measure,
    Wish,
    loaded,
    matthews,
    mean,
    pearson,
    perplexity,
    sizes_of,
    units_of,
)
from torch.nn.functional import cross_entropy
from word_corpora import novels

import fewfold
from fewfold import DistillConfig
from fewfold.checkpoint.save import save
from fewfold.measure.modes import evaluating
from fewfold.measure.parameters import stored_bytes
from fewfold.pretrain.build import build_masked_lm
from fewfold.pretrain.config import PretrainConfig
from fewfold.pretrain.masking import IGNORED, Masking
from fewfold.pretrain.run import collate, pretrain_and_save
from fewfold.pretrain.text import windows
from fewfold.progress import track
from fewfold.stored.kept import Kept
from fewfold.tasks import FineTuning, fine_tune, probe, with_head
from fewfold.tasks.evaluate import task_named
from fewfold.tasks.glue import read_glue

STEPS, LENGTH, JUDGED = 1800, 64, 512
FEW = 40  # examples and held-out windows of a try of the program
SHAPE = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
    "global_attn_every_n_layers": 1, "max_position_embeddings": 128,
}  # fmt: skip
TRAINING = {"batch": 32, "learning_rate": 2e-3, "warmup": 0.1, "checkpoint_steps": 100, "bf16": BF16}
TUNED = {
    "sst2": FineTuning(2e-4, epochs=2, bf16=BF16), "cola": FineTuning(1e-4, epochs=3, bf16=BF16),
    "stsb": FineTuning(2e-4, epochs=3, bf16=BF16),
}  # fmt: skip
MEASURES = {
    "masked": Measure("masked perplexity, novels", perplexity, more_is_better=False),
    "sst2": Measure("SST-2, accuracy", mean),
    "cola": Measure("CoLA, Matthews", matthews),
    "stsb": Measure("STS-B, Pearson", pearson),
    "probe": Measure("linear probe, SST-2 accuracy", mean),
}


def masked(wish: Wish) -> Cell:
    """One cell: sizes, throughput, and rows of sums for each of `MEASURES`."""
    if wish.kind == "veps-int8":
        pace = None
        heads = {task: in_bytes(wish, task) for task in TUNED}
        model, tokenizer = in_bytes(wish)
    else:
        pace = trained(wish)
        model, tokenizer = loaded(wish.folder / "mlm")
        heads = {task: tuned(wish, task) for task in TUNED}
    units = {task: units_of(task, judged(wish, task, *heads[task])) for task in TUNED}
    limit = FEW if wish.trial else None
    probed = probe(model, "sst2", tokenizer=tokenizer, limit=limit, eval_limit=limit, max_length=LENGTH)
    units["probe"] = units_of("sst2", probed.runs[0].judged.predictions)
    units["masked"] = masked_units(model, tokenizer, wish)
    return {
        **sizes_of(model), "bytes": stored_bytes(model), "tokens_a_second": pace, "units": units.pop("sst2"),
        "more": units,
    }  # fmt: skip


def text_files(wish: Wish) -> tuple[Path, Path]:
    """The text to learn on and the text to judge on, a line each paragraph or sentence."""
    folder = wish.folder.parent / ("text-of-a-try" if wish.trial else "text")
    files = folder / "text.txt", folder / "held-out.txt"
    if all(file.is_file() for file in files):
        return files
    learned, judged_on, _ = novels()
    learned = [*learned, *(example.first for example in read_glue("sst2", "train").examples)]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file, lines in zip(files, (learned, judged_on), strict=True):
        partial = file.with_suffix(".partial")
        partial.write_text("\n".join(lines[: 100 if wish.trial else None]), encoding="utf-8")
        partial.replace(file)
    return files


def config_of(wish: Wish) -> PretrainConfig:
    """How it is pretrained."""
    return PretrainConfig.make({
        "family": "modernbert", "model": SHAPE, "length": LENGTH, "vocabulary": 500 if wish.trial else 8000,
        "methods": None if wish.recipe is None else [wish.recipe.model_dump(mode="json")], "output_bias": "zeros",
        "training": {**TRAINING, "steps": wish.steps(STEPS), "seed": wish.seed},
    })  # fmt: skip


def trained(wish: Wish) -> float:
    """Pretrain into `mlm`, or go on with that; a finished one is left as it is. Tokens a second."""
    saved, name = wish.folder / "mlm", "distill.json" if wish.kind == "veps-distilled" else "training.json"
    if not (saved / name).is_file():
        files = text_files(wish)
        if wish.kind == "veps-distilled":
            distilled(wish, files[0], saved)
        else:
            pretrain_and_save(saved, config_of(wish), [files[0]], [files[1]])
    record = json.loads((saved / name).read_text())
    return float((record["phases"][0] if "phases" in record else record["training"])["tokens_a_second"])


def distilled(wish: Wish, file: Path, saved: Path) -> None:
    """Let a fresh student learn from the dense twin, on the windows that the others are pretrained on."""
    trained(wish.of("dense"))
    teacher, tokenizer = loaded(wish.of("dense").folder / "mlm")
    plan = config_of(wish)
    rows = windows(tokenizer, file.read_text(encoding="utf-8").splitlines(), LENGTH)
    texts = tokenizer.batch_decode(
        rows[:, 1:-1].tolist(), clean_up_tokenization_spaces=False
    )  # start and end come back with tokenizing
    training = plan.training
    config = DistillConfig(
        logits={"temperature": 2.0}, labels={"weight": 0.5}, masking=plan.mask_share, max_length=LENGTH, dropout=True,
        batch_size=training.batch, steps=training.steps, learning_rate=training.learning_rate, betas=training.betas,
        epsilon=training.epsilon, weight_decay=training.weight_decay, warmup=training.warmup,
        clip=training.max_gradient_norm, seed=wish.seed, validation=0, checkpoint_minutes=1.0, log_steps=50, bf16=BF16,
        name="masked language model",
    )  # fmt: skip
    student = build_masked_lm(plan, tokenizer)
    fewfold.distill(teacher, student, texts, config=config, tokenizer=tokenizer, out=saved, data_name="as pretrained")


def tuned(wish: Wish, task: str) -> tuple[Any, Any]:
    """The model fine-tuned on a task, trained now or before."""
    saved = wish.folder / task
    if not (saved / "done").is_file():
        model, tokenizer = loaded(wish.folder / "mlm")
        work, settings = task_named(task, tokenizer, LENGTH), TUNED[task]
        head = with_head(model, work.num_labels, seed=wish.seed)
        rows, _ = work.training_rows(head, FEW if wish.trial else None)
        fine_tune(head, tokenizer, rows, settings, wish.seed)
        save(head, saved, tokenizer=tokenizer)
        (saved / "done").touch()
    return loaded(saved)


def in_bytes(wish: Wish, task: str | None = None) -> tuple[Any, Any]:
    """What `veps` learned, or its model fine-tuned on a task, with table and expansion rounded to int8."""
    source = wish.of("veps")
    trained(source)
    given, tokenizer = tuned(source, task) if task else loaded(source.folder / "mlm")
    model = build_masked_lm(config_of(wish), tokenizer)
    if task:
        model = with_head(model, int(given.config.num_labels))
    learned = dict(given.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(learned.pop(name))
    assert not learned, f"numbers that the int8 model lacks: {', '.join(learned)}"
    rounded = [leaf for leaf in model.modules() if isinstance(leaf, Kept)]
    assert rounded, "nothing is kept in int8"
    for leaf in rounded:
        leaf.round_()
    return model.eval(), tokenizer


def judged(wish: Wish, task: str, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """What a fine-tuned model says of a task's development data."""
    work = task_named(task, tokenizer, LENGTH, eval_limit=FEW if wish.trial else None)
    return work.judge(model, 64, 2).predictions


def masked_units(model: Any, tokenizer: Any, wish: Wish) -> list[list[float]]:
    """Loss and masked tokens of each held-out window, the same tokens for every model."""
    rows = windows(tokenizer, text_files(wish)[1].read_text(encoding="utf-8").splitlines(), LENGTH)[
        : FEW if wish.trial else JUDGED
    ]
    masking, units = Masking.of(tokenizer), []
    with evaluating(model), torch.inference_mode():
        for place in track(range(len(rows)), "judging"):
            batch = collate([masking(rows[place], torch.Generator().manual_seed(place))])
            hidden = batch["labels"][0] != IGNORED
            logits = model(input_ids=batch["input_ids"]).logits[0][hidden]
            loss = cross_entropy(logits.float(), batch["labels"][0][hidden], reduction="sum")
            units.append([float(loss), float(hidden.sum())])
    return units


def bags_of_words(scale: float) -> dict[str, list[list[float]]]:
    """The floor, as rows of sums: logistic regressions on TF-IDF of words and pairs of words; of STS-B, cosines."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    limit, found = FEW if scale < TRY else None, {}
    for task in TUNED:
        train, dev = (read_glue(task, split).examples[:limit] for split in ("train", "dev"))
        table = TfidfVectorizer(ngram_range=(1, 2) if task != "stsb" else (1, 1), sublinear_tf=True)
        inputs = table.fit_transform([text for example in train for text in _texts(example)])
        sides = [table.transform(list(side)) for side in zip(*(_texts(example) for example in dev), strict=True)]
        if task == "stsb":
            said: Sequence[float] = np.asarray(sides[0].multiply(sides[1]).sum(1)).ravel().tolist()
        else:
            learner = LogisticRegression(C=10, max_iter=1000).fit(inputs, [example.label for example in train])
            said = learner.predict(sides[0]).tolist()
        pairs = zip(dev, said, strict=True)
        found[task] = units_of(task, [{"label": example.label, "prediction": value} for example, value in pairs])
    return found


def _texts(example: Any) -> list[str]:
    return [text for text in (example.first, example.second) if text is not None]
