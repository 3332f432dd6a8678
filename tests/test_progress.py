import logging

import pytest

from bdm._core.progress import duration, progress

N = 100


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests turn."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def work(clock, caplog, *, each: float) -> list[str]:
    """Go through all steps, of ``each`` seconds; gives what was logged."""
    caplog.set_level(logging.INFO)
    for _ in progress(range(N), doing="training", total=N, unit="step"):
        clock[0] += each
    return caplog.messages


def test_log_has_the_time_left(clock, caplog):
    assert work(clock, caplog, each=5.0)[:2] == [
        "training: 4 of 100 steps done, 08:00 left",
        "training: 8 of 100 steps done, 07:40 left",
    ]


def test_short_work_shows_no_progress(clock, caplog):
    assert work(clock, caplog, each=0.1) == []


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
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (599.7, "10 min"),
        (7320, "2 h 2 min"),
    ],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
