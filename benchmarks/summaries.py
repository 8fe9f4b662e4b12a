"""The small tables in the guides, drawn from the results that the other programs wrote: no figure is typed by hand.

A page holds a table between ``<!-- drawn: NAME -->`` and ``<!-- /drawn -->``.

    python benchmarks/summaries.py            write the tables into the pages
    python benchmarks/summaries.py --check    say which pages would change, and exit with 1
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
BLOCK = re.compile(r"(<!-- drawn: ([\w-]+) -->\n).*?(<!-- /drawn -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """What a program wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(*rows: tuple[str, ...]) -> str:
    """Rows as Markdown; the first is the head."""
    head, *rest = rows
    lines = [head, ("---",) * len(head), *rest]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def neighbours(name: str) -> Callable[[str], str]:
    """Of a result with quality rows: a row's nn10."""
    found = {row["name"]: row["neighbour_overlap"] for row in result(name)["rows"]}
    return lambda row: f"{found[row]:.2f}"


def basis() -> str:
    """Shared basis beside low rank, at two ratios."""
    nn10 = neighbours("shared_basis_quality")
    rows = {
        "low rank, which it is at `group=1`": "low rank", "pairs of layers, as published": "pairs, as published",
        "pairs, ours (default)": "pairs (default)", "three layers": "three layers", "six layers": "six layers",
    }  # fmt: skip
    cells = [(title, nn10(f"{row}, 1/2"), nn10(f"{row}, 1/4")) for title, row in rows.items()]
    return table(("the linears' numbers", "1/2: nn10", "1/4: nn10"), *cells)


def methods() -> str:
    """Every method in a line."""
    ranks, codes = neighbours("low_rank_quality"), neighbours("codes_linears")
    shared, half = neighbours("shared_factors_quality"), neighbours("shared_basis_quality")
    return table(
        ("method", "stored", "saves bytes", "saves work", "without training"),
        (
            "[LowRank](low_rank.md)", "two narrow factors", "yes", "yes, below break-even",
            f"{half('low rank, 1/2')} of the neighbours at 1/2 of the numbers, {half('low rank, 1/4')} at 1/4",
        ),
        (
            "[SharedFactors, Tucker, TensorTrain](shared_factors.md)", "factors common to all layers, small cores",
            "much", "only at small ranks", f"poor ({shared('shared factors, 1/4')} at 1/4): train afterwards",
        ),
        (
            "[SharedBasis](shared_basis.md)", "a basis for neighbouring layers", "some", "as low rank",
            "a little behind low rank on a small model",
        ),
        (
            "[SharedLayers](shared_layers.md)", "one block for several layers", "yes", "no",
            "poor when strict; differences help",
        ),
        (
            "[SubvectorCodes](subvector_codes.md)", "small integers and codebooks", "most", "no",
            f"best for each byte: {codes('codes (codes-default), 8×')} at 1/8 of the bytes, "
            f"{codes('codes (codes-default), 15×')} at 1/15",
        ),
        ("[EmbeddingAutoencoder](embedding_autoencoder.md)", "narrow rows and a decoder", "tables", "no", "fair"),
        (
            "[EmbeddingSharing](embedding_sharing.md)", "hidden weights out of the table", "most", "no",
            "only from scratch",
        ),
        (
            "[Slim tables](slim_lm.md)", "codes settled before training, trained sub-vectors", "tables",
            "output layers", "only from scratch",
        ),
        (
            "[Dense](dense.md)", "the weight in fewer bits", "4× (int8) to 7× (int4)", "no",
            f"{ranks('dense linears, int8')} at int8, {ranks('dense linears, int4')} at int4",
        ),
    )  # fmt: skip


def sharing_tasks() -> str:
    """Hidden layers out of the table, task by task, as shares of the dense twin."""
    cells = {(row["task"], row["kind"]): row for row in result("embedding_sharing_tasks")["rows"]}
    rows = {
        "masked LM, SST-2": "masked language model, then SST-2 (accuracy)",
        "LSTM LM, WikiText-2": "LSTM language model (perplexity, dense over it)",
        "translation, Multi30k": "translation (BLEU)",
        "captioning, flickr8k-1k": "captions (CIDEr-D; a thousand images, wide intervals)",
    }
    lines = []
    for task, title in rows.items():
        share = cells[task, "veps"]["cell"]["hidden"] / cells[task, "dense"]["cell"]["hidden"]
        kept = [f"{float(cells[task, kind]['row'][6]):.2f}" for kind in ("veps", "shared")]
        lines.append((title, f"{100 * share:.0f} %", *kept))
    return table(("", "numbers in hidden layers", "VEPS", "one stored block"), *lines)


def sharing_choices() -> str:
    """What other choices of hidden layers out of the table cost."""
    rows = {row["choice"]: row["row"] for row in result("embedding_sharing_choices")["rows"]}

    def more(choice: str) -> int:
        return int(rows[choice][2].replace(",", ""))

    head, own = "head of its own (published)", "own slots for each layer"
    named = [
        ("fresh numbers of deviation 0.02, as published", "fresh numbers of deviation 0.02 (published)",
         "carved weights then begin far too small: they are drawn wider"),
        ("biases drawn with variance 1, as published", "biases normal, variance 1 (published)", "they begin at 0"),
        (f"a head of its own with {more(head) / 1e6:.1f}M numbers, as published", head,
         "the head is tied to the table through a short map"),
        (f"own slots for each layer, {more(own):,} numbers", own, "all layers have the same weights"),
        ("scores over the root of the head's width", "scores over the root of the head size",
         "the published power of 2/3 stays"),
        ("a head's bias from 0, as published", "head's bias from 0 (published)",
         "it begins at the words' frequencies, as everywhere here"),
        ("all that is published at once", "as published in all", ""),
    ]  # fmt: skip
    return table(("instead of our default", "", ""), *((title, rows[key][4], why) for title, key, why in named))


def slim_words() -> str:
    """Perplexity of slim language models of WikiText-2, with their bytes."""
    rows = result("slim_lm_words")["corpora"]["wikitext-2"]["rows"]
    like, input_alone = "the dense model, coded into the bytes of", "slim input alone, 1/50"
    named = {
        "dense": "dense",
        "slim input and output, 1/10 of their numbers, random codes": "slim 1/10",
        "the same by neighbours": "slim 1/10, by neighbours",
        "by neighbours, 16 sub-vectors a word": "slim 1/10, by neighbours, 16 a word",
        "a dense model so narrow that it has those bytes": "dense, bytes of slim 1/10",
        "the narrow one, its tables begun at the same vectors": "dense, bytes of slim 1/10, begun at neighbours",
        "dense, its tables begun at them": "dense, begun at neighbours",
        f"{input_alone}, random codes": "slim input 1/50",
        f"{input_alone}, by neighbours": "slim input 1/50, by neighbours",
        "slim input and output, 1/50, random codes": "slim 1/50",
        "both by neighbours, 1/50": "slim 1/50, by neighbours",
        "a dense model so narrow that it has these bytes": "dense, bytes of slim 1/50",
        f"{like} slim 1/10, in a minute or two": "dense, coded to the bytes of slim 1/10",
        f"{like} slim 1/50": "dense, coded to the bytes of slim 1/50",
    }
    lines = [(title, f"{rows[key]['bytes'] / 1e6:.1f}", f"{rows[key]['test']:.1f}") for title, key in named.items()]
    counted = ("Kneser-Ney 5-gram", "", f"{rows['Kneser-Ney 5-gram']['test']:.0f}")
    return table(("", "MB", "perplexity"), counted, *lines)


def slim_translation() -> str:
    """Greedy BLEU of translations with slim tables; means over seeds."""
    rows = result("translation")["rows"]
    kinds = {"dense": "dense", "by neighbours": "slim, by neighbours", "random codes": "slim"}

    def mean(model: str, kind: str) -> str:
        seeds = rows.get(f"{model}, {kind}", [])
        return f"{sum(seed['greedy']['value'] for seed in seeds) / len(seeds):.1f}" if seeds else ""

    named = {"LSTM": "lstm", "transformer": "transformer"}
    lines = [(title, *(mean(model, kind) for kind in kinds.values())) for title, model in named.items()]
    return table(("", *kinds), *lines)


TABLES = {
    "basis": basis, "methods": methods, "sharing-choices": sharing_choices, "sharing-tasks": sharing_tasks,
    "slim-translation": slim_translation, "slim-words": slim_words,
}  # fmt: skip


def filled(text: str) -> str:
    """A page with its tables as they are now."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n{block[3]}", text)


def main() -> None:
    """Write the tables, or look at them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page would change")
    options = parser.parse_args()
    changed = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            changed.append(page)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    for page in changed:
        print(f"{'would change' if options.check else 'drawn'}: {page.relative_to(DOCS)}")
    if options.check and changed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
