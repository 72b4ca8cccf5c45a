"""A text's scores are the same bits whatever else is scored with it, in whatever order."""

import jax
import numpy as np
import pytest
from streams import evaluator_of, tiny_settings
from tiny import randomised

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods import mixed

LENGTHS = (3, 7, 16, 17, 24, 31, 2, 40, 64, 90, 12, 15)


def texts(count=24, longest=200, seed=0):
    """Random prompts, short ones first."""
    generator = np.random.default_rng(seed)
    lengths = [LENGTHS[place % len(LENGTHS)] for place in range(count - 1)] + [longest]
    return [TokenizedExample(generator.integers(2, 60, n).astype(np.int32), 0) for n in lengths]


def parameters_of(evaluator, index):
    """Random parameters of a task."""
    starting = evaluator.starting
    shared = starting.shared(len(evaluator.tasks))
    memory = evaluator.method.init_memory(evaluator.model.sizes, len(evaluator.tasks))
    shapes = jax.eval_shape(lambda: starting.begin(shared, index, memory=memory))
    return randomised(shapes, 0.3)


def assert_independent(scores_of, examples):
    """Fails unless each text has the scores that it has alone."""
    alone = np.concatenate([scores_of([place]) for place in range(len(examples))])
    places = np.arange(len(examples))
    generator = np.random.default_rng(1)
    orders = [places, places[::-1], generator.permutation(places), generator.permutation(places)]
    orders += [np.repeat(places, 3), places[:5], places[7:], generator.choice(places, 60)]
    for order in orders:
        found = scores_of(order.tolist())
        different = np.flatnonzero((found != alone[order]).any(axis=1))
        assert not different.size, [len(examples[order[place]].prompt) for place in different]
    assert len(np.unique(alone, axis=0)) == len(examples)


@pytest.mark.parametrize(
    ("method", "dtype", "changes"),
    [
        ("moe_cl", "float32", {}),
        ("moe_cl", "bfloat16", {}),
        ("moe_cl", "float32", {"batch__layout": "padded"}),
        ("moe_cl", "float32", {"head": "classification"}),
        ("per_task", "float32", {"lora__targets": ("q_proj", "v_proj", "gate_proj")}),
        ("mocl", "float32", {}),
        ("gain_lora", "bfloat16", {}),
    ],
    ids=str,
)
def test_scores_are_those_of_the_text_alone(tmp_path, method, dtype, changes):
    settings = tiny_settings(tmp_path, method=method, model__dtype=dtype, **changes)
    evaluator = evaluator_of(settings)
    parameters, examples = parameters_of(evaluator, 1), texts()

    def scores_of(places):
        return evaluator.scores(parameters, 1, [examples[place] for place in places]).scores

    assert_independent(scores_of, examples)
    assert evaluator._evaluation_step._cache_size() <= 3


def test_scores_of_several_tasks_in_a_batch_are_those_of_the_text_alone(tmp_path):
    evaluator = evaluator_of(tiny_settings(tmp_path, method="moe_cl", model__dtype="bfloat16"))
    parameters = mixed.together([parameters_of(evaluator, index) for index in range(3)])
    examples = texts()

    def scores_of(places):
        chosen = [examples[place] for place in places]
        own = [place % 3 for place in places]
        return evaluator.scores_of_several(parameters, [0, 1, 2], chosen, own).scores

    assert_independent(scores_of, examples)


def test_features_are_those_of_the_text_alone(tmp_path):
    evaluator = evaluator_of(tiny_settings(tmp_path, model__dtype="bfloat16"))
    examples = texts()

    def features_of(places):
        return evaluator.features([examples[place] for place in places])

    assert_independent(features_of, examples)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.long), "bfloat16"])
def test_scores_of_a_real_model_are_those_of_the_text_alone(dtype):
    from streams import ROOT

    from moecl_jax.config.file import load_settings

    config = str(ROOT / "configs" / "quickstart.py")
    settings = load_settings(config, [f"--config.model.dtype={dtype}"])
    evaluator = evaluator_of(settings)
    parameters = parameters_of(evaluator, 1)
    generator = np.random.default_rng(0)
    lengths = [*range(1, 50, 2), 60, 72, 80]
    examples = [TokenizedExample(generator.integers(0, 49152, n), 0) for n in lengths]

    def scores_of(places):
        return evaluator.scores(parameters, 1, [examples[place] for place in places]).scores

    assert_independent(scores_of, examples)
