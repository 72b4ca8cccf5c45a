"""Orbax checkpoints: one for each finished task, and one inside the task being trained.

    checkpoints/000_trec/       the task's expert and head, and features of its texts; JSON beside
                                them; the trees that all tasks share as they were then, if kept; in
                                the newest one also the features of all tasks together
    checkpoints/in_progress/    the state of the task in training; gone when it is finished
    checkpoints/.removed/       what is being deleted
    checkpoints/.prepared/      what a removal is about to put in the place of others
    checkpoints/set_aside/      what was damaged or followed it, after a training went back
    finished.json               names of the finished tasks, so that one that is gone is missed

Every save is atomic: Orbax writes beside the target and renames. A deletion is a rename first. What
is read must have the digest that it was written with. The frozen LLM is not saved; its fingerprint
is. Whatever else lies in the folder is left alone.
"""

import glob
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from moecl_jax import quiet
from moecl_jax.errors import UserError, one_line
from moecl_jax.models.sharding import first_process, wait_for_all
from moecl_jax.outside import parse_json, shortened
from moecl_jax.runs.changes import PREPARED, REMOVED
from moecl_jax.runs.names import (
    CHECKPOINTS_FOLDER,
    FINISHED_NAME,
    IN_PROGRESS_FOLDER,
    SET_ASIDE_FOLDER,
    states_inside,
)
from moecl_jax.writing import RETRY, write_json

FOLDER, SET_ASIDE, IN_PROGRESS = CHECKPOINTS_FOLDER, SET_ASIDE_FOLDER, IN_PROGRESS_FOLDER
_OWN = "task"
_SHARED = "shared"
_OWN_FEATURES = "own_features"
_FEATURES = "features"
_RECORD = "record"
_SHAPES = "shapes"  # of the saved arrays, in the record
_DIGESTS = "digests"  # of the saved arrays by part and of the record itself, in the record
_REMEDY = (
    "Restore it from a copy; or train with --resume=last-good, which goes back to the newest whole "
    "state, says what is lost, and sets the rest aside."
)
_UNFINISHED = ".orbax-checkpoint-tmp*"  # what Orbax adds to the name of what it writes


def _save(path: Path, record: Mapping[str, Any], **trees: Any) -> None:
    """Writes a checkpoint whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    digests = {name: _digest(tree) for name, tree in trees.items()}
    whole = {**record, _DIGESTS: {**digests, _RECORD: _record_digest(record)}}
    parts = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    try:
        with quiet.orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            composite = ocp.args.Composite(record=ocp.args.JsonSave(whole), **parts)
            checkpointer.save(path.absolute(), composite, force=True)
    except Exception as error:  # of the file system, in whatever clothes TensorStore gives it
        raise UserError(
            f"cannot write the checkpoint {path}: {one_line(error)[:300]}. {RETRY}"
        ) from error


def _restore(path: Path, part: str, argument: Any) -> Any:
    try:
        with quiet.orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path.absolute(), ocp.args.Composite(**{part: argument}))[
                part
            ]
    except Exception as error:  # damaged files fail in many ways
        raise _damaged(path, one_line(error)[:300]) from error


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot read the checkpoint {path}: {reason}. It is damaged, or was written with other "
        f"sizes. {_REMEDY}"
    )


def _read_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint, with shapes and digests."""
    record = dict(_restore(path, _RECORD, ocp.args.JsonRestore()))
    if not isinstance(record.get(_DIGESTS), Mapping):
        raise _damaged(path, "its record has no digests, as in version 0.1 of moecl_jax")
    if record[_DIGESTS].get(_RECORD) != _record_digest(record):
        raise _damaged(path, "its record is not the one that was written")
    return record


def _restore_like(path: Path, part: str, template: Any) -> Any:
    """Arrays in the structure, shapes and dtypes of a template."""
    return _checked(
        path, part, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    )


def _checked(path: Path, part: str, template: Any) -> Any:
    """Arrays that have the digest that they were written with; no template: in any structure."""
    expected = _read_record(path)[_DIGESTS].get(part)
    tree = _restore(path, part, ocp.args.StandardRestore(template))
    if expected != _digest(tree):
        raise _damaged(path, f"the arrays of {part!r} are not those that were written")
    return tree


def _restore_arrays(path: Path, part: str) -> Any:
    """Arrays as they were saved, NumPy's in nested dictionaries."""
    shapes = _read_record(path)[_SHAPES]
    if part not in shapes:
        raise _damaged(path, f"it holds no {part!r}")

    def blank(shapes: Any) -> Any:
        if isinstance(shapes, dict):
            return {name: blank(below) for name, below in shapes.items()}
        shape, dtype = shapes
        return np.zeros(shape, jnp.dtype(dtype))

    return _restore_like(path, part, blank(shapes[part]))


def _digest(tree: Any) -> str:
    """A digest of all arrays of a tree, whatever structure they stand in."""
    leaves = sorted(map(_leaf_digest, jax.tree.leaves(tree)))
    return hashlib.blake2b(b"".join(leaves), digest_size=16).hexdigest()


def _leaf_digest(leaf: Any) -> bytes:
    array = np.ascontiguousarray(leaf)
    digest = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.digest()


def _record_digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != _DIGESTS}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _save_parts(path: Path, record: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Writes a finished task's checkpoint, with the shapes of its arrays."""
    shapes = {part: _shapes(tree, path) for part, tree in parts.items()}
    _save(path, {**record, _SHAPES: shapes}, **parts)


def _folder_name(index: int, name: str) -> str:
    return f"{index:03d}_{name}"


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

    def __init__(self, workdir: Path, names: Sequence[str] = ()) -> None:
        """Names the folder; nothing is created before the first save.

        Args:
          workdir: folder of the run.
          names: names of the tasks in their order; checkpoints of others are not looked at.
        """
        self.folder = workdir / FOLDER
        self.names = list(names)

    def save_finished(
        self,
        index: int,
        own: Any,
        shared: Any,
        record: Mapping[str, Any],
        features: Mapping[str, np.ndarray] | None = None,
        *,
        own_features: Mapping[str, np.ndarray] | None = None,
        keep_shared: int = 0,
    ) -> None:
        """Saves a finished task and forgets its training state.

        Args:
          index: place of the task in the stream.
          own: its expert and head.
          shared: the shared trees and memory of the moment.
          record: JSON-serialisable facts, such as the accuracies so far.
          features: features of all tasks so far, which replace those saved with earlier tasks.
          own_features: features of the task alone, which stay with it.
          keep_shared: how many of the newest tasks keep the shared trees of their moment; 0: all.

        Raises:
          UserError: it cannot be written.
        """
        path = self.path(index)
        parts = {_OWN: own, _SHARED: shared, _OWN_FEATURES: own_features, _FEATURES: features}
        _save_parts(path, record, {name: tree for name, tree in parts.items() if tree is not None})
        if first_process():
            self.note_finished(self.names[: index + 1])
            for other in range(index):
                if features is not None:
                    self._remove(self.path(other) / _FEATURES)
                if keep_shared and index - other >= keep_shared:
                    self._remove(self.path(other) / _SHARED)
        self.clear_in_progress()

    def finished_count(self) -> int:
        """Number of finished tasks, up to the first that is not.

        Raises:
          UserError: the checkpoint of a task that was finished is missing, or is a link to nothing.
        """
        paths = list(map(self.path, range(len(self.names))))
        there = [path.is_dir() for path in paths]
        for path in paths:
            if path.is_symlink() and not path.exists():
                raise UserError(
                    f"the checkpoint {path} is a link to a folder that is not there. Mount it. "
                    f"{_REMEDY}"
                )
        count = there.index(False) if False in there else len(there)
        if any(there[count:]):
            later = self.path(there.index(True, count))
            raise UserError(
                f"the checkpoint {self.path(count)} is missing, and {later.name} after it is "
                f"there. {_REMEDY}"
            )
        known = self.known_finished()
        if len(known) > count:
            place = self.folder / _folder_name(count, known[count])
            what = "is not in config.tasks" if os.path.lexists(place) else "is missing"
            raise UserError(
                f"the checkpoint {place} {what}, and {FINISHED_NAME} says that its task was "
                f"finished. 'moecl rollback' goes back to an earlier task and 'moecl remove' "
                f"removes one. {_REMEDY}"
            )
        return count

    def begun_count(self) -> int:
        """Number of the first tasks that were begun, whatever of them is missing or damaged."""
        places = [place for place in range(len(self.names)) if os.path.lexists(self.path(place))]
        try:
            record = self.in_progress_record()
        except UserError:
            return len(self.names)
        if record is not None and record["task"] in self.names:
            places.append(self.names.index(record["task"]))
        return max(len(self.known_finished()), *(place + 1 for place in places), 0)

    def known_finished(self) -> list[str]:
        """Names of the tasks that were finished, whether their checkpoints are there or not.

        Raises:
          UserError: the file that holds them is broken.
        """
        path = self.folder.parent / FINISHED_NAME
        try:
            content = parse_json(path.read_bytes())
            if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
                raise ValueError("expected a list of names")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is broken: {one_line(error)}. Restore it from a copy, or delete it; then "
                "a checkpoint that is missing at the end goes unnoticed."
            ) from error
        return content

    def note_finished(self, names: Sequence[str]) -> None:
        """Writes which tasks were finished."""
        write_json(self.folder.parent / FINISHED_NAME, list(names))

    def any(self) -> bool:
        """Whether anything is saved."""
        paths = [*map(self.path, range(len(self.names))), self.folder / IN_PROGRESS]
        return any(map(os.path.lexists, paths))

    def finished_record(self, index: int) -> dict[str, Any]:
        """The record of a finished task."""
        return _read_record(self.path(index))

    def digest(self, count: int) -> str:
        """A digest of all arrays that the first `count` tasks have left; "" of no task.

        Raises:
          UserError: a checkpoint cannot be read.
        """
        parts = [self.finished_record(index)[_DIGESTS] for index in range(count)]
        if not parts:
            return ""
        found = " ".join([*(each.get(_OWN, "") for each in parts), parts[-1][_SHARED]])
        return hashlib.blake2b(found.encode(), digest_size=16).hexdigest()

    def restore_own(self, index: int) -> dict[str, Any]:
        """A finished task's expert and head as NumPy arrays."""
        return dict(_restore_arrays(self.path(index), _OWN))

    def has_own(self, index: int) -> bool:
        """Whether a finished task's expert and head are there."""
        return (self.path(index) / _OWN).is_dir()

    def has_shared(self, index: int) -> bool:
        """Whether the shared trees are kept of the moment when a task was finished."""
        return (self.path(index) / _SHARED).is_dir()

    def restore_shared(self, index: int) -> dict[str, Any]:
        """The shared trees and memory of the moment when a task was finished, as NumPy.

        Raises:
          UserError: they were not kept, or cannot be read.
        """
        path = self.path(index)
        if not self.has_shared(index):
            raise UserError(
                f"{path} holds the task's own expert and head alone, as config.keep_shared told. "
                "What all tasks share is with newer tasks: restore their folders from a copy, or "
                "train again with keep_shared = 0."
            )
        return dict(_restore_arrays(path, _SHARED))

    def restore_features(self, index: int, *, own: bool = False) -> dict[str, np.ndarray] | None:
        """The features saved with a task as NumPy, or None where none are.

        Args:
          index: place of the task in the stream.
          own: whether those of the task alone are meant, or those of all tasks so far.
        """
        path, part = self.path(index), _OWN_FEATURES if own else _FEATURES
        if not (path / part).is_dir():
            return None
        return dict(_restore_arrays(path, part))

    def save_copy(self, index: int, target: Path, *, own: bool = True, shared: Any = None) -> None:
        """Writes a finished task's checkpoint anew, without the features of all tasks.

        Args:
          index: place of the task in the stream.
          target: the new folder.
          own: whether the task's own expert, head and features are in it.
          shared: the shared trees and memory; None for none.
        """
        path, parts = self.path(index), {}
        for part in (_OWN, _OWN_FEATURES):
            if own and (path / part).is_dir():
                parts[part] = _restore_arrays(path, part)
        if shared is not None:
            parts[_SHARED] = shared
        kept = (_SHAPES, _DIGESTS)
        record = {key: value for key, value in _read_record(path).items() if key not in kept}
        _save_parts(target, record, parts)

    def features_path(self, index: int) -> Path:
        """Where the features of all tasks are kept with one."""
        return self.path(index) / _FEATURES

    def save_in_progress(self, tree: Any, record: Mapping[str, Any]) -> None:
        """Saves the state of the task in training; the one before stays till that is done.

        Raises:
          UserError: it cannot be written.
        """
        step, names = int(record["step"]), {path.name for path in states_inside(self.folder)}
        again = (f"{step}_{count}" for count in itertools.count(1))
        # Orbax deletes what it overwrites before it writes.
        name = next(name for name in itertools.chain([str(step)], again) if name not in names)
        _save(self.folder / IN_PROGRESS / name, record, tree=tree)
        for other in names if first_process() else ():
            self._remove(self.folder / IN_PROGRESS / other)
        wait_for_all("saved in progress")

    def in_progress_record(self) -> dict[str, Any] | None:
        """The record of the newest state of the task in training, or None."""
        states = states_inside(self.folder)
        return _read_record(states[-1]) if states else None

    def restore_in_progress(self, template: Any) -> Any:
        """The newest state of the task in training as NumPy; `template` gives shapes and dtypes."""
        return _restore_like(states_inside(self.folder)[-1], "tree", template)

    def check_in_progress(self) -> None:
        """Reads the newest state of the task in training, if there is one, and drops it.

        Raises:
          UserError: it is damaged.
        """
        states = states_inside(self.folder)
        if states:
            _checked(states[-1], "tree", None)

    def clear_in_progress(self) -> None:
        """Forgets the state of the task in training."""
        if first_process():
            self._remove(self.folder / IN_PROGRESS)
        wait_for_all("cleared in progress")

    def tidy(self) -> None:
        """Deletes what a process that was killed left unfinished: saves and deletions of ours."""
        for name in (REMOVED, PREPARED):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (self.path(index).name for index in range(len(self.names))):
            for path in self.folder.glob(glob.escape(name) + _UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / IN_PROGRESS).glob("*" + _UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)

    def probe(self) -> None:
        """Tries what will be needed at the end: checkpoints with the names of all tasks.

        Raises:
          UserError: the folder cannot hold them; says why.
        """
        path = self.folder.absolute()
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the path {str(path)!r} is not UTF-8, in which checkpoints cannot be written; "
                "name another --workdir"
            ) from error
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self.names):
            trial = self.folder / (self.path(index).name + _UNFINISHED.replace("*", ".0000000000"))
            try:
                trial.mkdir(exist_ok=True)
                trial.rmdir()
            except OSError as error:
                raise UserError(
                    f"no checkpoint of task {shortened(name)} can be written in {self.folder}: "
                    f"{error.strerror}"
                ) from error

    def set_aside_from(self, count: int, *, in_progress: bool) -> Path | None:
        """Moves checkpoints out of the way without deleting anything.

        Args:
          count: number of the first tasks whose checkpoints stay.
          in_progress: whether the state inside a task is moved too.

        Returns:
          The folder that holds them now; None if there are none.
        """
        paths = [self.path(index) for index in range(count, len(self.names))]
        paths += [self.folder / IN_PROGRESS] if in_progress else []
        present = [path for path in paths if os.path.lexists(path)]  # links to nothing too
        if len(known := self.known_finished()) > count:
            self.note_finished(known[:count])
        if not present:
            return None
        aside = self.folder / SET_ASIDE / time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        aside.mkdir(parents=True, exist_ok=True)
        for path in present:
            os.rename(path, aside / path.name)
        return aside

    def path(self, index: int) -> Path:
        """The folder of a task's checkpoint."""
        return self.folder / _folder_name(index, self.names[index])

    def _remove(self, path: Path) -> None:
        """Deletes a folder so that a process that is killed meanwhile leaves no half of it."""
        if not path.exists():
            return
        removed = self.folder / REMOVED
        removed.mkdir(exist_ok=True)
        os.rename(path, removed / f"{path.parent.name}_{path.name}_{time.time_ns()}")
        shutil.rmtree(removed, ignore_errors=True)
