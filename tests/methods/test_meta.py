"""Experts that start from a meta-learned value: its equations, its limits, and whole streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streams import assert_bit_equal, logged, restored, stop_after, tiny_settings
from tiny import CONFIG, batch_of, context_of, frozen_params, random_examples, random_parameters

from moecl_jax.errors import UserError
from moecl_jax.methods.forward import forward, instruction_loss, output_logits
from moecl_jax.methods.meta import KINDS, Meta, adapted, outer_gradient
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.per_task import PerTask
from moecl_jax.training.resuming import may_be_without_data
from moecl_jax.training.trainer import train

LEARNED = tuple(kind for kind in KINDS if kind != "none")
STEPS = 6  # of a task: one epoch of 48 examples, 8 a batch
META = {"meta__support": 24, "meta__inner_steps": 2, "meta__outer_steps": 6}


def parabola(theta, batch):
    """a/2 (theta - c)^2, whose gradient is a (theta - c) and whose curvature is a."""
    return batch["a"] / 2 * (theta - batch["c"]) ** 2


# From 1 by inner rate 1/2: 1 - 1/2 (1 - 0) = 1/2, then 1/2 - 1/2 (1/2 - 2) = 5/4. There the outer
# loss has the gradient 2 (5/4 - 2) = -3/2; each inner step passes on 1 - 1/2 of it.
BATCHES = {"a": jnp.array([1.0, 1.0, 2.0]), "c": jnp.array([0.0, 2.0, 2.0])}


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [("fomaml", 3, -3 / 2), ("maml", 3, -3 / 8), ("reptile", 2, 1 - 5 / 4)],
)
def test_the_outer_gradient_equals_one_worked_out_by_hand(kind, count, expected):
    batches = jax.tree.map(lambda leaf: leaf[:count] if kind == "reptile" else leaf, BATCHES)
    theta = jnp.float32(1.0)
    assert adapted(theta, parabola, jax.tree.map(lambda x: x[:2], BATCHES), 0.5) == 5 / 4
    assert outer_gradient(kind, theta, parabola, batches, 0.5) == pytest.approx(expected)
    section = Meta(kind, support=1, inner_steps=2, inner_rate=0.5, learning_rate=0.1)
    updated = section.update(theta, parabola, batches)
    assert updated == pytest.approx(1 - 0.1 * expected)


@pytest.mark.slow
def test_maml_goes_through_the_decoder_s_inner_steps():
    context, frozen = context_of("lm", PerTask), frozen_params()
    parameters = random_parameters(context)
    examples = [random_examples([3, 5, 4], seed) for seed in range(2)]
    batches = [batch_of(each, "lm", training=True) for each in examples]
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def loss(own, batch):
        chosen = parameters.replace(expert=own)
        hidden, _ = forward(chosen, frozen, batch, context, seeds=None)
        logits = output_logits(chosen, hidden, frozen, batch, context)
        return instruction_loss(logits, batch, context)

    @jax.jit
    def after(own):
        return loss(adapted(own, loss, jax.tree.map(lambda x: x[:1], stack), 1.0), batches[1])

    theta = parameters.expert
    gradient = jax.jit(lambda own: outer_gradient("maml", own, loss, stack, 1.0))(theta)
    first_order = jax.jit(lambda own: outer_gradient("fomaml", own, loss, stack, 1.0))(theta)
    keys = jax.random.split(jax.random.key(5), len(jax.tree.leaves(theta)))
    direction = jax.tree.unflatten(
        jax.tree.structure(theta),
        [
            jax.random.normal(key, leaf.shape)
            for key, leaf in zip(keys, jax.tree.leaves(theta), strict=True)
        ],
    )

    def along(tree):
        return sum(map(jnp.vdot, jax.tree.leaves(tree), jax.tree.leaves(direction)))

    step = 3e-3
    ahead, behind = (
        after(jax.tree.map(lambda p, d, sign=sign: p + sign * step * d, theta, direction))
        for sign in (1, -1)
    )
    slope = float(ahead - behind) / (2 * step)
    assert float(along(gradient)) == pytest.approx(slope, rel=0.03)
    assert abs(float(along(first_order)) - slope) > 0.1 * abs(slope)


@pytest.mark.parametrize("method", [PerTask, MoeCl])
def test_nothing_is_kept_unless_it_is_allowed(method):
    with pytest.raises(UserError, match=r"meta.kind = 'reptile' learns .* meta.support = 0 keeps"):
        method(meta=Meta("reptile"))
    off = method()
    assert not off.examples.reads_past
    assert off.examples.stored({}, [], 0) == []
    assert "meta" not in off.init_memory(CONFIG, 3)
    on = method(meta=Meta("reptile", support=8))
    assert on.examples.reads_past and on.examples.joined == 0
    assert may_be_without_data(on, store=None) == []


@pytest.mark.parametrize("method", [PerTask, MoeCl])
def test_a_learned_value_is_used_and_forgotten(method):
    made = method(context_of("lm").method.lora, meta=Meta("reptile", support=8))
    memory = made.init_memory(CONFIG, 3)
    fresh = made.init_expert(jax.random.key(0), CONFIG)
    assert_bit_equal(made.start_expert(fresh, memory), fresh)
    other = jax.tree.map(lambda leaf: leaf + 1, fresh)
    held = {**memory, "meta": {"expert": other, "held": jnp.ones((), bool)}}
    assert_bit_equal(made.start_expert(fresh, held), other)
    without = made.without_task(held, 0)
    assert_bit_equal(without, memory)
    assert_bit_equal(made.start_expert(fresh, without), fresh)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains a method on two tasks, once for all tests; gives its settings and folder."""

    @functools.cache
    def trained(method, kind, head="lm", **changes):
        folder = tmp_path_factory.mktemp(kind)
        settings = settings_of(folder, method, kind, head=head, **changes)
        train(settings, folder / "run")
        return settings, folder / "run"

    return trained


def settings_of(folder, method, kind, **changes):
    values = {"tasks": ("two", "five"), "epochs": 1, **META, **changes}
    return tiny_settings(folder, method=method, meta__kind=kind, **values)


def test_without_inner_steps_experts_start_with_b_0(run):
    plain = run("per_task", "none")
    without = run("per_task", "fomaml", meta__inner_steps=0)
    assert logged(plain[1]) == logged(without[1])
    (_, ours, _), (_, theirs, _) = restored(plain[1]), restored(without[1])
    assert_bit_equal(dict(ours.finished), dict(theirs.finished))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "head"),
    [
        ("per_task", "reptile", "lm"),
        pytest.param("moe_cl", "fomaml", "classification", marks=pytest.mark.slow),
    ],
)
def test_the_second_task_starts_from_what_was_learned_on_the_first(run, method, kind, head):
    (_, plain), (_, learned) = run(method, "none", head), run(method, kind, head)
    assert logged(plain)[:STEPS] == logged(learned)[:STEPS]
    assert logged(plain)[STEPS:] != logged(learned)[STEPS:]
    evaluator, state, _ = restored(learned)
    kept = state.memory["meta"]
    assert kept["held"]
    start = evaluator.starting.begin(state.shared, 2, memory=state.memory).expert
    assert_bit_equal(jax.tree.map(np.asarray, start), kept["expert"])
    for factors in kept["expert"].values():
        assert np.isfinite(factors["b"]).all() and np.any(factors["b"] != 0)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run, tmp_path, monkeypatch):
    settings, whole = run("per_task", "reptile")
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 5)  # inside the second task
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    train(settings, tmp_path / "run")
    assert logged(tmp_path / "run") == logged(whole)
    (_, ours, _), (_, theirs, _) = restored(whole), restored(tmp_path / "run")
    assert_bit_equal(ours.memory, theirs.memory)
    assert_bit_equal(dict(ours.finished), dict(theirs.finished))
