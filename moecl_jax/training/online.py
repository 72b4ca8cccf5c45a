"""Online learning: one pass over examples in the order of their arrival, without task boundaries.

Each example is scored with the parameters of the moment, and learned after that. So the share of
right answers is the prequential accuracy (Gama, Sebastião and Rodrigues 2013, "On evaluating stream
learning algorithms", Machine Learning 90): no test set is needed. An example's task is given or
found by its text. Each task has an optimizer state of its own; shared trees are common.

    after n examples of a task, floor(budget n) steps have been taken on it, each on its newest
    batch.size examples; so a budget of 1 / batch.size learns each example once

What a workdir holds of its finished tasks stays as it is. What is learned online lies beside it, in
`online/`, and is trained and answered with from there.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from moecl_jax import reporting, stopping
from moecl_jax.errors import UserError
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.log import plain
from moecl_jax.runs.names import ONLINE_FOLDER
from moecl_jax.runs.workdir import bound_settings
from moecl_jax.serving.arrivals import Arrivals
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.scoring import labelled
from moecl_jax.serving.session import open_stream
from moecl_jax.settings import Section, setting
from moecl_jax.training.drift import Drift, bounded
from moecl_jax.training.online_lines import Arrived, Line, LineReader
from moecl_jax.training.online_log import OnlineLog, Tally
from moecl_jax.training.online_track import Track
from moecl_jax.training.pieces import Cutter
from moecl_jax.training.steps import (
    TrainState,
    copied,
    init_train_state,
    make_optimizer,
    no_sums,
    summed,
    train_piece,
)

_POLL_SECONDS = 0.5  # between two looks at a file that may grow


@dataclasses.dataclass(frozen=True)
class OnlineSettings(Section):
    """How arriving examples are learned.

    Attributes:
      task: task of the examples that name none by their field "task"; empty to find each text's.
      budget: optimizer steps an example; 0 stands for 1 / batch.size, which learns each one once.
      on_drift: what a risen loss does: note (it is noted), or expert (the task begins a new expert,
        and the one before is set aside).
      delta: probability that ADWIN sees a drift where there is none.
    """

    KEY: ClassVar[str] = "online"
    task: str = ""
    budget: float = setting(0.0, least=0, most=1000)
    on_drift: str = setting("note", choices=("note", "expert"))
    delta: float = setting(0.002, above=0, below=1)


class Online:
    """Learns in a workdir from lines as they arrive.

    Nothing is written before something was learned. Two objects must not learn in one workdir at a
    time: `learn_online` sees to it.
    """

    def __init__(self, workdir: Path, options: OnlineSettings):
        """Opens the workdir, and goes on where an earlier pass over the same stream stopped.

        Args:
          workdir: folder of a training.
          options: how it is learned.

        Raises:
          UserError: it is no workdir, an option does not fit its method, or the pass was begun with
            other options.
        """
        evaluator, store = open_stream(workdir)
        size = evaluator.settings.batch.size
        settings = evaluator.settings.changed({"batch": {"evaluation_size": size}})
        self.evaluator = Evaluator(evaluator.model, evaluator.method, evaluator.tasks, settings)
        self.options, self.settings, self.method = options, settings, evaluator.method
        _check(self.evaluator, options)
        self.budget = options.budget or 1 / size
        self.stream, _ = store.restore()
        self._finished = store.checkpoints.digest(len(self.stream.finished))
        knows = self.method.traits.expert_per_task
        features = store.restore_features(self.stream) if knows else None
        self._lines = LineReader(self.evaluator, features, options.task)
        placement = evaluator.model.placement
        self.shared: Tree = placement.put(copied(self.stream.shared))
        self.stream = dataclasses.replace(self.stream, shared={})
        self.tracks: dict[int, Track] = {}
        self.aside: dict[str, Any] = {}  # experts before a drift, by a number and the task's name
        self.lines = self.offset = 0
        self._since = time.perf_counter()
        self._optimizer = make_optimizer(
            settings.optimizer.weight_decay, settings.optimizer.clip_norm
        )
        step = functools.partial(
            train_piece, context=self.evaluator.context, optimizer=self._optimizer
        )
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._cutter = Cutter.of_unknown(self.evaluator)
        self.checkpoints = TaskCheckpoints(workdir / ONLINE_FOLDER)
        self.tally = Tally()
        self._restore(self.checkpoints.in_progress_record())
        self.log = OnlineLog(workdir / ONLINE_FOLDER, self.lines)

    def run(self, source: Path, *, follow: bool = False) -> Tally:
        """Learns from an input to its end.

        Args:
          source: a file of JSON lines, or "-" for standard input.
          follow: whether a file is waited on to grow, until a stop is requested.

        Raises:
          UserError: the input is not the one that was begun with, or nothing can be written.
          Stopped: that was requested; all that was learned is saved.
        """
        saved, piped = self.lines, str(source) == "-"
        if self.lines:
            where = f"expecting line {self.lines + 1} next" if piped else "where it stopped"
            reporting.current().message(f"going on after line {self.lines}, {where}")
        with Arrivals(source, self.offset) as arrivals:
            while not stopping.requested():
                group = self._next_group(arrivals)
                if group:
                    with stopping.deferring():  # of half a group nothing could be saved
                        self.learn(group)
                    self.offset = arrivals.offset
                elif arrivals.ended or not (piped or follow):
                    break
                elif not piped:
                    time.sleep(_POLL_SECONDS)
                if self.lines - saved >= self.settings.checkpoint_every:
                    self.save()
                    saved = self.lines
            unfinished = arrivals.unfinished
        if self.lines > saved:
            self.save()
        stopping.check()
        if unfinished:
            reporting.current().message(
                f"note: the last line of {source} has no end yet, and waits for it"
            )
        return self.tally

    def parameters(self, place: int) -> TaskParameters:
        """What answers for the task in a place of the stream now."""
        track = self.tracks.get(place)
        if track is None or track.state is None:
            stream = dataclasses.replace(self.stream, shared=self.shared)
            return self.evaluator.starting.task(stream, self.evaluator.names[place], place)
        return track.state.answering.replace(shared=self.shared)

    def _next_group(self, arrivals: Arrivals) -> list[bytes | ValueError]:
        """Lines that are there, at most a batch, so that a pipe is answered while it is fed."""
        group: list[bytes | ValueError] = []
        while len(group) < self.settings.batch.size and (line := arrivals.next()) is not None:
            group.append(line)
        return group

    def learn(self, lines: Sequence[Line]) -> list[dict[str, Any]]:
        """Scores each line and learns it after that; those between two steps are scored together.

        Args:
          lines: records, or JSON lines, with the fields of a task's text, its label field, and
            maybe `task`. Without a label a text is answered alone. An error stands for a line that
            could not be read.

        Returns:
          What the log has of each: `line`, `task`, `label` and `probability` of the answer; with a
          label also `gold`, `right`, `loss`, `expert` and maybe `drift`; or an `error`.
        """
        waiting: list[Arrived] = []
        for number, read in enumerate(self._lines.read(lines, self.lines + 1), self.lines + 1):
            if isinstance(read, Arrived):
                waiting.append(read)
            else:
                self._answer(waiting)
                waiting = []
                self._refuse({"line": number}, read)
        self._answer(waiting)
        self.lines += len(lines)
        return self.log.flush()

    def _answer(self, group: Sequence[Arrived]) -> None:
        """Scores examples and learns each; after a change of parameters the rest is scored anew."""
        while group:
            count = self._until_step(group)
            group = [*self._answered(group[:count]), *group[count:]]

    def _until_step(self, group: Sequence[Arrived]) -> int:
        """Number of the first examples that are scored before the next step."""
        counts: dict[int, int] = collections.Counter()
        for number, arrived in enumerate(group, 1):
            if arrived.gold is None:
                continue
            counts[arrived.place] += 1
            if self._track(arrived.place).due(counts[arrived.place], self.budget):
                return number
        return len(group)

    def _answered(self, group: Sequence[Arrived]) -> Sequence[Arrived]:
        """Scores examples with the parameters of now; gives those left after a change of them."""
        scores: dict[int, np.ndarray] = {}
        for place in sorted({arrived.place for arrived in group}):
            own = [arrived for arrived in group if arrived.place == place]
            examples = [arrived.example for arrived in own]
            found = self.evaluator.scores(self.parameters(place), place, examples, one_shape=True)
            count = len(self.evaluator.tasks[place].labels)
            rows = found.scores[:, :count].astype(np.float64)
            scores |= {arrived.line: row for arrived, row in zip(own, rows, strict=True)}
        for number, arrived in enumerate(group, 1):
            if self._note(arrived, scores[arrived.line]):
                return group[number:]
        return ()

    def _note(self, arrived: Arrived, row: np.ndarray) -> bool:
        """Writes what an example was answered, and learns it; whether parameters have changed."""
        task = self.evaluator.tasks[arrived.place]
        answer = labelled(task.labels, row)
        line: dict[str, Any] = {"line": arrived.line, "task": task.name}
        if "error" in answer:
            self._refuse(line, answer["error"])
            return False
        line |= {"label": answer["label"], "probability": max(answer["probabilities"].values())}
        if arrived.gold is None:
            self.tally.bare += 1
            self.log.add(line)
            return False
        track = self._track(arrived.place)
        gold, steps, experts = task.labels[arrived.gold], self.tally.steps, track.experts
        loss = float(np.logaddexp.reduce(row) - row[arrived.gold])
        right = gold == answer["label"]
        self.tally.add(task.name, right=right)
        line |= {"gold": gold, "right": right, "loss": loss, "expert": track.experts}
        if track.drift.rises(bounded(loss, len(task.labels))):
            line["drift"] = True
            self.tally.drifts.append({"line": arrived.line, "task": task.name})
            if self.options.on_drift == "expert":
                self._begin_expert(track)
        self.log.add(line)
        track.window.append(arrived.example)
        while track.due(1, self.budget):
            self._learn(track)
        track.arrived += 1
        return (steps, experts) != (self.tally.steps, track.experts)

    def _refuse(self, line: dict[str, Any], problem: str) -> None:
        """Writes why a line could not be used."""
        self.log.add({**line, "error": problem})
        self.tally.bad += 1

    def _learn(self, track: Track) -> None:
        """A step on a task's newest examples."""
        if track.state is None:
            track.state = self._begun(track, self._first_expert(track.place))
        active = track.state.active.replace(shared=self.shared)
        state = dataclasses.replace(track.state, active=active)
        sums = self.evaluator.model.placement.put(no_sums(active))
        rate, parts = np.float32(self.settings.optimizer.learning_rate), []
        frozen = self.evaluator.model.params
        for batch, piece in self._cutter.cut(track.place, list(track.window)):
            state, sums, metrics = self._step(state, sums, frozen, batch, piece, rate)
            parts.append(metrics)
        self.tally.skipped += bool(summed(parts)["skipped"])
        self.shared = state.active.shared
        track.state = dataclasses.replace(state, active=state.active.replace(shared={}))
        track.steps += 1
        self.tally.steps += 1

    def _track(self, place: int) -> Track:
        if place not in self.tracks:
            drift, size = Drift(self.options.delta), self.settings.batch.size
            self.tracks[place] = Track(place, drift, collections.deque(maxlen=size))
        return self.tracks[place]

    def _first_expert(self, place: int) -> TaskParameters:
        """The parameters with which a task's training begins; those it has, if it is finished."""
        parameters = self.parameters(place)
        return parameters.replace(expert=self.method.trainable(parameters.expert))

    def _begun(self, track: Track, parameters: TaskParameters) -> TrainState:
        """The training of a task's expert from these parameters."""
        starting, key = self.evaluator.starting, self._keys(track)[0]
        state = init_train_state(
            self.method, self._optimizer, parameters, key, starting.task_start(track.place)
        )
        state = dataclasses.replace(state, active=state.active.replace(shared={}))
        return self.evaluator.model.placement.put(state)

    def _keys(self, track: Track) -> tuple[jax.Array, jax.Array]:
        """Keys of the training of a task's newest expert, and of its first values."""
        key = self.evaluator.starting.training_key(track.place)
        if not track.experts:
            return key, key  # that of a training; first values are those of the stream
        training, values = jax.random.split(jax.random.fold_in(key, track.experts))
        return training, values

    def _begin_expert(self, track: Track) -> None:
        """Sets a task's expert aside, and begins a new one with an optimizer state of its own."""
        name, starting = self.evaluator.names[track.place], self.evaluator.starting
        if track.state is not None:
            active = track.state.active
            self.aside[f"{track.experts:03d}_{name}"] = {
                "expert": active.expert,
                "head": active.head,
            }
        track.experts += 1
        memory = self.stream.memory if track.state is None else track.state.memory
        fresh = starting.begin(self.shared, track.place, self.stream.last_head, memory)
        expert = self.method.init_expert(self._keys(track)[1], starting.sizes)
        expert = self.method.start_expert(expert, memory)
        track.state = self._begun(track, fresh.replace(expert=expert))
        track.window.clear()
        track.arrived = track.steps = 0

    def save(self) -> None:
        """Saves all that was learned, after what was logged up to it."""
        now = time.perf_counter()
        self.tally.seconds += now - self._since
        self._since = now
        self.log.flush()
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.tidy()
        record = {
            "step": self.lines,
            "offset": self.offset,
            "tally": dataclasses.asdict(self.tally),
            "tracks": [
                {"task": self.evaluator.names[track.place], **track.record()}
                for track in self.tracks.values()
            ],
            "aside": list(self.aside),
            "facts": self._facts(),
        }
        tree = self.evaluator.model.placement.host(self._tree())
        self.checkpoints.save_in_progress(tree, plain(record))

    def _facts(self) -> dict[str, Any]:
        """What a pass that goes on must have in common with the one before."""
        return {
            "fingerprint": self.evaluator.model.fingerprint,
            "tasks": self.evaluator.names,
            "finished": list(self.stream.finished),
            "digest of what is finished": self._finished,
            "options": dataclasses.asdict(self.options),
            **bound_settings(self.settings, self.evaluator.names),
        }

    def _tree(self) -> dict[str, Any]:
        """The arrays that are saved."""
        begun = [track for track in self.tracks.values() if track.state is not None]
        return {
            "lines": np.asarray(self.lines, np.int32),
            "shared": self.shared,
            "states": {
                self.evaluator.names[track.place]: {
                    "active": track.state.active,
                    "optimizer_state": track.state.optimizer_state,
                    "memory": track.state.memory,  # it may depend on when the task was begun
                    "step": track.state.step,
                }
                for track in begun
                if track.state is not None
            },
            "losses": {
                self.evaluator.names[track.place]: np.array(track.drift.losses, np.float32)
                for track in self.tracks.values()
                if track.drift.losses
            },
            "aside": self.aside,
        }

    def _restore(self, record: Mapping[str, Any] | None) -> None:
        """Goes on from a state that was saved."""
        if record is None:
            return
        then, now = record["facts"], plain(self._facts())
        for key in dict.fromkeys([*now, *then]):
            if then.get(key) != now.get(key):
                raise UserError(
                    f"{self.checkpoints.folder.parent} was begun with {key} = {then.get(key)}, and "
                    f"now it is {now.get(key)}. Go on with the values of then, or move the folder "
                    "away to begin anew"
                )
        self.lines, self.offset = int(record["step"]), int(record["offset"])
        self.tally = Tally(**record["tally"])
        for saved in record["tracks"]:
            self._restore_track(saved)
        for name in record["aside"]:
            fresh = self._first_expert(self.evaluator.index(name.partition("_")[2]))
            self.aside[name] = {"expert": fresh.expert, "head": fresh.head}
        template = self._tree()
        for saved in record["tracks"]:
            if saved["watched"]:
                template["losses"][saved["task"]] = np.zeros(saved["watched"], np.float32)
        tree = self.checkpoints.restore_in_progress(template)
        put = self.evaluator.model.placement.put
        self.shared, self.aside = put(tree["shared"]), tree["aside"]
        for track in self.tracks.values():
            name = self.evaluator.names[track.place]
            track.drift = Drift(self.options.delta, tree["losses"].get(name, ()))
            if track.state is not None:
                track.state = put(dataclasses.replace(track.state, **tree["states"][name]))

    def _restore_track(self, saved: Mapping[str, Any]) -> None:
        """The track of a task as a record has it, its arrays blank."""
        track = self._track(self.evaluator.index(saved["task"]))
        track.count_on(saved)
        if saved["begun"]:
            track.state = self._begun(track, self._first_expert(track.place))


def learn_online(
    workdir: Path, source: Path, options: OnlineSettings, *, follow: bool = False
) -> Tally:
    """Learns in a workdir from lines as they arrive, or goes on doing so.

    Args:
      workdir: folder of a training, whatever is finished in it.
      source: a file of JSON lines, or "-" for standard input.
      options: how it is learned.
      follow: whether a file is waited on to grow, until a stop is requested.

    Returns:
      What was counted since the pass began; `online/online.jsonl` has each example.

    Raises:
      UserError: something does not fit; says what and what to do.
    """
    with claimed(workdir), stopping.heeding():
        return Online(workdir, options).run(source, follow=follow)


def _check(evaluator: Evaluator, options: OnlineSettings) -> None:
    """Refuses what an online pass cannot do with a method."""
    method, settings = evaluator.method, evaluator.settings
    if not method.traits.trains:
        raise UserError(
            f"method '{method.name}' trains nothing, so that it cannot learn online; take a "
            "workdir of another method"
        )
    if settings.shared_head and len(evaluator.tasks) > 1:
        raise UserError(
            "config: shared_head: online each task would train a head of its own; take a workdir "
            "with a head a task, or with head = 'lm'"
        )
    if method.traits.reads_moments:
        raise UserError(
            f"method '{method.name}' asks for the inputs of all examples of a task before it "
            "trains, and online they are not there yet; take a workdir of another method"
        )
    sizes = evaluator.starting.sizes
    own = jax.eval_shape(lambda: method.init_expert(jax.random.key(0), sizes))
    begins = method.traits.expert_per_task and jax.tree.leaves(own)
    if options.on_drift == "expert" and not begins:
        raise UserError(
            f"--on-drift=expert: method '{method.name}' keeps no expert a task, of which a new one "
            "could begin; take --on-drift=note, or a workdir of per_task or moe_cl"
        )
    if method.examples.joined or method.examples.joint:
        reporting.current().message(
            f"note: examples of other tasks, which method '{method.name}' trains on too, do not "
            "join online batches"
        )
    if settings.task_settings:
        reporting.current().message(
            "note: online all tasks are trained with the same values; those of task_settings for "
            f"{', '.join(settings.task_settings)} are not used"
        )
