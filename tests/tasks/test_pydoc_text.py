import pytest

from fewfold.tasks.pydoc_text import _paragraphs, _sentences, calibration_and_held_out, pydoc_sentences


def test_enough_clean_and_distinct_sentences():
    sentences = pydoc_sentences()
    assert len(sentences) > 800
    assert len({s.casefold() for s in sentences}) == len(sentences)
    assert all(5 <= len(s.split()) <= 60 for s in sentences)
    assert all(s[0].isupper() and s[-1] in ".!?" for s in sentences)
    assert not any(mark in s for s in sentences for mark in ("::=", ">>>", "__", "**", "``", "\n", "  "))
    assert sentences == pydoc_sentences()


def test_prose_is_kept_and_code_is_not():
    text = (
        'The title\n*********\n\nThe *first* sentence has a "word" in it.  The second one\n'
        "runs over two lines.\n\n"
        "   >>> code(1)\n   2\n\n   stmt ::= expression here and here.\n\n"
        "* A bullet is a sentence, e.g. Like this\n  one here.\n\n"
        "Changed in version 3.8: This part of it is prose too.\n\nToo short.\n\n"
        "   for x in range(10): pass\n"
    )
    found = [sentence for paragraph in _paragraphs(text) for sentence in _sentences(paragraph)]
    assert found == [
        "The first sentence has a word in it.",
        "The second one runs over two lines.",
        "A bullet is a sentence, e.g. Like this one here.",
        "This part of it is prose too.",
    ]


def test_split_shares_nothing_and_is_stable():
    sentences = pydoc_sentences()
    kept, held = calibration_and_held_out(sentences, held_out=0.25)
    assert not set(kept) & set(held)
    assert sorted(kept + held) == sorted(sentences)
    assert 0.2 < len(held) / len(sentences) < 0.3
    assert [s for s in sentences if s in set(kept)] == kept
    fewer, _ = calibration_and_held_out(sentences[100:], held_out=0.25)
    assert set(fewer) <= set(kept)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration_and_held_out(sentences, held_out=0)
