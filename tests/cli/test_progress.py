"""Progress goes to stderr, and only when there is something to wait for."""

from __future__ import annotations

import io

import pytest

from escc.cli import progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_a_log_stays_empty_for_short_work(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bars() as show:
        show("calibrate", 0, 10)
        clock.now += progress.LOGGED_EVERY - 0.1
        show("calibrate", 9, 10)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bars() as show:
        for done in range(5):
            show("calibrate", done, 10)
            clock.now += 6
        show("simulate", 0, 0)
    assert capsys.readouterr() == ("", "calibrate 2/10\ncalibrate 4/10\n")


@pytest.mark.usefixtures("clock")
def test_a_terminal_shows_no_bar_for_short_work(terminal: Terminal) -> None:
    with progress.progress_bars(terminal) as show:
        show("calibrate", 5, 10)
    assert terminal.getvalue() == ""


def test_a_terminal_shows_a_bar_after_a_second(
    clock: Clock, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bars(terminal) as show:
        show("calibrate", 1, 10)
        clock.now += progress.APPEARS_AFTER
        show("calibrate", 5, 10)
        show("simulate", 2, 0)
    assert "calibrate" in terminal.getvalue()
    assert "5/10" in terminal.getvalue()
    assert "simulate" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_the_bar_goes_away_when_the_work_fails(clock: Clock, terminal: Terminal) -> None:
    def work() -> None:
        with progress.progress_bars(terminal) as show:
            clock.now += 2
            show("calibrate", 5, 10)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    show_cursor = "\x1b[?25h"
    assert show_cursor in terminal.getvalue()
