"""The claims of the five papers, and what runs here say of them: drawn from the results of the other programs.

A claim is "reproduced" where its own quantity is had exactly, "holds at this scale" or "does not hold at this scale"
where a smaller run speaks of it, "not run yet" where a program exists whose results are not there, and "not feasible
here" where it takes what this project's machines do not have.

    python benchmarks/claims.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "results" / "claims.md"
HOLDS, FAILS = "holds at this scale", "does not hold at this scale"
PARTLY = "holds in part at this scale"

BERT_BASE = 109_191_936  # parameters with 30,528 tokens and 128 positions, as the paper counts
PROGRAMS = {"codes_tables": "codes_quality"}  # where a result's program is called otherwise

Verdict = tuple[str, str]  # measured, and what that means


@dataclass(frozen=True)
class Claim:
    """One claim.

    :param paper: in short.
    :param text: what it says.
    :param result: the results that speak of it, by their file's name; None where nothing can be run.
    :param judge: from those results to what was measured and the verdict.
    """

    paper: str
    text: str
    result: str | None
    judge: Callable[[dict[str, Any]], Verdict] | None = None


SHAREBERT = "Hu et al., ShareBERT (AAAI 2024) and Neural Networks 191 (2025)"
SLIM = "Li et al., Slim Embedding Layers (AAAI 2018)"
SHARING = "Takase and Kiyono, Lessons on Parameter Sharing across Layers (SustaiNLP 2023)"
EXTREME = "Ren et al., Exploring Extreme Parameter Compression (ICLR 2022)"
DIRECTION = "Bałazy et al., Direction is what you need (RepL4NLP 2021)"


def once_measured(fragment: str) -> Callable[[dict[str, Any]], Verdict]:
    """As :func:`reached`, where the program may have run without what the claim is about."""

    def judge(result: dict[str, Any]) -> Verdict:
        if all(fragment not in check["what"] for check in result["checks"]):
            return "–", "not run yet"
        return reached(fragment)(result)

    return judge


def reached(fragment: str) -> Callable[[dict[str, Any]], Verdict]:
    """The checks whose text holds ``fragment``: all of them have to be reached."""

    def judge(result: dict[str, Any]) -> Verdict:
        found = [check for check in result["checks"] if fragment in check["what"]]
        if not found:
            raise SystemExit(f"no check says {fragment!r}; there are: {[check['what'] for check in result['checks']]}")
        measured = "; ".join(f"{check['what']}: {check['measured']}" for check in found)
        held = [check["reached"] for check in found]
        return measured, HOLDS if all(held) else PARTLY if any(held) else FAILS

    return judge


def with_our_codes(published: str, ours: str) -> Callable[[dict[str, Any]], Verdict]:
    """As :func:`reached` for codes drawn at random, and for ours, by the neighbours of words, where there are any."""

    def judge(result: dict[str, Any]) -> Verdict:
        there = {part: any(part in check["what"] for check in result["checks"]) for part in (published, ours)}
        if not there[ours]:
            return once_measured(published)(result)
        better, ours_verdict = reached(ours)(result)
        if not there[published]:
            return better, f"{ours_verdict}, with our codes; random ones are not run yet"
        measured, verdict = reached(published)(result)
        if verdict != HOLDS and ours_verdict != FAILS:
            verdict = f"{ours_verdict.removesuffix(' at this scale')} with our codes, not with random ones"
        return f"{measured}; {better}", verdict

    return judge


def direction_beats_svd(ratio: str) -> Callable[[dict[str, Any]], Verdict]:
    """From the paired differences at one ratio; an interval around 0 decides nothing."""

    def judge(result: dict[str, Any]) -> Verdict:
        name = f"auto-encoder as published, {ratio}×"
        one = next(one for one in result["differences"] if one["rows"][0] == name)
        low, high = one["low"], one["high"]
        verdict = HOLDS if low > 0 else FAILS if high < 0 else "not decided at this scale (the interval holds 0)"
        return f"STS-B dev {one['difference']:+.4f} (95 % interval {low:+.4f} … {high:+.4f}), no fine-tuning", verdict

    return judge


def shared_counts(_: dict[str, Any]) -> Verdict:
    """Parameters of the three published sizes, on the meta device."""
    import torch

    from fewfold.measure.parameters import unique_parameters
    from fewfold.models import ShareBertConfig, ShareBertModel

    found = []
    for size in ("small", "base", "large"):
        with torch.device("meta"):
            model = ShareBertModel(ShareBertConfig.preset(size, layout="reference"))
        found.append(unique_parameters(model))
    same = found == [4_983_040, 13_847_296, 27_008_512]
    counts = ", ".join(f"{count:,}" for count in found)
    return (
        f"{counts} parameters; of BERT base's {BERT_BASE:,}: {BERT_BASE / found[0]:.1f}×",
        "reproduced" if same else "not reproduced",
    )


def speed(result: dict[str, Any]) -> Verdict:
    """The published order against dense, on two CPU cores instead of the paper's hardware."""
    rows = {row["name"]: row for row in result["rows"]}
    parts, good, theirs = [], True, True
    for size, claimed in result["paper"].items():
        faster = rows[f"{size}, published order"]["8x128"]["faster"]
        parts.append(f"{size} {faster:.2f}× (paper {claimed}×; ours {rows[size]['8x128']['faster']:.2f}×)")
        good = good and rows[size]["8x128"]["faster"] >= claimed
        theirs = theirs and faster >= claimed
    verdict = HOLDS if theirs else "holds with our execution, not in the published order" if good else FAILS
    return "; ".join(parts), verdict


CLAIMS = [
    Claim(SHAREBERT, "5M, 14M and 27M parameters, 21.9 times fewer than BERT base", "sharebert_speed", shared_counts),
    Claim(SHAREBERT, "up to 95.5 % of BERT base's quality after 23,000 steps of 4,000 sequences", None),
    Claim(
        SHAREBERT, "the same idea serves recurrent and convolutional layers, decoders, translation and captioning",
        "embedding_sharing_tasks", reached("VEPS, shared by all layers: kept of dense"),
    ),
    Claim(
        SLIM, "perplexity near the dense model's at a tenth of the numbers",
        "slim_lm_words", with_our_codes("slim 1/10's perplexity", "slim 1/10 by neighbours, over dense, 16 a word"),
    ),
    Claim(
        SLIM, "an input layer with a fiftieth of its numbers costs nothing",
        "slim_lm_words", with_our_codes("slim input 1/50's perplexity", "slim input 1/50 by neighbours, over dense"),
    ),
    Claim(
        SLIM, "translation keeps its BLEU",
        "translation", with_our_codes("slim at 1/10 over dense", "slim at 1/10, by neighbours over dense"),
    ),
    Claim(SLIM, "One Billion Word: 38.3 against 30.6 with 0.25 of 1.8 billion numbers", None),
    Claim(SHARING, "sequence, cycle and cycle_rev beat one block for all layers", "shared_layers_scratch", reached("")),
    Claim(SHARING, "WMT translation: cycle_rev first", None),
    Claim(EXTREME, "the compressed layers run 2.7, 2.05 and 1.4 times faster", "shared_factors_speed", speed),
    Claim(EXTREME, "BERT base keeps 96.7 % of its whole GLUE score at 1/48, after two stages of distillation", None),
    *(
        Claim(EXTREME, f"quality comes back at {ratio}, {how}", name, once_measured(f"{ratio} of the"))
        for ratio in ("1/7", "1/48")
        for how, name in (
            ("by general distillation, then fine-tuned", "recover"),
            ("by a fine-tuned teacher's distillation", "task_first"),
        )
    ),
    *(
        Claim(DIRECTION, f"the auto-encoder beats SVD at {ratio}×", "codes_tables", direction_beats_svd(ratio))
        for ratio in ("2.5", "5", "10")
    ),
    Claim(DIRECTION, "a lower perplexity before any training", "masked_tables", reached("as published")),
    Claim(DIRECTION, "better scores after fine-tuning", "finetune_tables", reached("above SVD")),
]  # fmt: skip


def judged(claim: Claim) -> Verdict:
    """What the runs at hand say."""
    if claim.result is None or claim.judge is None:
        return "–", "not feasible here"
    path = RESULTS / f"{claim.result}.json"
    if claim.judge is shared_counts:
        return shared_counts({})
    if not path.exists():
        return f"`benchmarks/{PROGRAMS.get(claim.result, claim.result)}.py`", "not run yet"
    return claim.judge(json.loads(path.read_text(encoding="utf-8")))


def shown_by(claim: Claim) -> str:
    """The page of the run that shows it; it names versions, hardware and settings."""
    if claim.judge is shared_counts:
        return "counted by `benchmarks/claims.py`"
    page = PAGE.parent.parent / "benchmarks" / f"{claim.result}.md"
    return f"[{claim.result}](../benchmarks/{page.name})" if claim.result and page.exists() else "–"


def page() -> str:
    """The page, as the results are now."""
    lines = ["# The papers' claims", "", "Drawn by `python benchmarks/claims.py` from `benchmarks/results`.", ""]
    paper = ""
    for claim in CLAIMS:
        if claim.paper != paper:
            paper = claim.paper
            lines += ["", f"## {paper}", "", "| claim | measured here | verdict | run |", "|---|---|---|---|"]
        measured, verdict = judged(claim)
        lines.append(f"| {claim.text} | {measured} | {verdict} | {shown_by(claim)} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
