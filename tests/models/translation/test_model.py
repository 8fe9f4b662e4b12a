"""The recurrent translation model: padding, carried state, beam search against brute force, checkpoints."""

import copy
import itertools

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

import fewfold
from fewfold import LowRank
from fewfold.measure.parameters import unique_parameters
from fewfold.models import RecurrentTranslationConfig, RecurrentTranslationModel
from fewfold.models.slim_tables import SlimTables, make_slim
from fewfold.summary import stored_numbers

PAD, START, END = 0, 1, 2


def build(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": 23, "embedding_size": 16, "hidden_size": 20, "encoder_layers": 2, "decoder_layers": 2}
    model = RecurrentTranslationModel(RecurrentTranslationConfig(**{**settings, **changes}))
    with torch.no_grad():  # far from uniform, so that errors show
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.eval()


@pytest.fixture
def sources():
    rows = [[5, 6, 7, 8, 9, 2], [10, 11, 2], [12, 13, 14, 2]]
    ids = torch.tensor([row + [PAD] * (6 - len(row)) for row in rows])
    return rows, ids, (ids != PAD).long()


def test_padding_changes_nothing(sources):
    rows, ids, mask = sources
    model, targets = build(), torch.randint(3, 23, (3, 5))
    with torch.no_grad():
        together = model(ids, mask, targets).logits
        found = model(ids, decoder_input_ids=targets).logits
        wider = model(
            torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], 1),
            torch.cat([mask, torch.zeros(3, 4, dtype=torch.long)], 1), targets,
        ).logits  # fmt: skip
        for place, row in enumerate(rows):
            alone = model(torch.tensor([row]), decoder_input_ids=targets[place : place + 1]).logits[0]
            torch.testing.assert_close(together[place], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, together)
    torch.testing.assert_close(wider, together, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.05


def test_the_forward_is_what_the_paper_says(sources):
    """Luong et al. 2015, equations 5 to 8, by loops in float64 over torch's own LSTM cells."""
    rows, _, _ = sources
    model = build(decoder_layers=1, encoder_layers=1).double()
    decoder, scale, targets = model.decoder, 16**0.5, [START, 7, 8]
    with torch.no_grad():
        states = model.encoder(torch.tensor([rows[0]])).last_hidden_state[0]
        hidden, cell = (decoder.bridge.weight @ states.mean(0) + decoder.bridge.bias).chunk(2)
        hidden, logits = hidden.tanh(), []
        lstm = decoder.lstm
        for token in targets:
            row = decoder.embed_tokens.weight[token] * scale
            gates = lstm.weight_ih_l0 @ row + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden + lstm.bias_hh_l0
            i, f, g, o = gates.chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            scores = torch.stack([(decoder.attention.query.weight @ hidden) @ state for state in states])
            context = sum(weight * state for weight, state in zip(scores.softmax(0), states, strict=True))
            feature = (decoder.combine.weight @ torch.cat([context, hidden]) + decoder.combine.bias).tanh()
            logits.append(model.encoder.embed_tokens.weight @ feature)
        found = model(torch.tensor([rows[0]]), decoder_input_ids=torch.tensor([targets])).logits[0]
    torch.testing.assert_close(found, torch.stack(logits), rtol=0, atol=1e-10)


def test_greedy_generation_is_a_loop_of_full_passes(sources):
    rows, ids, mask = sources
    model = build()
    found = model.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False, num_beams=1)
    for place, row in enumerate(rows):
        tokens = [START]
        while len(tokens) < 8 and tokens[-1] != END:
            with torch.no_grad():
                logits = model(torch.tensor([row]), decoder_input_ids=torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert found[place].tolist()[: len(tokens)] == tokens


def best_sequence(model, row, length, penalty):
    """The sequence with the highest log-likelihood over its length to a power, out of all there are."""
    words = [word for word in range(model.config.vocab_size) if word != END]
    finished = [(*head, END) for n in range(length) for head in itertools.product(words, repeat=n)]
    candidates = [*finished, *itertools.product(words, repeat=length)]
    scores = {}
    for size in range(1, length + 1):
        some = torch.tensor([candidate for candidate in candidates if len(candidate) == size])
        inputs = torch.cat([torch.full((len(some), 1), START), some[:, :-1]], 1)
        with torch.no_grad():
            logits = model(torch.tensor([row] * len(some)), decoder_input_ids=inputs).logits.log_softmax(-1)
        totals = logits.gather(-1, some[..., None]).sum(dim=(1, 2)) / size**penalty
        scores.update(zip(map(tuple, some.tolist()), totals.tolist(), strict=True))
    return max(scores, key=scores.get), max(scores.values())


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_against_brute_force(penalty):
    for seed in range(4):
        model, row = build(seed, vocab_size=6), [3, 4, 5, 2]
        wide = model.generate(
            torch.tensor([row]), num_beams=25, max_new_tokens=3, do_sample=False, length_penalty=penalty,
            early_stopping="never", output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        expected, score = best_sequence(model, row, 3, penalty)
        found = [word for word in wide.sequences[0].tolist()[1:] if word != PAD]
        assert found == [word for word in expected if word != PAD]
        assert wide.sequences_scores[0].item() == pytest.approx(score, abs=1e-4)


def test_state_has_constant_size_and_follows_its_beam(sources):
    _, ids, mask = sources
    model, targets = build(), torch.randint(3, 23, (3, 5))
    with torch.no_grad():
        whole = model(ids, mask, targets)
        first = model(ids, mask, targets[:, :2])
        state = first.past_key_values
        state.reorder_cache(torch.tensor([2, 0, 0]))
        order = [2, 0, 0]
        rest = model(ids[order], mask[order], targets[order][:, 2:], past_key_values=state)
    torch.testing.assert_close(rest.logits, whole.logits[order][:, 2:], rtol=0, atol=1e-5)
    assert rest.past_key_values.get_seq_length() == 5
    assert rest.past_key_values.hidden.shape == state.hidden.shape == (2, 3, 20)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("slim", [False, True])
@pytest.mark.parametrize("target_size", [None, 17])
def test_saved_and_loaded(slim, target_size, tied, sources, tmp_path):
    _, ids, mask = sources
    model = build(decoder_vocab_size=target_size, tie_word_embeddings=tied)
    assert (model.decoder.embed_tokens.weight is model.encoder.embed_tokens.weight) == (target_size is None)
    rows = 23 + (target_size or 0) + (0 if tied else target_size or 23)
    inner = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert unique_parameters(model) == inner + 16 * rows
    if slim:
        make_slim(model, SlimTables(2, 4))
    targets = torch.randint(3, 17, (3, 5))
    fewfold.save(model, tmp_path / "m")
    for again in (AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m"), fewfold.load(tmp_path / "m")):
        assert type(again) is RecurrentTranslationModel
        with torch.no_grad():
            expected = model(ids, mask, targets).logits
            torch.testing.assert_close(again(ids, mask, targets).logits, expected, rtol=0, atol=0)
    assert expected.shape == (3, 5, target_size or 23)
    assert AutoConfig.from_pretrained(tmp_path / "m").model_type == "fewfold_recurrent_translation"
    found = model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=4)
    assert torch.equal(found, again.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=4))


def test_slim_tables_shrink_as_they_say():
    dense = build(vocab_size=200, decoder_vocab_size=120)
    slim = make_slim(copy.deepcopy(dense), SlimTables(10, 8))
    assert stored_numbers(dense) - stored_numbers(slim) == (200 - 20 + 120 - 12) * 16
    tables = [slim.encoder.embed_tokens.assembled_weight(), slim.decoder.embed_tokens.assembled_weight()]
    for table, words in zip(tables, (20, 12), strict=True):
        for part in table.detach().split(2, dim=1):
            assert len(part.unique(dim=0)) == words
        assert len(table.unique(dim=0)) == len(table)
    features = torch.randn(3, 16)
    torch.testing.assert_close(slim.lm_head(features), features @ tables[1].T, rtol=0, atol=1e-5)
    loss = slim(torch.tensor([[5, 2]]), labels=torch.tensor([[7, 2]])).loss
    loss.backward()
    assert all(p.grad is not None for p in slim.parameters() if p.requires_grad and p.numel())


def test_low_rank_takes_its_linears(sources):
    _, ids, mask = sources
    model, targets = build(), torch.randint(3, 23, (3, 5))
    expected = model(ids, mask, targets).logits
    fewfold.compress(model, LowRank(targets="decoder.combine", rank=16, weighting="none"))
    assert type(model.decoder.combine).__name__ == "LowRankLinear"
    torch.testing.assert_close(model(ids, mask, targets).logits, expected, rtol=0, atol=1e-4)


def test_a_dense_model_trains_through_labels(sources):
    _, ids, mask = sources
    model, labels = build(), torch.tensor([[5, 2, -100], [6, 7, 2], [8, 9, 2]])
    output = model(ids, mask, labels=labels)
    logits = model(ids, mask, torch.tensor([[START, 5, 2], [START, 6, 7], [START, 8, 9]])).logits.log_softmax(-1)
    real = labels != -100
    wanted = -logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0][real].mean()
    assert output.loss.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_what_it_refuses(sources):
    _, ids, mask = sources
    model = build()
    for bad in (mask.flip(1), torch.zeros_like(mask)):
        with pytest.raises(ValueError, match="padding on the right only"):
            model(ids, bad, torch.ones(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="input_ids or encoder_outputs"):
        model(decoder_input_ids=ids)
    with pytest.raises(ValueError, match="decoder_input_ids or labels"):
        model(ids)
    with pytest.raises(ValueError, match="even number"):
        RecurrentTranslationConfig(hidden_size=7)
    assert isinstance(model.generation_config, GenerationConfig)
