"""Windows, trained vocabularies, masks, and the sequence of draws."""

import gzip
import lzma

import pytest
import torch

from fewfold import TaskError
from fewfold.pretrain.drawn import Drawn
from fewfold.pretrain.masking import IGNORED, Masking
from fewfold.pretrain.settings import PretrainSettings
from fewfold.pretrain.text import read_texts, train_tokenizer, windows

TEXTS = [f"the {a} {b} saw Zürich's {c} twice" for a in ("old", "new") for b in ("cat", "dog") for c in ("gate", "sea")]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_windows_hold_the_text(kind):
    tokenizer = train_tokenizer(TEXTS, 300, kind)
    rows = windows(tokenizer, TEXTS, 10)
    inner = rows[:, 1:-1].flatten().tolist()
    expected = [
        i for text in TEXTS for i in [*tokenizer.encode(text, add_special_tokens=False), tokenizer.sep_token_id]
    ]
    assert inner == expected[: len(inner)]
    assert len(expected) - len(inner) < 8
    assert set(rows[:, 0].tolist()) == {tokenizer.cls_token_id}
    assert set(rows[:, -1].tolist()) == {tokenizer.sep_token_id}
    assert tokenizer.unk_token_id not in inner
    assert tokenizer("a", "b")["input_ids"].count(tokenizer.sep_token_id) == 2
    with pytest.raises(TaskError, match="too few for a window of 999"):
        windows(tokenizer, TEXTS, 999)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_text_gives_the_same_vocabulary(kind):
    first, *others = [train_tokenizer(TEXTS, 300, kind).get_vocab() for _ in range(6)]
    assert others == [first] * 5


def test_word_pieces_are_no_special_tokens():
    tokenizer = train_tokenizer([*TEXTS, "ab#c"], 300)
    assert sorted(tokenizer.all_special_tokens) == sorted(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    assert [tokenizer.convert_tokens_to_ids(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
        *range(5)
    ]
    assert tokenizer.tokenize("the cat ##a [MASK]") == ["the", "cat", "#", "#", "a", "[MASK]"]
    assert tokenizer.decode(tokenizer("old cat twice").input_ids, skip_special_tokens=True) == "old cat twice"
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\n"))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(b"four"))
    assert read_texts([tmp_path / name for name in ("a.txt", "b.txt.gz", "c.txt.xz")]) == [
        "one",
        "two",
        "three",
        "four",
    ]
    with pytest.raises(TaskError, match="no such file"):
        read_texts([tmp_path / "d.txt"])
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TaskError, match="no UTF-8 text"):
        read_texts([tmp_path / "e.txt"])


def test_shares_of_the_mask():
    masking = Masking(mask=4, vocabulary=1000, special=(0, 1, 2, 3, 4))
    row = torch.cat([torch.tensor([2]), torch.arange(5, 205), torch.tensor([3])])
    seen = {"mask": 0, "same": 0, "other": 0}
    for number in range(300):
        inputs, labels = masking(row, torch.Generator().manual_seed(number))
        chosen = labels != IGNORED
        assert int(chosen.sum()) == 30
        assert not chosen[0]
        assert not chosen[-1]
        assert torch.equal(labels[chosen], row[chosen])
        assert torch.equal(inputs[~chosen], row[~chosen])
        masked, same = inputs[chosen] == 4, inputs[chosen] == row[chosen]
        for name, count in (("mask", masked.sum()), ("same", same.sum()), ("other", (~masked & ~same).sum())):
            seen[name] += int(count)
    total = sum(seen.values())
    assert [round(seen[name] / total, 1) for name in ("mask", "same", "other")] == [0.8, 0.1, 0.1]
    limited = Masking(mask=4, vocabulary=1000, special=(0,), most=20)
    assert int((limited(row, torch.Generator())[1] != IGNORED).sum()) == 20


def test_draws():
    drawn = Drawn(5, lambda place, generator: (place, float(torch.rand((), generator=generator))), 20, seed=3)
    items = [drawn[number] for number in range(20)]
    for turn in range(4):
        assert sorted(place for place, _ in items[5 * turn : 5 * turn + 5]) == [0, 1, 2, 3, 4]
    assert len({value for _, value in items}) == 20
    assert len({tuple(place for place, _ in items[5 * turn : 5 * turn + 5]) for turn in range(4)}) > 1
    again = Drawn(5, drawn.make, 20, seed=3)
    assert [again[number] for number in (13, 2, 19)] == [items[number] for number in (13, 2, 19)]
    assert Drawn(5, drawn.make, 20, seed=4)[0] != items[0]


def test_batches_split_evenly():
    assert PretrainSettings(batch=4000, micro_batch=250).accumulated(1) == (250, 16)
    assert PretrainSettings(batch=4000, micro_batch=250).accumulated(4) == (250, 4)
    assert PretrainSettings(batch=32).accumulated(4) == (8, 1)
    with pytest.raises(TaskError, match="no multiple of micro_batch=3"):
        PretrainSettings(batch=32, micro_batch=3).accumulated(1)
    with pytest.raises(TaskError, match="learning_rate=-1"):
        PretrainSettings.make(learning_rate=-1)
