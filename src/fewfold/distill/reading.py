"""The texts of a run: read once, tokenised once for each way in which its phases want them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fewfold.calibration.inputs import cut_to_pieces
from fewfold.distill.checks import check_labels, decoder_start
from fewfold.distill.config import DistillConfig
from fewfold.distill.examples import Examples, read_examples
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.tokens import TokenisedTexts, tokenise
from fewfold.measure.inputs import clipped_length


class Reading:
    """What a run learns on.

    :param model: the teacher or the student; both read alike.
    :param tokenizer: the model's; of encoder–decoders both vocabularies'.
    :raises DistillError: as :func:`read_examples`, and for labels that the model cannot give.
    """

    def __init__(
        self, data: Any, phases: Sequence[DistillConfig], tokenizer: Any, exclude: Iterable[str], model: Any
    ) -> None:
        labelled = [phase for phase in phases if phase.masking is None]
        writes = is_seq2seq(model)
        self.examples = read_examples(data, any(phase.labels for phase in labelled), exclude, writes)
        if labelled:
            check_labels(self.examples, model)
        self._tokenizer, self._config = tokenizer, model.config
        self._start = decoder_start(model) if writes else None
        self._tokens: dict[tuple[Any, ...], TokenisedTexts] = {}
        self._split: tuple[tuple[Any, ...], tuple[TokenisedTexts, TokenisedTexts | None]] | None = None

    def tokens(self, phase: DistillConfig) -> TokenisedTexts:
        """All texts tokenised, cut into pieces first where that is asked for and they stand alone."""
        key = phase.pieces, phase.max_length, phase.noise, phase.seed
        if key not in self._tokens:
            length = clipped_length(self._config, phase.max_length)
            self._tokens[key] = tokenise(
                self._examples(phase), self._tokenizer, length, self._start, phase.noise, phase.seed
            )
        return self._tokens[key]

    def split(self, phase: DistillConfig) -> tuple[TokenisedTexts, TokenisedTexts | None]:
        """Texts to learn on, and texts to measure on; what a phase was given, it is given again."""
        key = phase.pieces, phase.max_length, phase.noise, phase.seed, phase.validation
        if self._split is None or self._split[0] != key:
            self._split = key, split_off(self.tokens(phase), phase)
        return self._split[1]

    def _examples(self, phase: DistillConfig) -> Examples:
        if phase.pieces and len(self.examples.columns) == 1 and self.examples.labels is None:
            return Examples(cut_to_pieces(self.examples.texts, phase.seed))
        return self.examples


def held_out_count(texts: int, config: DistillConfig) -> int:
    """How many texts are held out: as asked, but never more than a tenth."""
    return min(config.validation, texts // 10)


def split_off(tokens: TokenisedTexts, config: DistillConfig) -> tuple[TokenisedTexts, TokenisedTexts | None]:
    """Texts to learn on, and texts to measure on."""
    count = held_out_count(len(tokens), config)
    if not count:
        return tokens, None
    order = np.random.default_rng(config.seed).permutation(len(tokens))
    return tokens.part(np.sort(order[count:]).tolist()), tokens.part(np.sort(order[:count]).tolist())


def planned_steps(config: DistillConfig, texts: int) -> int | None:
    """The steps of a run, None where only the clock ends it."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None and config.epochs is None:
        return None
    return max(1, round((config.epochs or 1.0) * (texts // config.batch_size)))
