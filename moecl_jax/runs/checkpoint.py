"""Orbax checkpoints: one for each finished task, and one inside the task being trained.

    checkpoints/000_trec/       the task's expert and head; JSON beside them; the trees that all
                                tasks share as they were then, if kept; in the newest one also what
                                is known of all tasks' features
    checkpoints/in_progress/    the state of the task in training; gone when it is finished

Every save is atomic: Orbax writes beside the target and renames. The frozen LLM is not saved;
its fingerprint is.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from moecl_jax import quiet
from moecl_jax.errors import UserError
from moecl_jax.models.sharding import first_process, wait_for_all

FOLDER = "checkpoints"
_IN_PROGRESS = "in_progress"
_OWN = "task"
_SHARED = "shared"
_FEATURES = "features"
_SHAPES = "shapes"  # of the saved arrays, in the record


def _save(path: Path, record: Mapping[str, Any], **trees: Any) -> None:
    parts = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    with quiet.orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        whole = ocp.args.Composite(record=ocp.args.JsonSave(dict(record)), **parts)
        checkpointer.save(path.absolute(), whole, force=True)


def _restore(path: Path, part: str, argument: Any) -> Any:
    try:
        with quiet.orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path.absolute(), ocp.args.Composite(**{part: argument}))[
                part
            ]
    except (ValueError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot read the checkpoint {path}: {reason}. It is damaged, or was written with "
            "other sizes or by an earlier version; restore it from a copy, or remove it and what "
            "follows it to train from the task before."
        ) from error


def _restore_like(path: Path, part: str, template: Any) -> Any:
    """Arrays in the structure, shapes and dtypes of a template."""
    abstract = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    return _restore(path, part, ocp.args.StandardRestore(abstract))


def _restore_arrays(path: Path, part: str) -> Any:
    """Arrays as they were saved, NumPy's in nested dictionaries."""
    record = _restore(path, "record", ocp.args.JsonRestore())
    if _SHAPES not in record:
        raise UserError(
            f"{path} was written by version 0.1 of moecl_jax, whose checkpoints this version does "
            "not read; train again in another workdir, or use that version"
        )

    def blank(shapes: Any) -> Any:
        if isinstance(shapes, dict):
            return {name: blank(below) for name, below in shapes.items()}
        shape, dtype = shapes
        return np.zeros(shape, jnp.dtype(dtype))

    return _restore(path, part, ocp.args.StandardRestore(blank(record[_SHAPES][part])))


def _shapes(tree: Any, path: Path) -> Any:
    """Nested dictionaries of arrays as nested dictionaries of (shape, dtype)."""
    if isinstance(tree, Mapping):
        return {name: _shapes(below, path) for name, below in tree.items()}
    if hasattr(tree, "shape"):
        return [list(tree.shape), np.dtype(tree.dtype).name]
    raise UserError(
        f"{path}: cannot save {type(tree).__name__} in a checkpoint; what a method keeps must be "
        "nested dictionaries of arrays"
    )


class TaskCheckpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: Path) -> None:
        """Names the folder; nothing is created before the first save."""
        self.folder = workdir / FOLDER

    def save_finished(
        self,
        index: int,
        name: str,
        own: Any,
        shared: Any,
        record: Mapping[str, Any],
        features: Mapping[str, np.ndarray] | None = None,
        *,
        keep_shared: int = 0,
    ) -> None:
        """Saves a finished task and forgets its training state.

        Args:
          index: place of the task in the stream.
          name: the task.
          own: its expert and head.
          shared: the shared trees and memory of the moment.
          record: JSON-serialisable facts, such as the accuracies so far.
          features: features of all tasks so far, which replace those saved with earlier tasks.
          keep_shared: how many of the newest tasks keep the shared trees of their moment; 0: all.
        """
        path = self._finished(index, name)
        trees = {_OWN: own, _SHARED: shared}
        if features is not None:
            trees[_FEATURES] = features
        shapes = {part: _shapes(tree, path) for part, tree in trees.items()}
        _save(path, {**record, _SHAPES: shapes}, **trees)
        if first_process():
            newest_first = sorted(self._finished_folders(), reverse=True)
            for age, other in enumerate(newest_first):
                if other != path:
                    shutil.rmtree(other / _FEATURES, ignore_errors=True)
                if keep_shared and age >= keep_shared:
                    shutil.rmtree(other / _SHARED, ignore_errors=True)
        self.clear_in_progress()

    def finished_count(self) -> int:
        """How many tasks are finished."""
        return len(self._finished_folders())

    def finished_record(self, index: int, name: str) -> dict[str, Any] | None:
        """The record of a finished task, or None if it has not been finished."""
        path = self._finished(index, name)
        if not path.is_dir():
            return None
        return dict(_restore(path, "record", ocp.args.JsonRestore()))

    def restore_own(self, index: int, name: str) -> dict[str, Any]:
        """A finished task's expert and head as NumPy arrays."""
        return dict(_restore_arrays(self._finished(index, name), _OWN))

    def has_shared(self, index: int, name: str) -> bool:
        """Whether the shared trees are kept of the moment when a task was finished."""
        return (self._finished(index, name) / _SHARED).is_dir()

    def restore_shared(self, index: int, name: str) -> dict[str, Any]:
        """The shared trees and memory of the moment when a task was finished, as NumPy.

        Raises:
          UserError: they were not kept, or cannot be read.
        """
        path = self._finished(index, name)
        if not self.has_shared(index, name):
            raise UserError(
                f"{path} holds the task's own expert and head alone, as config.keep_shared told. "
                "What all tasks share is with newer tasks: restore their folders from a copy, or "
                "train again with keep_shared = 0."
            )
        return dict(_restore_arrays(path, _SHARED))

    def restore_features(self, index: int, name: str) -> dict[str, np.ndarray] | None:
        """The features saved with a task as NumPy, or None where none are."""
        path = self._finished(index, name)
        if not (path / _FEATURES).is_dir():
            return None
        return dict(_restore_arrays(path, _FEATURES))

    def save_in_progress(self, tree: Any, record: Mapping[str, Any]) -> None:
        """Saves the state of the task in training over the one before, which stays till then."""
        step = int(record["step"])
        _save(self.folder / _IN_PROGRESS / str(step), record, tree=tree)
        for other in self._in_progress_steps() if first_process() else ():
            if other != step:
                shutil.rmtree(self.folder / _IN_PROGRESS / str(other))
        wait_for_all("saved in progress")

    def in_progress_record(self) -> dict[str, Any] | None:
        """The record of the newest state of the task in training, or None."""
        steps = self._in_progress_steps()
        if not steps:
            return None
        path = self.folder / _IN_PROGRESS / str(max(steps))
        return dict(_restore(path, "record", ocp.args.JsonRestore()))

    def restore_in_progress(self, template: Any) -> Any:
        """The newest state of the task in training as NumPy; `template` gives shapes and dtypes."""
        path = self.folder / _IN_PROGRESS / str(max(self._in_progress_steps()))
        return _restore_like(path, "tree", template)

    def clear_in_progress(self) -> None:
        """Forgets the state of the task in training."""
        if first_process():
            shutil.rmtree(self.folder / _IN_PROGRESS, ignore_errors=True)
        wait_for_all("cleared in progress")

    def _in_progress_steps(self) -> list[int]:
        folder = self.folder / _IN_PROGRESS
        if not folder.is_dir():
            return []
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]

    def _finished_folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [p for p in self.folder.iterdir() if p.is_dir() and p.name != _IN_PROGRESS]

    def _finished(self, index: int, name: str) -> Path:
        return self.folder / f"{index:03d}_{name}"
