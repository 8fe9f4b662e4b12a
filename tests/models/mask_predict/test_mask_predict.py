"""Mask-predict: rounds against a plain loop, both-sided attention, padding, lengths, checkpoints."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import fewfold
from fewfold.models.mask_predict.config import MaskPredictConfig
from fewfold.models.mask_predict.model import MaskPredictModel
from fewfold.models.mask_predict.rounds import mask_predict

PAD, START, END, MASK = 0, 1, 2, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = MaskPredictConfig(
        vocab_size=19, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24, decoder_ffn_dim=24,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32, pad_token_id=PAD,
        eos_token_id=END, decoder_start_token_id=START, forced_eos_token_id=None, init_std=0.4, length_span=3,
    )  # fmt: skip
    return MaskPredictModel(config).eval()


def test_rounds_against_a_plain_loop():
    scores = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0)).double()
    mixing = torch.randn(6, 9, 6, 9, generator=torch.Generator().manual_seed(1)).double()

    def predict(tokens):
        """Log-probabilities that depend on every token of the row."""
        seen = torch.nn.functional.one_hot(tokens, 9).double()
        return (scores[: len(tokens)] + torch.einsum("bpv,pvqw->bqw", seen, mixing)).log_softmax(-1)

    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    tokens, found = mask_predict(predict, real, MASK, PAD, rounds=3)
    for row, length in enumerate((6, 4)):
        line, sure = [MASK] * length + [PAD] * (6 - length), [0.0] * length
        for number in range(3):
            logs = predict(torch.tensor([line, line]))[row]
            for place in range(length):
                if line[place] == MASK:
                    sure[place], line[place] = logs[place].max().item(), int(logs[place].argmax())
            if number < 2:
                for place in sorted(range(length), key=lambda place: sure[place])[: length * (2 - number) // 3]:
                    line[place] = MASK
        assert tokens[row].tolist() == line
        assert found[row].item() == pytest.approx(sum(sure) / length, abs=1e-5)


def test_every_place_sees_both_sides_and_no_padding(model):
    source = torch.tensor([[5, 6, 7, END]])
    target = torch.tensor([[8, MASK, 10, END]])
    with torch.no_grad():
        first = model(source, decoder_input_ids=target).logits
        other = model(source, decoder_input_ids=torch.tensor([[8, MASK, 11, END]])).logits
        padded = model(
            torch.tensor([[5, 6, 7, END, PAD]]),
            torch.tensor([[1, 1, 1, 1, 0]]),
            torch.tensor([[8, MASK, 10, END, PAD]]),
        ).logits
    assert (first[0, 1] - other[0, 1]).abs().max() > 1e-3
    torch.testing.assert_close(padded[:, :4], first, rtol=0, atol=1e-5)


def test_the_loss_is_of_masked_tokens_and_lengths(model):
    labels = torch.tensor([[8, 9, END], [10, END, -100]])
    batch = {"input_ids": torch.tensor([[5, 6, END], [7, END, PAD]]),
             "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]), "labels": labels}  # fmt: skip
    seen = []
    handle = model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    torch.manual_seed(3)
    found = model.training_loss(batch)
    handle.remove()
    masked = seen[0] == MASK
    assert masked.any(dim=1).all()
    assert torch.equal(seen[0][~masked], labels.clamp(min=0)[~masked])
    with torch.no_grad():
        output = model(batch["input_ids"], batch["attention_mask"], seen[0])
        tokens = -output.logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][masked].mean()
        lengths = model.length_logits(output.encoder_last_hidden_state, batch["attention_mask"]).log_softmax(-1)
    expected = tokens - 0.1 * (lengths[0, 3] + lengths[1, 3]) / 2  # both are as long as their sources
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_generated_one_by_one_or_together(model):
    rows = [[5, 6, 7, 8, END], [9, END]]
    ids = torch.tensor([row + [PAD] * (5 - len(row)) for row in rows])
    for lengths in (1, 3):
        together = model.generate(ids, (ids != PAD).long(), num_beams=lengths, max_new_tokens=12)
        assert not ((together == MASK) | (together == START)).any()
        for place, row in enumerate(rows):
            alone = model.generate(torch.tensor([row]), num_beams=lengths, max_new_tokens=12)[0]
            assert [t for t in together[place].tolist() if t != PAD] == [t for t in alone.tolist() if t != PAD]
    assert model.generate(ids, max_new_tokens=2).shape[1] <= 2


def test_saved_and_loaded(model, tmp_path):
    ids = torch.tensor([[5, 6, END]])
    fewfold.save(model, tmp_path / "m")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    assert type(again) is MaskPredictModel
    assert again.config.length_span == 3
    assert torch.equal(again.generate(ids, num_beams=2), model.generate(ids, num_beams=2))
    with pytest.raises(ValueError, match="joint vocabulary"):
        MaskPredictModel(MaskPredictConfig(vocab_size=9, share_encoder_decoder_embeddings=False))
