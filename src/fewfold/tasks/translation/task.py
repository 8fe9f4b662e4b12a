"""Translation as a task: a model with `generate`, judged by BLEU on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fewfold.errors import TaskError
from fewfold.tasks.batches import Row
from fewfold.tasks.heads import Kind
from fewfold.tasks.judged import Judged
from fewfold.tasks.translation.bleu import bleu
from fewfold.tasks.translation.corpus import read_corpus
from fewfold.tasks.translation.decode import translate
from fewfold.tasks.translation.vocabulary import Vocabularies

LANGUAGE_PAIRS = {"multi30k-en-de": ("en", "de"), "multi30k-de-en": ("de", "en")}
SPLIT = "test_2016_flickr"


class Translation:
    """A language pair of Multi30k with its test data, read once, and the tokenizers.

    BLEU is computed on detokenized text, cased unless the model's tokenizer lower-cases; its signature says which.
    """

    kind: Kind = "translation"
    num_labels = 0

    def __init__(
        self, name: str, tokenizer: Any, max_length: int = 128, eval_limit: int | None = None, beams: int = 1
    ) -> None:
        """Read what is judged on.

        :param name: A key of `LANGUAGE_PAIRS`.
        :param tokenizer: The model's; that of a separate target side is found beside it.
        :param max_length: Tokens a sentence.
        :param eval_limit: Judge on the first so many sentences; None for all.
        :param beams: 1 is greedy.
        """
        self.name, self.max_length, self.beams = name, max_length, beams
        self.vocabularies = Vocabularies.of(tokenizer)
        self.corpus = read_corpus(*LANGUAGE_PAIRS[name], SPLIT).first(eval_limit)
        self.signature: str | None = None

    def judges(self, model: nn.Module) -> bool:
        """Say whether a model is an encoder–decoder that generates."""
        return bool(getattr(model.config, "is_encoder_decoder", False)) and hasattr(model, "generate")  # type: ignore[arg-type]

    def training_rows(self, model: nn.Module, limit: int | None) -> tuple[list[Row], int]:
        """Refuse: translation models are trained from scratch, by a command of their own.

        :raises TaskError: Always.
        """
        raise TaskError(f"{self.name} has no fine-tuning: train with fewfold translation train, then judge as it is")

    def judged_on(self) -> Sequence[Any]:
        """Nothing, as nothing is fine-tuned."""
        return ()

    def judge(self, model: nn.Module, batch_size: int, resamples: int) -> Judged:
        """Translate the test sentences and score them: BLEU 0…100, and words over the references' words."""
        found = translate(
            model, self.vocabularies, self.corpus.sources, beams=self.beams, batch_size=batch_size,
            max_length=self.max_length,
        )  # fmt: skip
        scored = bleu(found.texts, self.corpus.targets, self.vocabularies.is_lowercase, resamples)
        self.signature = scored.signature
        records = [
            {"index": place, "source": source, "reference": reference, "prediction": text}
            for place, (source, reference, text) in enumerate(
                zip(self.corpus.sources, self.corpus.targets, found.texts, strict=True)
            )
        ]
        count = len(records)
        return Judged({"bleu": scored.score}, records, count, count, found.tokens, found.seconds, "generation")

    def data(self) -> dict[str, Any]:
        """Describe the data in use, the search, and BLEU's signature once it is known."""
        return {
            SPLIT: {"source": self.corpus.source, "examples": len(self.corpus)},
            "beams": self.beams, "signature": self.signature,
        }  # fmt: skip
