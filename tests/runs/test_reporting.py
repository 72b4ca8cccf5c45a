"""How library code tells what it does: the logger, silence, a reporter of one's own."""

import ast
import logging
import threading

import pytest

from moecl_jax import reporting


def test_messages_are_logged_unless_a_reporter_is_put_in_place(caplog):
    caplog.set_level(logging.INFO, logger="moecl_jax")
    reporting.current().message("100% of it")
    assert caplog.record_tuples == [("moecl_jax", logging.INFO, "100% of it")]


def test_nothing_is_shown_where_logging_is_not_set_up(capfd):
    reporting.current().message("told")
    with reporting.current().task("spam", 2) as progress:
        progress.update(2)
    assert capfd.readouterr() == ("", "")


def test_progress_is_logged_seldom_and_at_the_end(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="moecl_jax")
    clock = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    with reporting.current().task("spam", 100, done=10) as progress:
        for _ in range(40):
            clock[0] += 1.0
            progress.update(2)
        progress.update(0, loss=0.5)
    assert caplog.messages == [
        "spam: 40 of 100 examples",
        "spam: 70 of 100 examples",
        "spam: 90 of 100 examples, loss 0.5000",
    ]


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
        with reporting.current().task("spam", 2) as progress:
            progress.update(2, loss=1.0)
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
