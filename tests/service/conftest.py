"""A tiny trained run of two tasks."""

import json

import pytest
from streams import tiny_settings

from moecl_jax.training.trainer import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a finished stream in `run`, and its data."""
    folder = tmp_path_factory.mktemp("served")
    train(tiny_settings(folder, tasks=("two", "five"), epochs=2), folder / "run")
    return folder


@pytest.fixture(scope="session")
def texts(trained):
    """Test texts of both tasks, by task."""
    return {
        task: [json.loads(line)["text"] for line in path.read_text().splitlines()]
        for task in ("two", "five")
        for path in [trained / "data" / f"{task}_test.jsonl"]
    }
