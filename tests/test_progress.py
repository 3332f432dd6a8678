import logging
import time

import pytest

from bdm._core.progress import Activity, duration, progress

N = 100


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests turn."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Activity, "item", float("-inf"))
    return now


def work(clock, caplog, *, each: float, first: float = 0.0) -> list[str]:
    """Go through all steps, of ``each`` seconds, and the first of some more; gives what was logged."""
    caplog.set_level(logging.INFO)
    clock[0] += 1000  # before the first step
    for step in progress(range(N), doing="training", total=N, unit="step"):
        clock[0] += each + (first if step == 0 else 0)
    return caplog.messages


def test_time_left_is_estimated_and_seldom_printed(clock, caplog):
    assert work(clock, caplog, each=3.0) == [
        "training: 5 of 100 steps done, about 4 min 45 s left",
        "training: 9 of 100 steps done, about 4 min 33 s left",
        "training: 17 of 100 steps done, about 4 min 9 s left",
        "training: 33 of 100 steps done, about 3 min 21 s left",
        "training: 65 of 100 steps done, about 1 min 45 s left",
    ]


def test_slow_first_step_is_left_out(clock, caplog):
    assert work(clock, caplog, each=3.0, first=600.0)[0] == "training: 5 of 100 steps done, about 4 min 45 s left"


def test_short_work_shows_no_progress(clock, caplog):
    assert work(clock, caplog, each=0.1) == []


def test_short_tasks_one_after_the_other_are_not_silent(clock, caplog):
    caplog.set_level(logging.INFO)
    for doing in ("dividing", "fitting", "drawing"):
        for _ in progress(range(3), doing=doing, total=3, unit="step"):
            clock[0] += 4
    assert caplog.messages == ["fitting: 2 of 3 steps done", "drawing: 2 of 3 steps done"]


def test_nothing_is_printed_unless_requested(clock, caplog, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    caplog.set_level(logging.WARNING, logger="bdm")
    done = []
    for step in progress(range(N), doing="training", total=N, unit="step"):
        clock[0] += 3
        done.append(step)
    assert done == list(range(N))
    assert caplog.messages == []
    assert capsys.readouterr().err == ""


def test_terminal_shows_a_bar(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress(range(3), doing="training", total=3, unit="step")) == [0, 1, 2]
    assert "training: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (59.7, "1 min 0 s"),
        (599, "9 min 59 s"),
        (599.7, "10 min"),
        (3599, "1 h 0 min"),
        (7320, "2 h 2 min"),
    ],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
