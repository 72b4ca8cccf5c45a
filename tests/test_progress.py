"""How far work has come: speeds, the time left, and the line that says so."""

import itertools

import pytest

from moecl_jax.progress import EVALUATE, TRAIN, WRITE, Progress, Stage, cells, cut, duration


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def passes(progress: Progress, clock: Clock, seconds: float, examples: int) -> None:
    clock.now += seconds
    progress.advance(examples)


def test_the_time_left_is_that_of_each_kind_at_its_own_speed(clock):
    progress = Progress(clock)
    progress.expect({TRAIN: 100, EVALUATE: 80})
    progress.enter(Stage("task 1/1 spam, epoch 1/2", TRAIN, 100))
    passes(progress, clock, 20.0, 10)  # 2 s an example
    assert progress.seconds_left is None and progress.share_done is None
    progress.enter(Stage("evaluating spam", EVALUATE, 40))
    passes(progress, clock, 2.0, 4)  # 0.5 s an example
    assert progress.seconds_left == pytest.approx(90 * 2.0 + 76 * 0.5)
    assert progress.share_done == pytest.approx(22.0 / 240.0)
    progress.leave()
    passes(progress, clock, 30.0, 10)  # on the mean 2.5 s
    assert progress.seconds_left == pytest.approx(80 * 2.5 + 76 * 0.5)


def test_time_of_compilation_and_of_stages_without_examples_is_left_out(clock):
    progress = Progress(clock)
    progress.expect({TRAIN: 20})
    progress.enter(Stage("compiling"))
    clock.now += 1000.0
    progress.leave()
    progress.enter(Stage("spam", TRAIN, 20))
    clock.now += 300.0
    progress.leave_out(300.0)
    passes(progress, clock, 10.0, 10)
    assert progress.seconds_left == pytest.approx(10.0)
    progress.leave_out(5.0)  # more than has passed
    passes(progress, clock, 5.0, 5)
    assert progress.seconds_left == pytest.approx(5.0)


def test_examples_count_by_their_size(clock):
    """Short texts say how long long ones will take."""
    progress = Progress(clock)
    progress.expect({EVALUATE: 10 * 20.0 + 10 * 200.0})
    progress.enter(Stage("short", EVALUATE, 10, size=20.0))
    passes(progress, clock, 4.0, 10)  # 50 tokens a second
    progress.leave()
    assert progress.seconds_left == pytest.approx(2000.0 / 50.0)
    progress.enter(Stage("long", EVALUATE, 10, size=200.0))
    assert progress.examples_per_second == pytest.approx(0.25)


def test_a_resumed_run_has_its_share_and_its_own_speed(clock):
    progress = Progress(clock)
    progress.expect({TRAIN: 40}, {TRAIN: 100})
    progress.enter(Stage("spam", TRAIN, 100, done=60))
    passes(progress, clock, 10.0, 10)
    assert progress.seconds_left == pytest.approx(30.0)
    assert progress.share_done == pytest.approx(0.7)


def test_more_work_than_was_planned_is_nothing_left(clock):
    progress = Progress(clock)
    progress.expect({WRITE: 5})
    progress.enter(Stage("writing", WRITE, 5))
    passes(progress, clock, 1.0, 7)
    assert progress.seconds_left == 0.0
    assert progress.share_done == 1.0


def test_without_a_plan_the_stages_are_the_plan(clock):
    progress = Progress(clock)
    progress.enter(Stage("evaluating spam", EVALUATE, 40))
    passes(progress, clock, 5.0, 10)
    assert progress.line() == "evaluating spam 10/40, 2 examples/s, 15s left"


@pytest.fixture
def training(clock) -> Progress:
    progress = Progress(clock)
    progress.expect({TRAIN: 100, EVALUATE: 0})
    progress.enter(Stage("task 2/4 sms_spam", "rest"))
    progress.enter(Stage("epoch 2/3", TRAIN, 100))
    passes(progress, clock, 163.0, 45)
    progress.stages[-1].losses = {"loss": 0.51234, "adversarial": 1.386294}
    return progress


def test_a_wide_line_says_all(training):
    assert training.line() == (
        "45% task 2/4 sms_spam, epoch 2/3 45/100, loss 0.512 adversarial 1.39, 0.276 examples/s, "
        "3m19s left"
    )


def test_a_narrow_line_keeps_task_epoch_losses_and_time_left(training):
    line = training.line(59)
    assert line == "45% 2/4 sms_sp…, epoch 2/3, loss 0.512 adv 1.39, 3m19s left"
    assert cells(line) <= 59


def test_a_line_fits_into_any_width(training):
    for width in range(20, 130):
        assert cells(training.line(width)) <= width
    training.stages[0].label = "task 2/4 情感分类任务" + "長" * 50
    for width in range(20, 130):
        assert cells(training.line(width)) <= width


def test_the_evaluation_inside_an_epoch_is_told(training):
    training.enter(Stage("evaluating sms_spam", EVALUATE, 160))
    training.advance(40)
    assert training.line().startswith(
        "45% task 2/4 sms_spam, epoch 2/3, evaluating sms_spam 40/160"
    )
    training.leave()
    assert "evaluating" not in training.line()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (7260, "2h01m"), (1e6, "11d13h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_wide_characters_take_two_cells():
    assert [cells(text) for text in ("spam", "情感", "e\u0301")] == [4, 4, 1]
    for text, width in itertools.product(("spam and more", "情感分类任务"), range(1, 14)):
        assert cells(cut(text, width)) <= width
