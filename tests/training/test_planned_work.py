"""What a training takes, against what a training does: steps, evaluations, disk and memory."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from streams import evaluator_of, tiny_settings

from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.settings import Settings
from moecl_jax.serving import task_free
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of
from moecl_jax.training import plan
from moecl_jax.training.plan import TrainingPlan, measure_training, plan_training
from moecl_jax.training.task_training import TaskTraining, TrainingSteps
from moecl_jax.training.trainer import train

METHODS = {
    "moe_cl": {},
    "moe_cl moving": {"moe_cl__shared": "moving", "tasks": ("two", "five", "fourteen")},
    "sequential_lora": {"evaluation__early_examples": 5},
    "joint": {"evaluation__perturbations": ("case",)},
    "ewc": {},
    "few_shot": {},
}


def settings_of(folder: Path, method: str) -> Settings:
    changes: dict[str, Any] = {"tasks": ("two", "five"), "epochs": 1, "lora__rank": 32}
    changes |= METHODS[method]
    return tiny_settings(folder, method=method.split()[0], **changes)


def planned(settings: Settings) -> TrainingPlan:
    """The plan, from shapes alone."""
    model = model_of(settings, shapes_only=True)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params))
    tasks = settings.task_objects()
    evaluator = Evaluator(model, settings.method_object(), tasks, settings)
    return plan_training(evaluator, evaluator.load())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_what_a_training_does(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, method)
    answered, steps = np.zeros(len(settings.tasks), int), dict.fromkeys(settings.tasks, 0)
    evaluate, features, batch = Evaluator.evaluate, Evaluator.features, TaskTraining._train_batch

    def counting_evaluate(self: Evaluator, parameters: Any, index: int, examples: Any) -> Any:
        answered[index] += len(examples)
        return evaluate(self, parameters, index, examples)

    def counting_features(self: Evaluator, examples: Any) -> Any:
        answered[:] += np.array([len(examples)] + [0] * (len(answered) - 1))
        return features(self, examples)

    def counting_batch(self: TaskTraining, examples: Any) -> Any:
        steps[self.task.name] += 1
        return batch(self, examples)

    monkeypatch.setattr(Evaluator, "evaluate", counting_evaluate)
    monkeypatch.setattr(Evaluator, "features", counting_features)
    monkeypatch.setattr(TaskTraining, "_train_batch", counting_batch)
    # Texts whose task is chosen wrongly are answered once more; no plan knows how many.
    monkeypatch.setattr(task_free, "_right_as", lambda *args: np.zeros(len(args[2]), bool))
    train(settings, tmp_path / "run")
    monkeypatch.undo()
    found = planned(settings)
    assert found.steps == tuple(steps.values())
    assert sum(found.evaluated) == answered.sum()
    files = (tmp_path / "run" / "checkpoints").rglob("*")
    on_disk = sum(file.stat().st_size for file in files if file.is_file())
    # Records and indices are not counted: of tiny arrays they are a part, of real ones none.
    overhead = 20_000 * len(settings.tasks)
    assert 0.6 * found.disk_bytes <= on_disk <= found.disk_bytes + overhead
    assert found.most_disk_bytes > found.disk_bytes


def test_memory_is_that_of_the_step_that_trains(tmp_path: Path) -> None:
    """XLA's figure for shapes is its figure for the arrays that a training passes."""
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1)
    found = planned(settings)
    evaluator = evaluator_of(settings)
    assert plan_training(evaluator, evaluator.load()) == found
    params = evaluator.model.params
    assert found.frozen_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert found.frozen_bytes + found.trained_bytes < found.step_bytes


def test_time_is_that_of_steps_and_texts(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=3)
    evaluator = evaluator_of(settings)
    tasks = evaluator.load()
    plan = plan_training(evaluator, tasks)
    assert plan.steps == (18, 18)  # 48 examples, 8 in a batch, 3 epochs
    before = evaluator.starting.stream(2)
    found = measure_training(evaluator, tasks, plan)
    assert all(seconds > 0 for seconds in (*found.step_seconds, *found.text_seconds))
    expected = 18 * sum(found.step_seconds)
    expected += sum(n * s for n, s in zip(plan.evaluated, found.text_seconds, strict=True))
    assert found.total_seconds == pytest.approx(expected)
    after = evaluator.starting.stream(2)
    jax.tree.map(np.testing.assert_array_equal, before.shared, after.shared)


def test_a_task_s_own_values_and_features_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingSteps, "compiled", lambda steps, *_: steps)
    monkeypatch.setattr(plan, "step_memory", lambda steps: steps.evaluator.settings.batch.size)
    monkeypatch.setattr(task_free, "MOST_TEXTS", 20)
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=1, moe_cl__shared="moving")
    before = planned(settings)
    own = {"five": {"epochs": 3, "batch": {"size": 16}}}
    found = planned(settings.changed({"task_settings": own}))
    assert (before.steps, found.steps) == ((6, 6), (6, 9))
    assert np.subtract(found.evaluated, before.evaluated).tolist() == [0, 2 * 48]
    assert before.evaluated == (4 * 48 + 16 + 48,) * 2  # tests, validation, 48[::3], choices
    assert (before.step_bytes, found.step_bytes) == (8, 16)
    monkeypatch.setattr(TaskFeatures, "blank", lambda *_: TaskFeatures((), *[np.zeros(0)] * 3))
    features = before.disk_bytes - planned(settings).disk_bytes
    width, count = model_of(settings, shapes_only=True).sizes.width, 2
    # Means, counts and a matrix of all tasks together, and of each.
    assert features == 4 * (2 * count * (width + 1) + (1 + count) * width**2)
