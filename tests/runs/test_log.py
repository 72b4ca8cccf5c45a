"""The metrics log: its lines, resuming, TensorBoard events."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from moecl_jax.errors import UserError
from moecl_jax.runs.log import MetricsLog, plain


def lines_of(workdir: Path) -> list[dict[str, object]]:
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_steps(workdir: Path, steps: range, **arguments: object) -> None:
    with MetricsLog(workdir, **arguments) as log:
        for step in steps:
            log.write({"step": step, "loss": step / 2})


def test_a_line_has_exactly_the_given_keys_in_order(tmp_path):
    with MetricsLog(tmp_path / "new" / "run") as log:
        log.write({"step": 3, "task": "spam", "epoch": 1, "loss": 0.25})
        # Already readable while the run goes on.
        assert log.path.read_text() == '{"step": 3, "task": "spam", "epoch": 1, "loss": 0.25}\n'


def test_scalars_become_plain_and_floats_that_are_not_finite_null(tmp_path):
    with MetricsLog(tmp_path) as log:
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
    assert plain(content) == {"matrix": [[None, 0.5]], "names": ["a"], "seconds": 1.5}


def test_a_line_needs_a_step(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(KeyError):
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
        MetricsLog(tmp_path)


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

    with MetricsLog(tmp_path, resumed_step=4, trackers=("tensorboard",)) as log:
        log.write({"step": 5, "task": "spam", "loss": 0.5, "loss_adversarial": math.nan})
        log.trackers.histogram("gate/spam", np.array([[0.0, 0.5], [0.5, 1.0]]), 6)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events()
        for value in event.summary.value
        if not value.HasField("histo")
    ]
    assert scalars == [(5, "train/loss", 0.5)]
    [histogram] = [
        (event.step, value.tag, value.histo)
        for event in events()
        for value in event.summary.value
        if value.HasField("histo")
    ]
    assert histogram[:2] == (6, "gate/spam")
    found = histogram[2]
    assert (found.min, found.max, found.num, found.sum) == (0.0, 1.0, 4.0, 2.0)
    assert found.sum_squares == 1.5
    assert len(found.bucket) == len(found.bucket_limit) and sum(found.bucket) == 4
    assert found.bucket_limit[-1] == 1.0
    purged = [event.step for event in events() if event.session_log.status == SessionLog.START]
    assert purged == [5]
