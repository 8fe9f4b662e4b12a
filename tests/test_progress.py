import pytest

from fewfold.progress import step, track


def test_silent_without_a_terminal(capfd, monkeypatch):
    monkeypatch.delenv("FEWFOLD_PROGRESS", raising=False)
    with step("thinking"):
        assert list(track([3, 1], "counting")) == [3, 1]
    assert capfd.readouterr() == ("", "")


def test_shown_on_stderr_when_asked_for_also_nested(capfd, monkeypatch):
    monkeypatch.setenv("FEWFOLD_PROGRESS", "1")
    with step("thinking"):
        items = list(track((n for n in range(3)), "counting", total=3))
        assert list(track("ab", "spelling")) == ["a", "b"]
    assert items == [0, 1, 2]
    out, err = capfd.readouterr()
    assert out == ""
    assert "thinking" in err


def test_errors_and_early_ends_leave_no_display_behind(monkeypatch):
    monkeypatch.setenv("FEWFOLD_PROGRESS", "1")
    for _ in track(range(5), "left early"):
        break
    with pytest.raises(KeyError), step("fails"):
        raise KeyError
    assert list(track(range(2), "again")) == [0, 1]
