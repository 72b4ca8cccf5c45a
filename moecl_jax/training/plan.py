"""What a training will take: steps, evaluations, memory and disk from shapes; time by measuring.

Memory is XLA's own figure for the compiled training step, and the program is kept for the training
(`moecl cache`). Disk follows from the shapes of what checkpoints hold.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from moecl_jax.data.batching import chunks, epoch_order
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.stream import StreamState
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.task_free import spaced
from moecl_jax.training.pieces import own_examples
from moecl_jax.training.steps import init_train_state, make_optimizer, no_sums
from moecl_jax.training.task_training import TrainingSteps, in_progress_tree

_MEASURED_STEPS = 4
"""Batches of each task that are timed, after one that is not."""

_MEASURED_TEXTS = 32
"""Texts of each task whose evaluation is timed, the second time that they are evaluated."""


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What a training of a stream will take.

    Attributes:
      steps: training steps of each task.
      evaluated: texts of each task that are answered for the matrix, for the choice of the epoch,
        for the choice of the task, and with each kind of change; a text counts each time. Not
        counted are texts for which the wrong task is chosen, which are answered once more.
      frozen_bytes: memory of the frozen LLM's weights on a device.
      trained_bytes: memory of what is trained, with the optimizer's state, on a device.
      step_bytes: memory of a training step on a device, weights included, as XLA reports it for
        the largest batch.
      disk_bytes: size of the checkpoints at the end, before compression.
      most_disk_bytes: the most that checkpoints take while a task is trained.
    """

    steps: tuple[int, ...]
    evaluated: tuple[int, ...]
    frozen_bytes: int
    trained_bytes: int
    step_bytes: int
    disk_bytes: int
    most_disk_bytes: int


@dataclasses.dataclass(frozen=True)
class TrainingTime:
    """How long a training will take, from a few steps that were measured.

    Attributes:
      step_seconds: median time of a training step of each task.
      text_seconds: time to evaluate a text of each task.
      total_seconds: time of all steps and evaluations. Loading, compiling, pre-training on texts
        and what a method computes at a task's end are not counted.
    """

    step_seconds: tuple[float, ...]
    text_seconds: tuple[float, ...]
    total_seconds: float


def plan_training(evaluator: Evaluator, tasks: Sequence[TokenizedTask]) -> TrainingPlan:
    """Plans a training; nothing is trained, and the model's weights may be shapes alone.

    Args:
      evaluator: model, method and tasks.
      tasks: tokenised tasks of the stream.

    Raises:
      UserError: a training batch cannot be computed in so many parts, or an example is too long.
    """
    placement, starting = evaluator.model.placement, evaluator.starting
    stream = starting.stream(len(tasks))
    several = [_steps_of(each, tasks) for each in dict.fromkeys(_evaluators(evaluator))]
    state = _first_state(evaluator, several[0], stream)
    step_bytes = placement.bytes_per_device(evaluator.model.params)
    if evaluator.method.traits.trains:
        step_bytes = max(
            step_memory(steps.compiled(stream, [*steps.cutter.samples()][-1])) for steps in several
        )
    trained = state.active, state.optimizer_state
    disk, most = _disk(evaluator, stream, state)
    return TrainingPlan(
        steps=_step_counts(evaluator, tasks),
        evaluated=_evaluated(evaluator, tasks),
        frozen_bytes=placement.bytes_per_device(evaluator.model.params),
        trained_bytes=placement.bytes_per_device(trained),
        step_bytes=step_bytes,
        disk_bytes=disk,
        most_disk_bytes=most,
    )


def measure_training(
    evaluator: Evaluator, tasks: Sequence[TokenizedTask], plan: TrainingPlan
) -> TrainingTime:
    """Runs a few steps and evaluations of each task, and forgets what they learned.

    Args:
      evaluator: model with its weights, method and tasks.
      tasks: tokenised tasks of the stream.
      plan: what `plan_training` gave for them.

    Raises:
      UserError: as `plan_training`.
    """
    stream, evaluators = evaluator.starting.stream(len(tasks)), _evaluators(evaluator)
    steps_of = {each: _steps_of(each, tasks) for each in dict.fromkeys(evaluators)}
    step_seconds = tuple(
        _seconds_of_a_step(each, steps_of[each], stream, index)
        for index, each in enumerate(evaluators)
    )
    text_seconds = tuple(
        _seconds_of_a_text(evaluator, task, stream, index) for index, task in enumerate(tasks)
    )
    total = np.dot(plan.steps, step_seconds) + np.dot(plan.evaluated, text_seconds)
    return TrainingTime(step_seconds, text_seconds, float(total))


def step_memory(compiled: Any) -> int:
    """Returns the bytes of a compiled function's arguments, results and temporaries, by XLA."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return int(held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)


def _steps_of(evaluator: Evaluator, tasks: Sequence[TokenizedTask]) -> TrainingSteps:
    section = evaluator.settings.optimizer
    optimizer = make_optimizer(section.weight_decay, section.clip_norm)
    return TrainingSteps.compile(evaluator, tasks, optimizer)


def _evaluators(evaluator: Evaluator) -> list[Evaluator]:
    """For each task one with the settings that it is trained with, often the same."""
    settings, model, tasks = evaluator.settings, evaluator.model, evaluator.tasks
    of_task = {name: settings.for_task(name) for name in settings.task_settings}
    own = {
        name: Evaluator(model, each.method_object(), tasks, each) for name, each in of_task.items()
    }
    return [own.get(task.name, evaluator) for task in tasks]


def _first_state(
    evaluator: Evaluator, steps: TrainingSteps, stream: StreamState, index: int = 0
) -> Any:
    starting = evaluator.starting
    parameters = starting.task(stream, evaluator.names[index], index)
    key, start = starting.training_key(index), starting.task_start(index)
    return init_train_state(evaluator.method, steps.optimizer, parameters, key, start)


def _own(evaluator: Evaluator, tasks: Sequence[TokenizedTask], index: int) -> list[Any]:
    """What an epoch of a task passes over."""
    places = [index]
    if evaluator.method.examples.joint:
        places = list(range(len(tasks))) if index + 1 == len(tasks) else []
    return [e for place in places for e in own_examples(evaluator, tasks[place], place)]


def _step_counts(evaluator: Evaluator, tasks: Sequence[TokenizedTask]) -> tuple[int, ...]:
    of_task = [evaluator.settings.for_task(task.name) for task in tasks]
    return tuple(
        -(-len(_own(evaluator, tasks, index)) // settings.batch.size) * _epochs(evaluator, settings)
        for index, settings in enumerate(of_task)
    )


def _epochs(evaluator: Evaluator, settings: Settings) -> int:
    """Passes over a task's training examples with its settings; none where nothing is trained."""
    return settings.epochs if evaluator.method.traits.trains else 0


def _evaluated(evaluator: Evaluator, tasks: Sequence[TokenizedTask]) -> tuple[int, ...]:
    """Texts of each task that the training answers, as `StreamTraining.evaluate_all` does."""
    settings, method, count = evaluator.settings, evaluator.method, len(tasks)
    joint, most = method.examples.joint, settings.evaluation.early_examples
    settled = method.traits.settled and not settings.shared_head
    found = []
    for index, task in enumerate(tasks):
        test = len(task.splits["test"])
        early = min(most, test) if most else test
        rounds = [count] if joint else list(range(1, count + 1))  # by the tasks finished then
        total = early * (1 + sum(finished <= index for finished in rounds))
        total += len(settings.evaluation.perturbations) * test
        after = [finished for finished in rounds if finished > index]
        later = [place for place in evaluator.same(index) if place >= index]
        trained = [count - 1] if joint else later  # with which its answers change
        if settled:  # and with no other
            total += test * min(len(trained), len(after))
        else:
            total += sum(test if done in (index + 1, count) else early for done in after)
        of_trained = [settings.for_task(evaluator.names[place]) for place in trained]
        epochs = sum(_epochs(evaluator, each) for each in of_trained)
        total += epochs * len(task.splits["validation"])
        if method.traits.expert_per_task and not task.definition.free_form:
            # The features by which a task is chosen.
            total += len(spaced(task.splits["train"])) + test
        found.append(total)
    return tuple(found)


def _disk(evaluator: Evaluator, stream: StreamState, state: Any) -> tuple[int, int]:
    """Bytes of the checkpoints at the end, and the most while a task is trained."""
    count = len(evaluator.tasks)
    begun = evaluator.starting.task(stream, evaluator.names[0], 0)
    parameters = _finished(evaluator, begun)
    own = _bytes((parameters.expert, parameters.head))
    shared = _bytes((parameters.shared, parameters.memory))
    moments = min(evaluator.settings.keep_shared or count, count)
    features = 0
    labelled = [task.name for task in evaluator.tasks if not task.free_form]
    if evaluator.method.traits.expert_per_task and labelled:  # of each task, and of all together
        of_names = [*([name] for name in labelled), labelled]
        width = evaluator.starting.sizes.width
        features = sum(_bytes(TaskFeatures.blank(width, names).arrays) for names in of_names)
    inside = _bytes(in_progress_tree(state, begun.replace(memory={})))
    end = count * own + moments * shared + features
    return end, end + 2 * inside  # the new state is whole before the old one is deleted


def _finished(evaluator: Evaluator, parameters: TaskParameters) -> TaskParameters:
    """Shapes of what a finished task leaves; those of its beginning where a method computes them.

    What a method computes with NumPy from its task's examples has no shapes without them.
    """
    end = evaluator.starting.task_end(0)
    try:
        done: TaskParameters = jax.eval_shape(
            lambda trained: evaluator.method.finish_task(trained, end), parameters
        )
    except Exception:  # of any kind: it is the method's own code, run without its examples
        return parameters
    return done


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _seconds_of_a_step(
    evaluator: Evaluator, steps: TrainingSteps, stream: StreamState, index: int
) -> float:
    """Median time of a training step of a task; 0 where it has none."""
    own = _own(evaluator, steps.tasks, index) if evaluator.epochs else []
    placement, settings = evaluator.model.placement, evaluator.settings
    state = placement.put(_first_state(evaluator, steps, stream, index))
    sums = placement.put(no_sums(state.active))
    order = epoch_order(settings.seed, index, 0, len(own))
    seconds = []
    for chunk in list(chunks(order, settings.batch.size))[: _MEASURED_STEPS + 1]:
        begun = time.perf_counter()
        for batch, piece in steps.cutter.cut(index, [own[place] for place in chunk]):
            state, sums, metrics = steps.step(
                state, sums, evaluator.model.params, batch, piece, np.float32(0.0)
            )
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[1:] or seconds or [0.0]))


def _seconds_of_a_text(
    evaluator: Evaluator, task: TokenizedTask, stream: StreamState, index: int
) -> float:
    """Time to evaluate a text of a task; 0 where it has none to evaluate."""
    texts: list[TokenizedExample] = [*task.splits["validation"], *task.splits["test"]]
    texts = texts[:_MEASURED_TEXTS]
    if not texts:
        return 0.0
    parameters = evaluator.starting.task(stream, task.name, index)
    for _ in range(2):  # the first time compiles
        begun = time.perf_counter()
        evaluator.evaluate(parameters, index, texts)
        seconds = time.perf_counter() - begun
    return seconds / len(texts)
