"""Windows against a naive loop, and the tokens of answers."""

import pytest

from fewfold import TaskError
from fewfold.tasks.squad import Question
from fewfold.tasks.windows import MAX_QUESTION, answer_tokens, windows

CONTEXT = "he lives in rome . she lives in oslo . the film was great in paris , lima and so on . he was in bcd ."


def question(answer="oslo", context=CONTEXT, text="where she lives ?"):
    return Question("q", text, context, (answer,), (context.index(answer),))


def naive(tokenizer, asked, max_length, stride):
    """Windows by hand: [CLS] question [SEP] piece [SEP], each piece `stride` tokens before the last one's end."""
    first = tokenizer(asked.question, add_special_tokens=False)["input_ids"]
    whole = tokenizer(asked.context, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = whole["input_ids"], whole["offset_mapping"]
    room = max_length - len(first) - 3
    found, start = [], 0
    while True:
        piece = ids[start : start + room]
        head = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id]
        tokens = [*head, *piece, tokenizer.sep_token_id]
        types = [0] * len(head) + [1] * (len(piece) + 1)
        found.append((tokens, types, [None] * len(head) + list(spans[start : start + room]) + [None], start))
        if start + room >= len(ids):
            return found, len(head), spans
        start += room - stride


@pytest.mark.parametrize(("max_length", "stride"), [(14, 4), (13, 0), (20, 7), (18, 10), (64, 16)])
@pytest.mark.parametrize("answer", ["oslo", "rome .", "bcd", "great in paris , lima and"])
def test_windows_and_answers_against_a_loop(tokenizer, max_length, stride, answer):
    asked = question(answer)
    found = windows(tokenizer, [question("rome"), asked], max_length, stride, with_answers=True)
    found = [window for window in found if window.question == 1]
    expected, lead, spans = naive(tokenizer, asked, max_length, stride)
    assert [(w.inputs["input_ids"], w.inputs["token_type_ids"], w.offsets) for w in found] == [e[:3] for e in expected]
    first, last = asked.starts[0], asked.starts[0] + len(answer)
    tokens = [i for i, (a, b) in enumerate(spans) if a >= first and b <= last]
    for window, (ids, _, _, start) in zip(found, expected, strict=True):
        places = [lead + token - start for token in tokens]
        whole = places[0] >= lead and places[-1] < len(ids) - 1
        assert (window.start, window.end) == ((places[0], places[-1]) if whole else (0, 0))
    held = [window for window in found if window.end]
    if stride >= len(tokens) or len(found) == 1:
        assert held
    for window in held:
        assert CONTEXT[window.offsets[window.start][0] : window.offsets[window.end][1]] == answer


def test_an_answer_inside_of_a_token_takes_the_whole_token():
    asked = Question("q", "?", "abcdef gh", ("cd",), (2,))
    assert answer_tokens([None, (0, 6), (7, 9), None], asked) == (1, 1)
    assert answer_tokens([None, (7, 9), None], asked) == (0, 0)


def test_long_questions_are_cut(tokenizer):
    asked = question(text="where " * 100)
    (window,) = windows(tokenizer, [asked], 128, 16)
    assert window.inputs["input_ids"].count(tokenizer.convert_tokens_to_ids("where")) == MAX_QUESTION


def test_lengths_and_tokenizers_that_cannot_do(tokenizer):
    with pytest.raises(TaskError, match=r"question q takes 7 tokens and leaves 5 .* more than the stride"):
        windows(tokenizer, [question()], 12, 5)
    with pytest.raises(TaskError, match="fast tokenizer"):
        windows(object(), [question()])
