"""Decoders with past keys and values: what is read token by token is what is read at once."""

import numpy as np
import pytest
import torch
from cases import copied
from tiny_models import make

from fewfold import ModelError
from fewfold.export.onnx import compare_onnx, export_onnx, session_of

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def _empty(session, batch):
    """A past of no tokens, by what the graph says of its inputs."""
    sizes = {entry.name: entry.shape for entry in session.get_inputs() if entry.name.startswith("past_key_values.")}
    return {name: np.zeros((batch, size[1], 0, size[3]), np.float32) for name, size in sizes.items()}


def _read(session, ids, cuts):
    """Logits of a text that is read in pieces."""
    batch, length = ids.shape
    past, logits = _empty(session, batch), []
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        feed = {
            "input_ids": ids[:, start:stop], "attention_mask": np.ones((batch, stop), np.int64),
            "position_ids": np.arange(start, stop)[None].repeat(batch, 0),
        }  # fmt: skip
        found = dict(
            zip([entry.name for entry in session.get_outputs()], session.run(None, {**feed, **past}), strict=True)
        )
        logits.append(found.pop("logits"))
        past = {name.replace("present", "past_key_values"): value for name, value in found.items()}
        assert {value.shape[2] for value in past.values()} == {stop}
    return np.concatenate(logits, 1)


CASES = [(name, method) for name in ("llama_lm", "gpt2_lm") for method in ("low_rank", "subvector_codes", None)]


@pytest.mark.full
@pytest.mark.parametrize(("name", "method"), CASES)
def test_token_by_token_is_the_whole_text(name, method, tmp_path):
    model = make(name) if method is None else copied(name, method, "fp32")
    report = export_onnx(model, tmp_path / "model.onnx", with_past=True)
    assert (report.output, report.difference < 1e-4 * report.largest) == ("logits", True)
    session = session_of(report.file)
    ids = torch.randint(5, model.config.vocab_size, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits.numpy()
    for cuts in ([], range(1, 11), [7, 8]):
        np.testing.assert_allclose(_read(session, ids.numpy(), cuts), expected, rtol=1e-3, atol=1e-4)
    if method is None:
        with torch.no_grad():
            model.get_input_embeddings().weight[7:] += 0.3
        assert compare_onnx(model, report.file)[0] > 1e-2  # comparing sees it


@pytest.mark.parametrize("name", ["bert", "t5_lm"])
def test_what_is_no_decoder_is_refused(name, tmp_path):
    with pytest.raises(ModelError, match="export it without past"):
        export_onnx(make(name), tmp_path / "model.onnx", with_past=True)
    assert list(tmp_path.iterdir()) == []
