"""The plan of a stream's work is what the stream then does."""

import pytest
from streams import stop_after, tiny_settings, training_of

from moecl_jax import reporting
from moecl_jax.progress import EVALUATE, TRAIN, WRITE
from moecl_jax.training.work import set_plan, stream_work


class Watched(reporting.SilentReporter):
    """Keeps the work that is shown, and its lines."""

    def __init__(self):
        self.progress, self.lines = None, []

    def show(self, progress, **_):
        self.progress = progress
        self.lines.append(progress.line())


def work_of(run):
    """The work that a run plans, and the reporter that watched it do all of it."""
    planned = stream_work(run.evaluator, run.tasks, untrained=True)
    watched = Watched()
    with reporting.use(watched):
        run.run()
    return planned, watched


def assert_all_done(planned, watched):
    done = {kind: watched.progress.done[kind] for kind in (TRAIN, EVALUATE, WRITE)}
    assert {kind: amount for kind, amount in done.items() if amount} == pytest.approx(planned)
    assert watched.progress.seconds_left == pytest.approx(0.0)
    assert watched.progress.share_done == pytest.approx(1.0)


@pytest.mark.parametrize(
    "method", [pytest.param("moe_cl", marks=pytest.mark.slow), "sequential_lora", "joint"]
)
def test_what_is_planned_is_done(tmp_path, method):
    settings = tiny_settings(tmp_path, method=method, tasks=("two", "five"), epochs=1)
    planned, watched = work_of(training_of(settings, tmp_path / "run"))
    assert planned[TRAIN] > 0 and planned[EVALUATE] > 0
    if method != "moe_cl":  # which takes features, and chooses tasks where the wrong one may answer
        assert_all_done(planned, watched)
    else:
        assert watched.progress.done[TRAIN] == pytest.approx(planned[TRAIN])
        assert planned[EVALUATE] <= watched.progress.done[EVALUATE] < 1.5 * planned[EVALUATE]
    labels = "\n".join(watched.lines)
    assert "before training, evaluating two" in labels
    assert "task 2/2 five, epoch 1/1" in labels
    assert "task 2/2 five, epoch 1/1, evaluating" in labels


@pytest.mark.slow
def test_written_answers_are_work_too(tmp_path):
    settings = tiny_settings(
        tmp_path,
        method="sequential_lora",
        tasks=("two",),
        epochs=1,
        evaluation__answers="generated",
    )
    planned, watched = work_of(training_of(settings, tmp_path / "run"))
    assert planned[WRITE] > 0
    assert_all_done(planned, watched)


@pytest.mark.slow
def test_the_rest_of_a_stopped_run_is_planned(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, method="sequential_lora", tasks=("two", "five"), epochs=2)
    whole = training_of(settings, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 12 + 8)  # in the second epoch of the second task
        with pytest.raises(KeyboardInterrupt):
            whole.run()
    run = training_of(settings, tmp_path / "run")
    planned = stream_work(run.evaluator, run.tasks, finished=1, steps=8, validations=1)
    with reporting.working() as progress:
        set_plan(progress, run.evaluator, run.tasks, run.store)
        progress.done.update({TRAIN: 1.0, EVALUATE: 1.0})
        progress._seconds.update({TRAIN: 1.0, EVALUATE: 1.0})  # a token a second
        assert progress.seconds_left == pytest.approx(sum(planned.values()))
        assert 0.5 < progress.share_done < 1.0
    watched = Watched()
    with reporting.use(watched):
        run.run()
    assert watched.progress.done[EVALUATE] == pytest.approx(planned[EVALUATE])
    assert watched.progress.done[TRAIN] == pytest.approx(planned[TRAIN], rel=0.1)  # by length


def test_compilation_is_left_out_of_speeds():
    import jax
    import jax.numpy as jnp

    from moecl_jax.programs import leave_compilation_out

    leave_compilation_out()
    with reporting.working() as progress, reporting.stage("evaluating", EVALUATE, 2):
        progress._pass_time()
        before = progress._at
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T + 17.25)(jnp.ones((3, 3)))
        assert progress._at > before  # set forward by what the compilation took
