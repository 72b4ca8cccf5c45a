"""Files that are written whole or not at all, and errors that name them."""

import json
from pathlib import Path

import pytest

from moecl_jax.runs.log import MetricsLog
from moecl_jax.serving.files import Files, _answer_rows
from moecl_jax.writing import named, whole_file

FULL = Path("/dev/full")
on_linux = pytest.mark.skipif(not FULL.is_char_device(), reason="needs /dev/full")


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "file"
    file.write_text("before")
    with whole_file(file) as stream:
        stream.write(b"after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_what_was_there(tmp_path):
    file = tmp_path / "file"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(file) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


@on_linux
def test_a_write_that_fails_names_its_file():
    message = "No space left on device: '/dev/full'"
    with pytest.raises(OSError, match=message), named(FULL), FULL.open("wb", 0) as full:
        full.write(b"x")


def test_an_error_that_has_a_name_keeps_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), named(FULL):
        (tmp_path / "absent").read_bytes()


@on_linux
def test_answers_without_room_name_the_output(tmp_path):
    class Reader:
        def read(self, records):
            return [({}, "prompt") for _ in records]

    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": "w1"}) + "\n")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        _answer_rows(Reader(), lambda prompts: [{} for _ in prompts], Files(source, FULL), ())


@on_linux
def test_events_without_room_are_one_note_and_do_not_make_the_log_wait(
    tmp_path, monkeypatch, caplog
):
    """More events than the queue of a writer that has died would take."""
    caplog.set_level("INFO", logger="moecl_jax")
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _: FULL.open("wb"))
    with MetricsLog(tmp_path, trackers=("tensorboard",)) as log:
        for step in range(1000):
            log.write({"step": step, "loss": 1.0})
    [note] = caplog.messages
    assert "'tensorboard' failed (OSError" in note
    assert "No space left on device" in note and "tfevents" in note
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1000
