"""Examples of several tasks in one batch score as each task's alone."""

import functools

import jax
import numpy as np
import pytest
from tiny import (
    ANSWERS,
    TASKS,
    context_of,
    frozen_params,
    random_examples,
    randomised,
    starting_of,
)

from moecl_jax.data.batching import BatchLayout
from moecl_jax.methods import METHODS
from moecl_jax.methods.mixed import together
from moecl_jax.methods.moe_cl import Adversarial, Options
from moecl_jax.models.lora import FFN_TARGETS, TARGETS
from moecl_jax.serving.scoring import Scoring, evaluation_step, score, score_mixed

LENGTHS = [5, 3, 9, 1, 7, 4, 6]
OF_EXAMPLE = [2, 0, 1, 1, 0, 2, 0]
CLASSES = [3, 2, 3]
SCORING = Scoring(BatchLayout(4, True, 32, len(ANSWERS), max(map(len, ANSWERS))))


def trained(chosen):
    """What answers for each of three tasks after the last, all weights random."""
    starting = starting_of(chosen)
    stream = starting.stream(TASKS)
    for task in range(TASKS):
        active = starting.begin(stream.shared, task, memory=stream.memory)
        shapes = jax.eval_shape(lambda: active)  # noqa: B023 -- called at once
        random = jax.tree.map(lambda leaf: leaf * (1 + task / 4), randomised(shapes, 0.3))  # noqa: B023
        begun = random.replace(memory=stream.memory)
        finished = chosen.method.finish_task(begun, starting.task_end(task))
        stream = stream.after(str(task), finished, CLASSES[task])
    return [starting.task(stream, str(task), task) for task in range(TASKS)]


@pytest.mark.parametrize(
    ("name", "shared", "head"),
    [
        ("moe_cl", "moving", "lm"),
        ("moe_cl", "snapshot", "lm"),
        ("moe_cl", "snapshot", "classification"),
        ("moe_cl", "frozen", "lm"),
        ("moe_cl", "merged", "lm"),
        ("per_task", None, "classification"),
        ("o_lora", None, "lm"),
        ("sequential_lora", None, "lm"),
        ("slao", None, "lm"),
        ("n_lora", None, "lm"),
        ("inf_lora", None, "lm"),
    ],
)
def test_a_mixed_batch_scores_as_its_tasks_do(name, shared, head):
    options = Options(shared, adversarial=Adversarial("paper")) if name == "moe_cl" else None
    targets = FFN_TARGETS if METHODS[name].traits.reads_moments else TARGETS
    chosen = context_of(head, METHODS[name], options=options, targets=targets)
    step = jax.jit(functools.partial(evaluation_step, context=chosen))
    actives, examples = trained(chosen), random_examples(LENGTHS)
    answers = [ANSWERS, ANSWERS[1:], ANSWERS[::-1]] if head == "lm" else [()] * 3
    mixed = together(actives)
    found = score_mixed(
        step, mixed, frozen_params(), examples, OF_EXAMPLE, answers, SCORING, class_counts=CLASSES
    )
    spread = []
    for task in range(TASKS):
        places = [place for place, own in enumerate(OF_EXAMPLE) if own == task]
        alone = score(
            step,
            actives[task],
            frozen_params(),
            [examples[place] for place in places],
            answers[task],
            SCORING,
            class_count=CLASSES[task],
        )
        ours = found.scores[places, : CLASSES[task]]
        np.testing.assert_allclose(ours, alone.scores, atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(found.answered[places, : CLASSES[task]], alone.answered)
        for report, values in alone.reports.items():
            np.testing.assert_allclose(found.reports[report][:, places], values, atol=1e-6)
        others = (found.scores[places, CLASSES[task] :] == np.finfo(np.float32).min).all()
        assert others
        spread.append(ours.std())
    assert min(spread) > 0.01
