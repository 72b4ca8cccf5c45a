"""A stream compiles few programs, all of them before its first step."""

import numpy as np
import pytest
from streams import ROOT, tiny_settings, training_of

from moecl_jax.config.file import load_settings
from moecl_jax.data.batching import chunks, epoch_order
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
@pytest.mark.parametrize(
    "method",
    ["moe_cl", *(pytest.param(name, marks=pytest.mark.long) for name in ("replay", "joint"))],
)
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


def shapes_of(config, workdir):
    """The shapes of a config's training, the share of slots that stay empty, and of scoring."""
    settings = load_settings(str(ROOT / "configs" / config), [])
    run = training_of(settings, workdir)
    cutter, filled, computed = run.steps.cutter, 0, 0
    for index, examples in enumerate(cutter.examples):
        order = epoch_order(settings.seed, index, 0, len(examples))
        for chunk in chunks(order, settings.batch.size):
            for batch, _ in cutter.cut(index, [examples[place] for place in chunk]):
                filled += np.count_nonzero(batch.segments)
                computed += batch.shape[2]
    scoring = run.evaluator.scoring
    return cutter.shapes, 1 - filled / computed, scoring.shapes


@pytest.mark.slow
@pytest.mark.parametrize("config", ["quickstart.py", "free_form.py"])
def test_the_demo_s_streams_have_few_shapes_and_few_empty_slots(config, tmp_path):
    training, empty, scoring = shapes_of(config, tmp_path / "run")
    assert len(training) <= 3
    assert len(scoring) <= 2  # features of texts are a third program
    assert empty < 0.1


@pytest.mark.slow
@pytest.mark.shared
def test_mtl5_has_few_shapes_and_few_empty_slots(shared, tmp_path):
    config = f"mtl5_shared_smollm2.py:order=1,data={shared / 'data' / 'mtl5'}"
    training, empty, scoring = shapes_of(config, tmp_path / "run")
    assert len(training) <= 3
    assert len(scoring) <= 2
    assert empty < 0.1
