"""What recovery learns on: unlabelled sentences of every kind at hand, evaluation sentences kept out."""

from __future__ import annotations

import random

from common import BF16

from fewfold.distill.config import DistillConfig
from fewfold.distill.presets import phases_of
from fewfold.tasks.data import distinct_sentences, lines, local_file, stsb, wikitext2

SEED = 0
SHARES = {"wiki": 60_000, "novels": 60_000, "captions": 29_000, "reviews": 40_000, "questions": 40_000}
SHORTEST, LONGEST = 4, 96  # words of a text


def recovery_texts() -> list[str]:
    """WikiText-2 and novels (paragraphs cut into runs of sentences), Multi30k captions, SST-2 and SQuAD questions.

    All are training parts; texts of fewer than ``SHORTEST`` words are left out, longer ones than ``LONGEST`` cut.
    """
    found: list[str] = []
    for name, texts in _sources().items():
        kept = [short for text in texts for short in _pieces(text)]
        random.Random(SEED).shuffle(kept)
        found += kept[: SHARES[name]]
    random.Random(SEED).shuffle(found)
    return found


def recovery_phases(preset: str = "general") -> list[DistillConfig]:
    """A preset's phases, in bfloat16 where the processor has it."""
    return [phase.changed(bf16=BF16) for phase in phases_of(preset)]


def excluded() -> list[str]:
    """What recovered models are judged on: the sentences of STS-B dev, SST-2 dev, CoLA dev and SQuAD dev."""
    from fewfold.tasks.glue import read_glue
    from fewfold.tasks.squad import read_squad

    asked = (text for one in read_squad("dev").questions for text in (one.question, one.context))
    judged = (example.first for task in ("sst2", "cola") for example in read_glue(task, "dev").examples)
    return [*distinct_sentences(stsb("dev")), *dict.fromkeys((*judged, *asked))]


def _sources() -> dict[str, list[str]]:
    from fewfold.tasks.glue import read_glue
    from fewfold.tasks.squad import read_squad

    novels = local_file("corpus/novels.txt.xz")
    captions = local_file("multi30k/train.en.gz")
    sources = {
        "wiki": [line for line in wikitext2("train") if line.strip() and not line.strip().startswith("=")],
        "reviews": [example.first for example in read_glue("sst2", "train").examples],
        "questions": [example.question for example in read_squad("train").questions],
    }
    if novels is not None:
        sources["novels"] = lines(novels)
    if captions is not None:
        sources["captions"] = lines(captions)
    return sources


def _pieces(text: str) -> list[str]:
    words = text.replace(" <unk> ", " ").split()
    runs = [words[start : start + LONGEST] for start in range(0, len(words), LONGEST)]
    return [" ".join(run) for run in runs if len(run) >= SHORTEST]
