"""What the command shows of messages and progress, on a terminal and off it."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios

import pytest

from moecl_jax import reporting
from moecl_jax.cli import progress
from moecl_jax.cli.progress import TerminalReporter, terminal_reporter
from moecl_jax.progress import TRAIN, cells


@pytest.fixture
def terminal(monkeypatch):
    """Makes a pseudo-terminal of 60 columns standard error; then gives what was written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    stream = os.fdopen(theirs, "w")
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0.0)
    os.set_blocking(ours, False)

    def written() -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        found = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                found += os.read(ours, 2**16)
        return found.decode()

    yield written
    stream.close()
    os.close(ours)


def screen_of(written: str) -> list[str]:
    """The lines that a terminal shows, which knows carriage returns and line feeds alone."""
    lines, column = [""], 0
    for character in written:
        if character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
        else:
            lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_terminal_shows_one_line_that_fits_and_wipes_it_away(terminal):
    terminal()
    reporter = terminal_reporter()
    assert isinstance(reporter, TerminalReporter)
    with reporting.use(reporter):
        with (
            reporting.stage("task 2/4 a_task_with_a_long_name", "rest"),
            reporting.stage("epoch 2/3", TRAIN, 1000) as stage,
        ):
            stage.losses = {"loss": 0.5123, "adversarial": 1.386}
            reporting.advance(450)
            [line] = screen_of(terminal())
            assert line.startswith("2/4 a_task_")
            assert "epoch 2/3, loss 0.512 adv 1.39" in line
            assert line.endswith("s left")
            assert cells(line) < 60
        reporter.message("done")
    assert screen_of(terminal())[-2:] == ["done", ""]


def test_a_message_stands_above_the_line(terminal):
    terminal()
    reporter = TerminalReporter()
    with reporting.use(reporter), reporting.stage("epoch 2/3", TRAIN, 10):
        reporter.message("note: read this")
        assert screen_of(terminal()) == ["note: read this", "epoch 2/3 0/10"]


def test_the_line_is_drawn_at_most_five_times_a_second(terminal, monkeypatch):
    terminal()
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0.2)
    with reporting.use(TerminalReporter()), reporting.stage("spam", TRAIN, 10**6):
        for _ in range(1000):
            reporting.advance(1)
    assert terminal().count("spam") < 10


def test_off_a_terminal_there_are_lines_without_carriage_returns(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(reporting, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(reporting, "_LINE_SHARE", 0.0)
    with reporting.use(terminal_reporter()):
        reporting.current().message("reading")
        with reporting.stage("task 1/1 spam", "rest"), reporting.stage("epoch 1/1", TRAIN, 4):
            reporting.advance(2)
    written = sys.stderr.getvalue()
    assert "\r" not in written
    lines = written.splitlines()
    assert lines[0] == "reading"
    assert lines[1] == "[0s] task 1/1 spam"
    assert lines[-1].startswith("[0s] task 1/1 spam, epoch 1/1 2/4, ")


def test_off_a_terminal_a_short_task_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with reporting.use(terminal_reporter()), reporting.stage("spam", TRAIN, 10):
        reporting.advance(10)
    assert sys.stderr.getvalue() == ""
