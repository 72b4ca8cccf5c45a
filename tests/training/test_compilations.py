"""A stream compiles few programs, all of them before its first step."""

import pytest
from streams import tiny_settings, training_of

from moecl_jax.training.pieces import Cutter
from moecl_jax.training.task_training import TaskTraining, TrainingSteps


@pytest.fixture
def compilations(monkeypatch):
    """The number of compiled training programs after the preparation, and after each step."""
    counts = []
    prepare, step_of = TrainingSteps.prepare, TaskTraining._train_batch

    def prepared(self, stream):
        prepare(self, stream)
        counts.append(len(list(self.cutter.samples())))

    def train_batch(self, examples):
        metrics = step_of(self, examples)
        counts.append(self.steps.step._cache_size())
        return metrics

    monkeypatch.setattr(TrainingSteps, "prepare", prepared)
    monkeypatch.setattr(TaskTraining, "_train_batch", train_batch)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moe_cl", "replay", "joint"])
def test_a_stream_of_three_tasks_compiles_at_most_three_and_three(tmp_path, compilations, method):
    settings = tiny_settings(tmp_path, method=method, epochs=40, checkpoint_every=1000)
    run = training_of(settings, tmp_path / "run")
    run.run()
    assert len(run.steps.cutter.shapes) <= 3
    assert max(compilations) <= len(run.steps.cutter.shapes)
    scored = (
        run.evaluator._evaluation_step._cache_size() + run.evaluator._feature_step._cache_size()
    )
    assert scored <= 3


@pytest.mark.slow
def test_no_program_is_compiled_after_the_preparation(tmp_path, monkeypatch):
    run = training_of(tiny_settings(tmp_path, epochs=40), tmp_path / "run")
    known = []

    def watched(self, index, examples):
        found = cut(self, index, examples)
        known.extend((batch.shape, batch.answer_targets.shape) for batch, _ in found)
        return found

    cut = Cutter.cut
    samples = {(batch.shape, batch.answer_targets.shape) for batch, _ in run.steps.cutter.samples()}
    assert len(samples) == len(run.steps.cutter.shapes)
    monkeypatch.setattr(Cutter, "cut", watched)
    run.run()
    assert set(known) <= samples
