"""A service that looks for newer checkpoints by itself."""

import logging
import threading

import pytest
from labellers import FakeLabeller

from moecl_jax.errors import UserError
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.service.engine import Engine
from moecl_jax.service.reload import Reloader
from moecl_jax.service.watch import Watcher, finished_mark


class Places:
    """A mark that is set by hand, and what is opened when it has changed."""

    def __init__(self):
        self.mark, self.newest, self.opened = 1, FakeLabeller("second"), 0
        self.engine = Engine(FakeLabeller("first"))
        accuracies = {"mail": 0.9, "news": 0.9}
        self.reloader = Reloader(self.engine, self.open, lambda _: accuracies)
        self.watcher = Watcher(self.engine, self.reloader, lambda: self.mark, 1)

    def open(self):
        self.opened += 1
        if isinstance(self.newest, Exception):
            raise self.newest
        return self.newest


@pytest.fixture
def places():
    return Places()


def test_a_change_is_answered_with_once(places, caplog):
    caplog.set_level(logging.INFO)
    places.watcher.look()
    assert places.opened == 0 and places.engine.labeller.checkpoint == "first"
    places.mark = 2
    places.watcher.look()
    places.watcher.look()
    assert places.opened == 1 and places.engine.labeller.checkpoint == "second"
    assert "answering with checkpoint second now" in caplog.text


@pytest.mark.parametrize(
    ("newest", "said"),
    [
        (UserError("the checkpoint is damaged"), "not answered with: nothing was changed: the che"),
        (ValueError("a bug"), "could not be opened"),
        (FakeLabeller("third", tasks=("news",)), "lacks the tasks mail"),
    ],
)
def test_what_cannot_be_answered_with_is_logged_and_left_until_the_next_change(
    places, caplog, newest, said
):
    places.newest, places.mark = newest, 2
    places.watcher.look()
    places.watcher.look()
    assert places.opened == 1 and places.engine.labeller.checkpoint == "first"
    assert said in caplog.text
    places.newest, places.mark = FakeLabeller("fourth"), 3
    places.watcher.look()
    assert places.engine.labeller.checkpoint == "fourth"


def test_a_workdir_that_cannot_be_looked_at_does_not_end_the_watch(places, caplog):
    def gone():
        raise PermissionError("no such right")

    places.watcher._mark = gone
    places.watcher.look()
    assert "could not be opened" in caplog.text
    places.watcher._mark = lambda: 2
    places.watcher.look()
    assert places.engine.labeller.checkpoint == "second"


def test_the_watch_looks_by_itself_and_ends_with_the_engine(places):
    changed = threading.Event()
    switch = places.engine.switch
    places.engine.switch = lambda labeller: (switch(labeller), changed.set())
    places.watcher.start(0.01)
    places.mark = 2
    assert changed.wait(30)
    places.engine.close()
    watching = [thread for thread in threading.enumerate() if thread.name == "moecl-watch"]
    for thread in watching:
        thread.join(30)
    assert not any(thread.is_alive() for thread in watching)


def test_a_finished_task_changes_the_mark(tmp_path):
    marks = [finished_mark(tmp_path)]
    (tmp_path / "checkpoints").mkdir()
    for names in (["two"], ["two", "five"], ["two", "five"]):
        TaskCheckpoints(tmp_path, names).note_finished(names)
        marks.append(finished_mark(tmp_path))
    assert marks[0] is None and marks[-1] == finished_mark(tmp_path)
    assert len(set(marks)) == 4
    (tmp_path / "change.json").touch()  # a rollback that is not at its end
    assert finished_mark(tmp_path) not in marks
    (tmp_path / "change.json").unlink()
    assert finished_mark(tmp_path) == marks[-1]
