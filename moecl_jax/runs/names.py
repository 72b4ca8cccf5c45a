"""Names of the files in a workdir and in a sweep's folder, and of keys in results.json.

They have a module of their own, without JAX, for readers of finished runs that must start at once.
"""

import os
import re
from pathlib import Path

CONFIG_NAME = "config.json"
"""The config of a run, with its overrides."""

RESULTS_NAME = "results.json"
"""The outcome of a finished training; `runs.results.Results` reads it."""

DATA_NAME = "data.json"
"""Fingerprints of the tokenizer and of the tasks' data; `runs.data_record` reads it."""

NOT_FINITE_NAME = "not_finite.json"
"""The steps and examples at which a training stopped because nothing was finite any more."""

LOCK_NAME = ".lock"
"""An empty file, which the process that trains in a workdir has locked."""

FINISHED_NAME = "finished.json"
"""Names of the finished tasks in their order, so that a checkpoint that is gone is missed."""

CHANGE_NAME = "change.json"
"""What is left to do of a rollback or a removal that was interrupted; `runs.changes` does it."""

ORIGIN_NAME = "origin.json"
"""Facts about the checkpoint that a workdir was converted from; absent in a trained workdir."""

ONLINE_FOLDER = "online"
"""The folder of what was learned online; absent where nothing was."""

INDEX_NAME = "index.safetensors"
"""Texts that can be found again, of 'moecl index'; absent where nothing was indexed."""

LOG_NAME = "metrics.jsonl"
"""The metrics logged during training, one JSON object a line."""

TENSORBOARD_FOLDER = "tensorboard"
"""The folder of TensorBoard's event files."""

TRACKERS_NAME = "trackers.json"
"""Which runs of experiment trackers' servers belong to a workdir; absent where there is none."""

CHECKPOINTS_FOLDER = "checkpoints"
"""The folder of the checkpoints; `runs.checkpoint` reads and writes them."""

IN_PROGRESS_FOLDER = "in_progress"
"""The folder, among the checkpoints, of the state inside the task that is being trained."""

SET_ASIDE_FOLDER = "set_aside"
"""The folder, among the checkpoints, of what was damaged or followed it."""

SWEEP_NAME = "sweep.json"
"""What a sweep was asked for and the list of its runs; it lies in the sweep's own folder."""

FREE_KEYS = (
    "tasks",
    "log_every",
    "trackers",
    "checkpoint_every",
    "keep_shared",
    "model.attention",
    "batch.evaluation_size",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)
"""Keys of a config that change no result, and may differ when a run goes on."""

METRIC_NAMES = ("acc", "bwt", "fwt", "forgetting")
"""Keys of `metrics` in results.json; `runs.metrics` defines them."""

SPLIT_NAMES = ("train", "validation", "test")
"""Keys of `sizes` in results.json, which has the number of texts in each task's split."""


def states_inside(checkpoints: Path) -> list[Path]:
    """Folders of the states inside the task that is being trained, the newest last.

    A folder is named after the steps of the task, "12", and where a state was saved after the same
    steps before, "12_1", "12_2" and so on.

    Args:
      checkpoints: the folder of the checkpoints.
    """
    folder, found = checkpoints / IN_PROGRESS_FOLDER, []
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if match := re.fullmatch(r"([0-9]+)(?:_([0-9]+))?", name):
            found.append((int(match[1]), int(match[2] or 0), name))
    return [folder / name for *_, name in sorted(found)]
