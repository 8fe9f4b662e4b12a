"""Small records of every form that the report reads."""

import json


def row(name, size, nn10, spearman=None, macs=1e6):
    sts = None if spearman is None else {"spearman": spearman, "low": spearman - 0.02, "high": spearman + 0.02}
    return {
        "name": name, "calibration": "-", "sts": sts, "neighbour_overlap": nn10, "cosine": nn10,
        "hidden_error": 1 - nn10,
        "bytes": size, "parameters": size // 4, "macs": macs, "seconds": 30.0, "neighbours": 10,
    }  # fmt: skip


ROWS = [
    row("dense", 90_000_000, 1.0, 0.86),
    row("low rank, 1/4", 40_000_000, 0.5, 0.80),
    row("low rank, 1/2", 60_000_000, 0.7, 0.83),
    row('codes, "best", 1/4', 45_000_000, 0.45, 0.79),
    row("floor", 46_000_000, 0.3, 0.6, macs=0.0),
]


def write(folder):
    """Write one file of each form below a folder; return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "quality": {"environment": {"torch": "2.13", "date": "today"}, "rows": ROWS},
        "sst2": {
            "folder": "models/small", "task": "sst2",
            "metrics": {"accuracy": {"mean": 0.9, "std": None, "values": [0.9]}},
            "model": {"class": "Bert", "parameters": 1000, "bytes": 4_000_000, "compressed": True},
            "runs": [{"metrics": {"accuracy": {"value": 0.9, "low": 0.88, "high": 0.92}}}], "minutes": 2.0,
            "environment": {},
        },
        "costs": {
            "batch": 1, "length": 16, "environment": {},
            "models": {
                "models/small": {"parameters": 1000, "weight_file_bytes": 4_100_000, "latency_ms": 3.5},
                "models/dense": {"parameters": 9000, "weight_file_bytes": 36_000_000, "latency_ms": 9.5},
            },
        },
        "run": {
            "format": 1, "name": "codes, 1/7, 10 min", "kind": "recover", "model": "tiny",
            "recipe": [{"method": "codes"}],
            "numbers": {"before": row("x", 20_000_000, 0.4), "after": row("x", 20_000_000, 0.6)}, "minutes": 10.0,
        },
        "distill": {
            "environment": {}, "data": {"name": "texts"}, "minutes": 1.0, "tokens": 10,
            "phases": [{
                "config": {"name": "general"}, "steps": 2, "tokens": 10, "held_out": [],
                "curve": [{"step": 1, "seconds": 1.0, "loss": 2.0}, {"step": 2, "seconds": 60.0, "loss": 1.0}],
            }],
        },
    }  # fmt: skip
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {name: folder / f"{name}.json" for name in contents}
