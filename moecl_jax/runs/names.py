"""Names of the files in a workdir and in a sweep's folder, and of keys in results.json.

They have a module of their own, without JAX, for readers of finished runs that must start at once.
"""

CONFIG_NAME = "config.json"
"""The config of a run, with its overrides."""

RESULTS_NAME = "results.json"
"""The outcome of a finished training; `runs.results.Results` reads it."""

DATA_NAME = "data.json"
"""Fingerprints of the tokenizer and of the tasks' data; `runs.data_record` reads it."""

NOT_FINITE_NAME = "not_finite.json"
"""The steps and examples at which a training stopped because nothing was finite any more."""

FINISHED_NAME = "finished.json"
"""Names of the finished tasks in their order, so that a checkpoint that is gone is missed."""

CHANGE_NAME = "change.json"
"""What is left to do of a rollback or a removal that was interrupted; `runs.changes` does it."""

ORIGIN_NAME = "origin.json"
"""Facts about the checkpoint that a workdir was converted from; absent in a trained workdir."""

LOG_NAME = "metrics.jsonl"
"""The metrics logged during training, one JSON object a line."""

TENSORBOARD_FOLDER = "tensorboard"
"""The folder of TensorBoard's event files."""

SWEEP_NAME = "sweep.json"
"""What a sweep was asked for and the list of its runs; it lies in the sweep's own folder."""

METRIC_NAMES = ("acc", "bwt", "fwt", "forgetting")
"""Keys of `metrics` in results.json; `runs.metrics` defines them."""

SPLIT_NAMES = ("train", "validation", "test")
"""Keys of `sizes` in results.json, which has the number of texts in each task's split."""
