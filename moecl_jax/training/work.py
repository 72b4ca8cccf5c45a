"""How much work a stream is: the plan by which the time left is reckoned."""

import collections
from collections.abc import Collection, Sequence

from moecl_jax.data.tokenize import TokenizedTask
from moecl_jax.progress import EVALUATE, TRAIN, WRITE, Progress
from moecl_jax.runs.store import Store
from moecl_jax.serving.evaluator import Evaluator, text_size
from moecl_jax.serving.task_free import spaced

REST = "rest"
"""Kind of stages whose work is not planned."""


def stream_work(
    evaluator: Evaluator,
    tasks: Sequence[TokenizedTask],
    *,
    finished: int = 0,
    steps: int = 0,
    validations: int = 0,
    settled: Collection[int] = (),
    untrained: bool = False,
) -> dict[str, float]:
    """What is left to do in a stream, by kind as `moecl_jax.progress` has them, in tokens of texts.

    Answers that are written count one each, as their lengths are not known before.

    Args:
      evaluator: model, method and tasks.
      tasks: tokenised tasks.
      finished: number of finished tasks.
      steps: steps done in the next one.
      validations: epochs of the next one after which it was validated.
      settled: places of the tasks that need not be measured again.
      untrained: whether the untrained model is to be measured first.
    """
    return _Plan(evaluator, tasks, set(settled)).work(finished, steps, validations, untrained)


def set_plan(
    progress: Progress,
    evaluator: Evaluator,
    tasks: Sequence[TokenizedTask],
    store: Store,
    *,
    settled: Collection[int] = (),
    untrained: bool = False,
) -> None:
    """Tells how much work is left in a stream; arguments as for `stream_work`.

    Args:
      progress: gets the plan.
      evaluator: model, method and tasks.
      tasks: tokenised tasks.
      store: says what is finished.
      settled: places of the tasks that need not be measured again.
      untrained: whether the untrained model is to be measured first.
    """
    names, record = store.finished_names(), store.in_progress()
    inside = record is not None and record["task"] not in names
    left = stream_work(
        evaluator,
        tasks,
        finished=len(names),
        steps=int(record["step"]) if record is not None and inside else 0,
        validations=int(record["validated_epochs"]) if record is not None and inside else 0,
        settled=settled,
        untrained=untrained,
    )
    progress.expect(left, stream_work(evaluator, tasks, untrained=True))


class _Plan:
    def __init__(
        self, evaluator: Evaluator, tasks: Sequence[TokenizedTask], settled: set[int]
    ) -> None:
        self.evaluator, self.tasks, self.settled = evaluator, tasks, settled
        self.settings, self.method = evaluator.settings, evaluator.method
        self.found: dict[str, float] = collections.defaultdict(float)

    def work(
        self, finished: int, steps: int, validations: int, untrained: bool
    ) -> dict[str, float]:
        count, joint = len(self.tasks), self.method.examples.joint
        if untrained:
            self._measure_all(0)
            section = self.settings.self_supervised
            rows = section.steps * self.settings.batch.size if section.texts else 0
            self.found[TRAIN] += rows * self.settings.data.max_length
        for place in range(finished, count):
            self._add_features(place)
            if joint and place + 1 < count:
                continue
            learned = range(count) if joint else [place]
            texts = [e for task in learned for e in self.tasks[task].splits["train"]]
            current = place == finished or joint
            settings = self.settings.for_task(self.tasks[place].name)
            epochs = settings.epochs if self.method.traits.trains else 0
            epoch_steps = max(1, -(-len(texts) // settings.batch.size))
            rest = epochs - steps / epoch_steps if current else epochs
            self.found[TRAIN] += max(0.0, rest) * text_size(texts) * len(texts)
            for task in learned if joint else self.evaluator.parts(place):
                self._add(task, "validation", times=epochs - (validations if current else 0))
            self.settled.difference_update(self.evaluator.same(place))
            self._measure_all(place + 1)
        self._add_choices(finished)
        if finished < count:  # the texts that are changed, after the last task
            for place in range(count):
                self._add(place, "test", times=len(self.settings.evaluation.perturbations))
        return dict(self.found)

    def _measure_all(self, finished: int) -> None:
        """The tests after so many tasks, as `StreamTraining.evaluate_all` makes them."""
        settled = self.method.traits.settled and not self.settings.shared_head
        for place in range(len(self.tasks)):
            final = settled and place < finished
            if place not in self.settled:
                whole = final or finished in (place + 1, len(self.tasks))
                self._add(place, "test", early=not whole)
            if final:
                self.settled.add(place)

    def _add(self, place: int, split: str, *, times: int = 1, early: bool = False) -> None:
        texts = self.tasks[place].splits[split]
        most = self.settings.evaluation.early_examples
        count = times * (min(most, len(texts)) if early and most else len(texts))
        self.found[EVALUATE] += count * text_size(texts)
        if self.evaluator.writes(place):
            self.found[WRITE] += count

    def _add_features(self, place: int) -> None:
        """The features of a task's training texts, by which texts' tasks are chosen."""
        task = self.tasks[place]
        if self.method.traits.expert_per_task and not task.definition.free_form:
            kept = spaced(task.splits["train"])
            self.found[EVALUATE] += len(kept) * text_size(kept)

    def _add_choices(self, finished: int) -> None:
        """The features of all test texts, whose tasks are chosen after the last task."""
        if not self.method.traits.expert_per_task or finished == len(self.tasks):
            return
        for task in self.tasks:
            if not task.definition.free_form:
                texts = task.splits["test"]
                self.found[EVALUATE] += len(texts) * text_size(texts)
