"""A session that labels texts with programs that are all compiled beforehand.

A program is compiled for each shape of a batch and each number of tasks in it. So a batch is
answered either with the parameters of one task, or with those of a whole group of tasks, whichever
of them its texts belong to; there are as few groups as `methods.mixed` allows.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from moecl_jax.data.batching import chunks, need_of
from moecl_jax.decisions import Drift
from moecl_jax.decisions.drift import FEWEST
from moecl_jax.errors import UserError
from moecl_jax.methods import mixed
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.serving.prompts import Prompt, PromptReader
from moecl_jax.serving.scoring import labelled
from moecl_jax.serving.session import Session

_MOST_KNOWN = 1024  # validation texts of a task with which scores are compared


@dataclasses.dataclass(frozen=True)
class Read:
    """A text as its task is asked.

    Attributes:
      prompt: what the task is asked; None where there is a problem.
      task: name of the task, or None where the problem left it open.
      truncated: whether the text was cut to fit.
      problem: why there is no prompt.
    """

    prompt: Prompt | None
    task: str | None
    truncated: bool = False
    problem: str | None = None


class Labeller:
    """Labels texts for the label tasks of a session. One thread uses it, beside `watch_scores`.

    Attributes:
      session: the finished tasks.
      tasks: names of those with labels, in their order.
      labels: labels of each, by name.
      checkpoint: digest of what answers; equal for equal parameters.
      drifts: compares scores with those of validation texts, by task; empty until `watch_scores`.
      most_texts: texts that fit a batch at most.
    """

    def __init__(self, session: Session):
        """Puts the parameters of all tasks on the device.

        Raises:
          UserError: no finished task has labels.
        """
        evaluator = session.evaluator
        self.session, self._evaluator = session, evaluator
        places = [
            evaluator.index(name)
            for name in session.tasks
            if not evaluator.tasks[evaluator.index(name)].free_form
        ]
        if not places:
            raise UserError(
                f"none of the finished tasks ({', '.join(session.tasks)}) has labels, and a "
                "service answers with labels; 'moecl generate' writes free text"
            )
        self.tasks = [evaluator.names[place] for place in places]
        self.labels = {
            name: tuple(evaluator.tasks[place].labels)
            for name, place in zip(self.tasks, places, strict=True)
        }
        together = mixed.MOST_TASKS if mixed.can_mix(evaluator.method) else 1
        self._groups = [tuple(group) for group in chunks(places, together)]
        self._group_of = {place: group for group in self._groups for place in group}
        self._parameters = self._build_parameters(places)
        self._readers = {name: session.reader(name) for name in self.tasks}
        self.checkpoint = self._digest()
        self.drifts: dict[str, Drift] = {}
        self.most_texts = evaluator.scoring.layout.batch_size

    @functools.cached_property
    def choosing_problem(self) -> str | None:
        """Why a text's task cannot be found from the text; None if it can."""
        try:
            self._choosing_reader  # noqa: B018
        except UserError as error:
            return str(error)
        return None

    def prepare(self) -> None:
        """Compiles all programs, by running each once."""
        for group, parameters in self._parameters.items():
            self._evaluator.prepare_scores(parameters, group)
        if self.choosing_problem is None and len(self.tasks) > 1:
            self._evaluator.prepare_features()
        for task in (*self.tasks, *([None] if self.choosing_problem is None else [])):
            self.label([found.prompt for found in self.read([("a", task)]) if found.prompt])

    def watch_scores(self, stop: threading.Event | None = None) -> None:
        """Labels validation texts, with which the scores of texts to come are compared.

        A task with less than `drift.FEWEST` of them is not watched, nor one whose data are gone.
        Another thread may label texts meanwhile.

        Args:
          stop: ends it between two batches when it is set.
        """
        evaluator, examples = self._evaluator, self.session.examples("validation")
        for name in self.tasks:
            place = evaluator.index(name)
            known = [
                Prompt(example.prompt, place, example.text)
                for same in evaluator.same(place)
                for example in examples.get(evaluator.names[same], ())
            ]
            if len(known) < FEWEST:
                continue
            stride = -(-len(known) // _MOST_KNOWN)
            known = sorted(known[::stride], key=lambda prompt: len(prompt.ids))
            found: list[list[float]] = []
            for start in range(0, len(known), self.most_texts):
                if stop is not None and stop.is_set():
                    return
                found += [
                    [answer["probabilities"][label] for label in self.labels[name]]
                    for answer in self.label(known[start : start + self.most_texts])
                    if "error" not in answer
                ]
            if len(found) >= FEWEST:  # a new mapping, for another thread may read the old one
                self.drifts = {**self.drifts, name: Drift(np.array(found))}

    def read(self, texts: Sequence[tuple[str, str | None]]) -> list[Read]:
        """The prompts of texts.

        Args:
          texts: each with the name of its task, or None to find it from the text.
        """
        found: list[Read | None] = [None] * len(texts)
        for task in {task for _, task in texts}:
            reader = self._choosing_reader if task is None else self._readers[task]
            places = [place for place, (_, of) in enumerate(texts) if of == task]
            read = reader.read([{"text": texts[place][0]} for place in places])
            for place, (added, prompt) in zip(places, read, strict=True):
                name = task if prompt is None else self._evaluator.names[prompt.task]
                found[place] = Read(prompt, name, "truncated" in added, added.get("error"))
        return [each for each in found if each is not None]

    def next_batch(self, prompts: Sequence[Prompt]) -> list[int]:
        """Places of the prompts that share a batch with the first one, and fill it.

        Args:
          prompts: prompts in the order in which they wait, at least one.
        """
        group = self._group_of[prompts[0].task]
        able = [place for place, prompt in enumerate(prompts) if prompt.task in group]
        answers = self._evaluator.answers
        needs = [
            need_of(prompts[place].example, answers[prompts[place].task], training=False)
            for place in able
        ]
        for places, _ in self._evaluator.scoring.groups(needs):
            if 0 in places:  # the first prompt, which has waited longest
                return [able[place] for place in places]
        raise AssertionError("every prompt is in a group")

    def label(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """`label`, `probabilities` and `logits` of each prompt, or an `error`."""
        answers: list[dict[str, Any]] = [{}] * len(prompts)
        tasks = {prompt.task for prompt in prompts}
        for whole in {self._group_of[task] for task in tasks}:
            present = tuple(task for task in whole if task in tasks)
            group = present if len(present) == 1 else whole
            places = [place for place, prompt in enumerate(prompts) if prompt.task in group]
            own = [group.index(prompts[place].task) for place in places]
            examples = [prompts[place].example for place in places]
            scores = self._evaluator.scores_of_several(
                self._parameters[group], group, examples, own
            ).scores.astype(np.float64)
            for place, row in zip(places, scores, strict=True):
                labels = self._evaluator.tasks[prompts[place].task].labels
                answers[place] = labelled(labels, row[: len(labels)])
        return answers

    @functools.cached_property
    def _choosing_reader(self) -> PromptReader:
        if len(self.tasks) == 1:
            return self._readers[self.tasks[0]]
        return self.session.reader(None)

    def _build_parameters(self, places: Sequence[int]) -> dict[tuple[int, ...], TaskParameters]:
        """Parameters of each task alone, and of each group."""
        evaluator = self._evaluator
        put, starting = evaluator.model.placement.put, evaluator.starting
        own = {
            place: put(starting.task(self.session.state, evaluator.names[place], place))
            for place in places
        }
        found: dict[tuple[int, ...], TaskParameters] = {
            (place,): parameters for place, parameters in own.items()
        }
        for group in self._groups:
            if len(group) > 1:
                found[group] = put(mixed.together([own[place] for place in group]))
        return found

    def _digest(self) -> str:
        """SHA-256 of all parameters that answer, its first 12 digits."""
        digest = hashlib.sha256()
        for group, parameters in sorted(self._parameters.items(), key=lambda item: item[0]):
            if len(group) == 1:
                digest.update(self._evaluator.names[group[0]].encode())
                for leaf in jax.tree.leaves(parameters):
                    digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:12]
