"""How library code tells what it does: the logger, silence, a reporter of one's own."""

import ast
import logging
import threading

import pytest

from moecl_jax import reporting
from moecl_jax.progress import EVALUATE, TRAIN


def test_messages_are_logged_unless_a_reporter_is_put_in_place(caplog):
    caplog.set_level(logging.INFO, logger="moecl_jax")
    reporting.current().message("100% of it")
    assert caplog.record_tuples == [("moecl_jax", logging.INFO, "100% of it")]


def test_nothing_is_shown_where_logging_is_not_set_up(capfd):
    reporting.current().message("told")
    with reporting.stage("compiling"), reporting.stage("spam", TRAIN, 2):
        reporting.advance(2)
    assert capfd.readouterr() == ("", "")


def test_progress_is_logged_every_quarter_of_a_minute_with_the_time_that_has_passed(
    caplog, monkeypatch
):
    caplog.set_level(logging.INFO, logger="moecl_jax")
    clock = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    reporter = reporting.LoggingReporter()
    with reporting.use(reporter), reporting.stage("spam", TRAIN, 100, done=10) as stage:
        for _ in range(40):
            clock[0] += 1.0
            reporting.advance(2)
            stage.losses = {"loss": 0.5}
    assert caplog.messages == [
        "[15s] spam 40/100, loss 0.5, 2 examples/s, 30s left",
        "[30s] spam 70/100, loss 0.5, 2 examples/s, 15s left",
    ]


def test_a_long_run_logs_seldom(monkeypatch):
    clock, lines = [0.0], []
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    reporter = reporting.LineReporter(lines.append)
    with reporting.use(reporter), reporting.stage("spam", TRAIN, 10**6):
        for _ in range(7 * 24 * 60):
            clock[0] += 60.0
            reporting.advance(1)
    assert 300 < len(lines) < 900  # a week
    assert lines[-1].startswith("[7d00h] spam 10080/1000000")


def test_a_compilation_is_told_before_it_begins():
    lines = []
    with reporting.use(reporting.LineReporter(lines.append)):
        with reporting.stage("evaluating spam", EVALUATE, 2):
            assert lines == []
        with reporting.stage("compiling the training step"):
            assert lines == ["[0s] compiling the training step"]


def test_stages_are_one_inside_another_and_end_with_the_outermost():
    shown = []

    class Own(reporting.SilentReporter):
        def show(self, progress, *, now=False):
            shown.append((progress.line(), now))

        def ended(self):
            shown.append("ended")

    with reporting.use(Own()):
        with pytest.raises(KeyError), reporting.stage("task 1/2 spam", "rest"):
            with reporting.stage("epoch 1/1", TRAIN, 4) as stage:
                stage.label = "epoch 1/1 again"
                reporting.advance(2)
            raise KeyError
        reporting.advance(1)  # of nothing
        assert shown[-1] == "ended"
        assert [line.partition(", ")[0] for line, _ in shown[:-1]] == ["task 1/2 spam"] * 3
        assert "epoch 1/1 again 2/4" in shown[2][0]
        with reporting.stage("other", EVALUATE, 1):
            assert shown[-1] == ("other 0/1", False)


def test_a_reporter_holds_within_its_context_and_not_in_other_threads():
    default, own, silent = reporting.current(), object(), reporting.SilentReporter()
    seen = []
    with reporting.use(own):
        assert reporting.current() is own
        with reporting.use(silent):
            assert reporting.current() is silent
        assert reporting.current() is own
        thread = threading.Thread(target=lambda: seen.append(reporting.current()))
        thread.start()
        thread.join()
    assert seen == [default]
    with pytest.raises(KeyError), reporting.use(own):
        raise KeyError
    assert reporting.current() is default


def test_the_silent_reporter_says_nothing(capfd, caplog):
    caplog.set_level(logging.INFO)
    with reporting.use(reporting.SilentReporter()):
        reporting.current().message("told")
        with reporting.stage("spam", TRAIN, 2):
            reporting.advance(2)
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_no_room_below_the_command_prints(repository):
    package, printing = repository / "moecl_jax", {"__main__.py", "bench", "cli", "report"}
    files = [p for p in package.rglob("*.py") if p.relative_to(package).parts[0] not in printing]
    assert len(files) > 50
    calls = [
        f"{file}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert calls == []
