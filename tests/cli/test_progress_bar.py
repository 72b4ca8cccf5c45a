"""What the command shows of messages and progress, on a terminal and off it."""

import io
import sys

import pytest

from moecl_jax.cli import progress
from moecl_jax.cli.progress import ProgressBar, TerminalReporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal_shows_speed_time_left_and_loss():
    stream = Terminal()
    with ProgressBar("spam", total=40, stream=stream) as bar:
        bar.update(10, loss=0.125)
        bar.update(10)
    last = stream.getvalue().rstrip("\n").rsplit("\r", 1)[1]
    assert last.startswith("spam:  50%|")
    assert "20/40" in last
    assert "examples/s" in last
    assert "loss=0.1250" in last


def test_off_a_terminal_lines_come_seldom(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    stream = io.StringIO()
    clock = FakeClock()
    monkeypatch.setattr("tqdm.std.time", clock)
    with ProgressBar("spam", total=1000, stream=stream) as bar:
        for _ in range(100):
            clock.now += 0.01
            bar.update(10, loss=0.5)
    lines = stream.getvalue().splitlines()
    assert 10 <= len(lines) <= 21
    assert all(line.startswith("spam:") and "\r" not in line for line in lines)
    assert lines[-1].startswith("spam: 100%|1000/1000 [00:01<00:00, 1000")


def test_off_a_terminal_a_short_task_prints_nothing():
    stream = io.StringIO()
    with ProgressBar("spam", total=10, stream=stream) as bar:
        bar.update(10, loss=0.5)
    assert stream.getvalue() == ""


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_messages_and_bars_go_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = TerminalReporter()
    reporter.message("evaluating")
    assert capsys.readouterr() == ("", "evaluating\n")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with reporter.task("spam", 40, 10) as bar:
        bar.update(10, loss=0.5)
    assert sys.stderr.getvalue().rpartition("\r")[2].startswith("spam:  50%|")
