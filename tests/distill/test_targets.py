"""Targets of decoders, and sources that lose tokens."""

import numpy as np
from distill_models import make_tokenizer, sentences

from fewfold.distill.examples import Examples, read_examples
from fewfold.distill.targets import noisy
from fewfold.distill.tokens import tokenise


def test_a_decoder_reads_what_it_has_written():
    texts, written = ["a cat", "the big old dog runs"], ["under the old tree", "over"]
    tokenizer = make_tokenizer()
    examples = read_examples([{"source": a, "target": b} for a, b in zip(texts, written, strict=True)], False, (), True)
    batch = tokenise(examples, tokenizer, 32, start=7).batch([1, 0])
    wanted = [tokenizer(text)["input_ids"] for text in reversed(written)]
    assert batch["targets"].tolist() == [wanted[0] + [0] * (len(wanted[1]) - len(wanted[0])), wanted[1]]
    assert batch["decoder_attention_mask"].sum(1).tolist() == [len(ids) for ids in wanted]
    for row, ids in enumerate(wanted):
        assert batch["decoder_input_ids"][row, : len(ids)].tolist() == [7, *ids[:-1]]
    assert batch["input_ids"][0].tolist() == tokenizer(texts[1])["input_ids"]
    padded = tokenise(examples, tokenizer, 32, start=7).batch([0], lambda longest: 20)
    assert padded["input_ids"].shape == padded["targets"].shape == padded["decoder_input_ids"].shape == (1, 20)


def test_parts_and_fingerprints_know_the_targets():
    pairs = [{"source": a, "target": b} for a, b in zip(sentences(6), sentences(6, 1), strict=True)]
    tokens = tokenise(read_examples(pairs, False, (), True), make_tokenizer(), 32, start=2)
    part = tokens.part([4, 1])
    for place, own in ((0, 4), (1, 1)):
        assert part.batch([place])["targets"].tolist() == tokens.batch([own])["targets"].tolist()
    assert part.sizes.tolist() == tokens.sizes[[4, 1]].tolist()
    assert tokens.sizes[0] == len(tokens.batch([0])["input_ids"][0]) + len(tokens.batch([0])["targets"][0])
    pairs[3]["target"] += " cat"
    other = tokenise(read_examples(pairs, False, (), True), make_tokenizer(), 32, start=2)
    assert other.fingerprint() != tokens.fingerprint()


def test_noise_leaves_out_and_changes_nothing_else():
    texts = sentences(400)
    tokenizer = make_tokenizer()
    plain = tokenise(Examples(texts), tokenizer, 32)
    tokens = tokenise(Examples(texts), tokenizer, 32, start=2, noise=0.6, seed=4)
    assert tokens.targets is not None
    assert tokens.targets.ids.tolist() == plain.ids.tolist()
    shares = []
    for place in range(len(texts)):
        whole = plain.ids[plain.offsets[place] : plain.offsets[place + 1]].tolist()
        left = tokens.ids[tokens.offsets[place] : tokens.offsets[place + 1]].tolist()
        rest = iter(whole)
        assert all(token in rest for token in left)  # in order
        assert (left[0], left[-1]) == (2, 3)  # special tokens stay
        shares.append(1 - (len(left) - 2) / (len(whole) - 2))
    assert 0.27 < np.mean(shares) < 0.33  # uniform from 0 to 0.6
    assert min(shares) == 0
    assert max(shares) > 0.6
    again = tokenise(Examples(texts), tokenizer, 32, start=2, noise=0.6, seed=4)
    assert again.fingerprint() == tokens.fingerprint()
    assert tokenise(Examples(texts), tokenizer, 32, start=2).ids.tolist() == plain.ids.tolist()


def test_a_text_keeps_a_token():
    ids, offsets = noisy(np.arange(10), np.array([0, 1, 4, 10]), np.array([99]), 1 - 1e-9, seed=0)
    assert (np.diff(offsets) >= 1).all()
    assert ids[0] == 0
    assert len(ids) == offsets[-1] < 10
