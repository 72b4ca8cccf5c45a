"""What a user sees of a run is what this package says: dependencies stay quiet, errors do not."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import logging as absl_logging
from streams import tiny_config

from moecl_jax import quiet

TRAIN = """
import sys
from pathlib import Path
from moecl_jax.config.file import load_settings
from moecl_jax.training.trainer import train
for config in sys.argv[2:]:
    train(load_settings(config), Path(sys.argv[1]))
"""


@pytest.fixture
def configs(tmp_path: Path) -> list[str]:
    """Config files of a stream's first task, and of the stream.

    The task's own tree is empty with this method, which is what Orbax warns of.
    """
    paths = []
    for tasks in (("two",), ("two", "five")):
        config = tiny_config(tmp_path, tasks=tasks, epochs=1, method="sequential_lora")
        paths.append(str(tmp_path / f"{len(tasks)}.json"))
        Path(paths[-1]).write_text(config.to_json(), encoding="utf-8")
    return paths


def errors_of(*arguments: str) -> list[str]:
    """The lines that a Python process prints on standard error."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")}
    run = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stderr.splitlines()


@pytest.mark.slow
def test_a_command_prints_its_own_lines_alone(configs, tmp_path):
    two, five = (f"{task}: train 48, validation 48, test 48" for task in ("two", "five"))
    command = ("-m", "moecl_jax", "train", f"--workdir={tmp_path / 'run'}")
    begun = [two, "evaluating the untrained model on every task"]
    for config, expected in ((configs[0], begun), (configs[1], [two, five])):
        lines = errors_of(*command, f"--config={config}")
        # Where there is no terminal, progress is a line with the time now and then.
        kept = [line for line in lines if not re.match(r"\[\d+(m\d\d)?s\] ", line)]
        assert kept[:-1] == expected
        assert re.fullmatch(r"task (1/1 two|2/2 five): test .* \(accuracy in %\)", kept[-1])


@pytest.mark.slow
def test_the_library_prints_nothing(configs, tmp_path):
    assert errors_of("-c", TRAIN, str(tmp_path / "run"), *configs) == []


def test_what_orbax_logs_is_dropped_within_and_nothing_else(caplog):
    def warn(level: int, package: str) -> None:
        path = f"/lib/{package}/checkpoint/file.py"
        logger = absl_logging.get_absl_logger()
        logger.handle(logger.makeRecord("absl", level, path, 1, f"{package} {level}", (), None))

    with quiet.orbax():
        warn(logging.WARNING, "orbax")
        warn(logging.ERROR, "orbax")
        warn(logging.WARNING, "other")
    warn(logging.WARNING, "orbax")
    assert caplog.messages == ["other 30", "orbax 30"]


def test_advice_of_transformers_is_dropped_within_and_other_warnings_are_not():
    import transformers

    logger, messages = logging.getLogger("transformers"), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with quiet.transformers():
            transformers.logging.get_logger("transformers").warning_advice("install PyTorch")
            logger.warning("a file is broken")
        logger.warning_advice("install PyTorch")
    finally:
        logger.removeHandler(handler)
    assert messages == ["a file is broken", "install PyTorch"]


def test_bars_of_datasets_are_hidden_within():
    import datasets

    with quiet.datasets():
        assert not datasets.is_progress_bar_enabled()
        with quiet.datasets():
            pass
        assert not datasets.is_progress_bar_enabled()
    assert datasets.is_progress_bar_enabled()
