"""A pretraining that was stopped: it goes on as it was, from the newest whole checkpoint, and only with its own."""

import pytest
import torch

from fewfold import CheckpointError
from fewfold.pretrain import run as runs
from fewfold.pretrain import training as loop
from fewfold.pretrain.build import build_masked_lm
from fewfold.pretrain.checkpoints import complete, last_complete
from fewfold.pretrain.config import PretrainConfig
from fewfold.pretrain.masking import Masking
from fewfold.pretrain.run import pretrain_and_save, pretrain_masked_lm
from fewfold.pretrain.text import train_tokenizer, windows
from fewfold.pretrain.trainer import PretrainTrainer
from fewfold.training.history import TrainingHistory

LINES = [f"{a} {b} {c} {a}" for a in ("red", "blue") for b in ("cats", "dogs") for c in ("see", "like")] * 8
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TRAINING = {"steps": 6, "batch": 8, "learning_rate": 1e-2, "log_steps": 1, "checkpoint_steps": 1}
LOW_RANK = {"method": "low_rank", "rank": 6, "stored_dtype": "int8"}


class Killed(BaseException):
    """Ends a training as a kill does."""


def config(**changes):
    training = {**TRAINING, **changes.pop("training", {})}
    model = {**TINY, **changes.pop("model", {})}
    return PretrainConfig.make(
        {"family": "bert", "model": model, "vocabulary": 90, "length": 16, "training": training, **changes}
    )


def learned(folder, chosen):
    """Losses of the curve, and the trained numbers."""
    tokenizer = train_tokenizer(LINES, 90)
    rows = windows(tokenizer, LINES, 16)
    model = build_masked_lm(chosen, tokenizer)
    history = pretrain_masked_lm(model, Masking.of(tokenizer), rows[:-4], rows[-4:], chosen, folder=folder)
    return [point["loss"] for point in history.curve], torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def kill(monkeypatch):
    """Kill a training at the loss of a step; called again: no more."""
    original = PretrainTrainer.compute_loss

    def at(step):
        def dying(self, *args, **kwargs):
            if self.state.global_step + 1 == step:
                raise Killed
            return original(self, *args, **kwargs)

        monkeypatch.setattr(PretrainTrainer, "compute_loss", dying if step else original)

    return at


@pytest.mark.parametrize("methods", [None, [LOW_RANK], [{"method": "embedding_sharing"}]])
@pytest.mark.parametrize("damage", [pytest.param("none", marks=pytest.mark.full), "unfinished"])
def test_ends_where_an_uninterrupted_one_ends(methods, damage, tmp_path, kill):
    chosen = config(methods=methods, training={"checkpoints_kept": 2})
    whole, numbers = learned(tmp_path / "whole", chosen)
    kill(5)
    with pytest.raises(Killed):
        learned(tmp_path / "c", chosen)
    kill(None)
    assert sorted(path.name for path in (tmp_path / "c").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    if damage == "unfinished":
        (tmp_path / "c" / "checkpoint-4" / "history.json").unlink()
        (tmp_path / "c" / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    losses, resumed = learned(tmp_path / "c", chosen)
    assert losses == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(resumed, numbers, rtol=0, atol=1e-6)


def test_the_older_checkpoint_stays_until_the_newer_is_whole(tmp_path, kill, monkeypatch):
    original = loop.complete

    def dying(checkpoint, *args):
        if checkpoint.name == "checkpoint-3":
            raise Killed
        original(checkpoint, *args)

    monkeypatch.setattr(loop, "complete", dying)
    with pytest.raises(Killed):
        learned(tmp_path / "c", config())
    monkeypatch.setattr(loop, "complete", original)
    assert (tmp_path / "c" / "checkpoint-2" / "history.json").is_file()
    losses, _ = learned(tmp_path / "c", config())
    assert losses == pytest.approx(learned(tmp_path / "whole", config())[0], abs=1e-6)


@pytest.mark.parametrize("kept", [1, 2])
def test_what_is_half_written_takes_no_place(kept, tmp_path):
    for step, whole in ((250, True), (500, True), (1000, False), (750, True)):  # resumed with other checkpoint_steps
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        if whole:
            complete(checkpoint, TrainingHistory(), kept)
    assert last_complete(tmp_path).name == "checkpoint-750"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-500", "checkpoint-750"][-kept:]


def test_which_run_a_folder_is_of_is_written_once(tmp_path, kill, monkeypatch):
    kill(3)
    with pytest.raises(Killed):
        learned(tmp_path, config())
    kill(None)
    monkeypatch.setattr(loop, "begin", None)  # other processes read it while a run goes on
    assert len(learned(tmp_path, config())[0]) == 6


@pytest.mark.parametrize(
    "other",
    [{"model": {"num_attention_heads": 4}}, {"model": {"hidden_act": "relu"}}, {"training": {"seed": 1}},
     {"methods": [LOW_RANK]}],
)  # fmt: skip
def test_another_models_checkpoints_are_refused(other, tmp_path, kill):
    kill(3)
    with pytest.raises(Killed):
        learned(tmp_path / "c", config())
    kill(None)
    with pytest.raises(CheckpointError, match="another model"):
        learned(tmp_path / "c", config(**other))


@pytest.mark.parametrize("other", [pytest.param("kind", marks=pytest.mark.full), "text"])
def test_a_kept_tokenizer_is_that_of_this_text_and_kind(other, tmp_path, kill):
    changes = {"vocabulary_kind": "bpe", "vocabulary": 300} if other == "kind" else {}
    file = tmp_path / "text.txt"
    file.write_text("\n".join(LINES))
    kill(1)
    with pytest.raises(Killed):
        pretrain_and_save(tmp_path / "m", config(), [file])
    kill(None)
    if other == "text":
        file.write_text("\n".join(f"{line} quickly" for line in LINES))
    words = pretrain_and_save(tmp_path / "m", config(**changes), [str(file)])["data"]["vocabulary"]
    assert words == pretrain_and_save(tmp_path / "other", config(**changes), [file])["data"]["vocabulary"]
    assert words != len(train_tokenizer(LINES, 90))


def test_the_tokenizer_is_trained_once(tmp_path, kill, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text("\n".join(LINES))
    kill(3)
    with pytest.raises(Killed):
        pretrain_and_save(tmp_path / "m", config(), [file])
    kill(None)
    monkeypatch.setattr(runs, "train_tokenizer", None)
    assert pretrain_and_save(tmp_path / "m", config(), [file])["training"]["steps"] == 6


@pytest.mark.parametrize("family", ["bert", "sharebert"])
def test_a_batch_in_parts_is_the_batch(family, tmp_path):
    sizes = {**TINY, "factor_size": 16} if family == "sharebert" else TINY
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    found = []
    for micro in (None, 2, 1):
        smooth = {"micro_batch": micro, "learning_rate": 0.1, "epsilon": 1.0}  # steps follow gradients, not their signs
        chosen = config(family=family, model={**sizes, **dropout}, training=smooth)
        found.append(learned(tmp_path / str(micro), chosen))
    for losses, numbers in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        torch.testing.assert_close(numbers, found[0][1], rtol=1e-3, atol=1e-5)


def test_bf16_ends_with_the_training(tmp_path):
    tokenizer = train_tokenizer(LINES, 90)
    chosen = config(training={"bf16": True, "steps": 1})
    model = build_masked_lm(chosen, tokenizer)
    rows = windows(tokenizer, LINES, 16)
    pretrain_masked_lm(model, Masking.of(tokenizer), rows, rows[:2], chosen, folder=tmp_path)
    assert "forward" not in vars(model)
    with torch.no_grad():
        logits = model(input_ids=rows[:2].long()).logits
        exact = model.cls(model.bert(input_ids=rows[:2].long()).last_hidden_state)
    assert torch.equal(logits, exact)
