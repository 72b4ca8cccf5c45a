"""The metrics log, and the bar on and off a terminal."""

import io
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from moecl_jax.errors import UserError
from moecl_jax.runs import progress


def lines_of(workdir: Path) -> list[dict[str, object]]:
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_steps(workdir: Path, steps: range, **arguments: object) -> None:
    with progress.MetricsLog(workdir, tensorboard=False, **arguments) as log:
        for step in steps:
            log.write({"step": step, "loss": step / 2})


def test_a_line_has_exactly_the_given_keys_in_order(tmp_path):
    with progress.MetricsLog(tmp_path / "new" / "run", tensorboard=False) as log:
        log.write({"step": 3, "task": "spam", "epoch": 1, "loss": 0.25})
        # Already readable while the run goes on.
        assert log.path.read_text() == '{"step": 3, "task": "spam", "epoch": 1, "loss": 0.25}\n'


def test_scalars_become_plain_and_floats_that_are_not_finite_null(tmp_path):
    with progress.MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(
            {
                "step": np.int64(1),
                "jax": jnp.float32(0.5),
                "numpy": np.float32(0.25),
                "nan": math.nan,
                "jax_infinite": jnp.float32(jnp.inf),
                "none": None,
            }
        )
    assert lines_of(tmp_path) == [
        {"step": 1, "jax": 0.5, "numpy": 0.25, "nan": None, "jax_infinite": None, "none": None}
    ]


def test_unknown_entries_of_nested_content_become_null():
    content = {"matrix": [[math.nan, 0.5]], "names": ("a",), "seconds": np.float64(1.5)}
    assert progress.plain(content) == {"matrix": [[None, 0.5]], "names": ["a"], "seconds": 1.5}


def test_a_line_needs_a_step(tmp_path):
    with progress.MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(KeyError):
        log.write({"loss": 1.0})


def test_a_resumed_log_is_the_uninterrupted_one(tmp_path):
    write_steps(tmp_path / "whole", range(1, 8))
    write_steps(tmp_path / "resumed", range(1, 6))
    write_steps(tmp_path / "resumed", range(4, 8), resumed_step=3)
    assert lines_of(tmp_path / "resumed") == lines_of(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["metrics.jsonl"]


def test_starting_anew_drops_all_lines(tmp_path):
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, range(1, 3), resumed_step=0)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b'{"step": 3}', b"\xc3"])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    write_steps(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    write_steps(tmp_path, range(3, 5))
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"step": null}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        progress.MetricsLog(tmp_path, tensorboard=False)


def test_tensorboard_gets_the_finite_numbers_and_purges_what_is_written_again(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    def events() -> list[Event]:
        found = []
        for path in sorted((tmp_path / "tensorboard").iterdir()):
            data = path.read_bytes()
            while data:
                # A record: length (8 bytes), checksum (4), content, checksum (4).
                length = int.from_bytes(data[:8], "little")
                found.append(Event.FromString(data[12 : 12 + length]))
                data = data[16 + length :]
        return found

    with progress.MetricsLog(tmp_path, resumed_step=4) as log:
        log.write({"step": 5, "task": "spam", "loss": 0.5, "loss_adversarial": math.nan})
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events()
        for value in event.summary.value
    ]
    assert scalars == [(5, "train/loss", 0.5)]
    purged = [event.step for event in events() if event.session_log.status == SessionLog.START]
    assert purged == [5]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal_shows_speed_time_left_and_loss():
    stream = Terminal()
    with progress.Progress("spam", total=40, stream=stream) as bar:
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
    with progress.Progress("spam", total=1000, stream=stream) as bar:
        for _ in range(100):
            clock.now += 0.01
            bar.update(10, loss=0.5)
    lines = stream.getvalue().splitlines()
    assert 10 <= len(lines) <= 21
    assert all(line.startswith("spam:") and "\r" not in line for line in lines)
    assert lines[-1].startswith("spam: 100%|1000/1000 [00:01<00:00, 1000")


def test_off_a_terminal_a_short_task_prints_nothing():
    stream = io.StringIO()
    with progress.Progress("spam", total=10, stream=stream) as bar:
        bar.update(10, loss=0.5)
    assert stream.getvalue() == ""


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
