"""GainLoRA: gates by hand, in gradients, and what keeps them away from earlier tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import context_with, inputs_of, loss_of, method_with, random_trees, trees, wide
from tiny import CONFIG, TASKS, batch_of, random_examples

from moecl_jax.methods import TaskEnd, TaskStart
from moecl_jax.methods.gain_lora import GainLora, current_gate, gate_weight, hidden_layer
from moecl_jax.methods.o_lora import OLora

HIDDEN = 12


def gain_lora(**options):
    return method_with(GainLora, **{"hidden": HIDDEN, **options})


def queries_of(seed, count):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, CONFIG.width)).astype(np.float32)


def start_of(index):
    return TaskStart(index, jax.random.key(index), CONFIG)


def end_of(index, queries):
    return TaskEnd(index, jax.random.key(index), CONFIG, queries=lambda: queries)


def weight_in_float64(query, layer, key):
    rows = query @ layer
    hidden = rows / (1 + np.exp(-rows))
    cosine = hidden @ key / np.linalg.norm(hidden, axis=1) / np.linalg.norm(key)
    return np.abs(2 / (1 + np.exp(-4 * cosine)) - 1)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ([1.0, 1.0], np.tanh(2.0)),  # |2 sigmoid(b) - 1| is tanh(|b| / 2)
        ([-3.0, -3.0], np.tanh(2.0)),
        ([5.0, 0.0], np.tanh(2.0 / np.sqrt(2))),
        ([1.0, -1.0], 0.0),
        ([0.0, 0.0], 0.0),  # a gate that does not exist
    ],
)
def test_gate_weight_by_hand(key, expected):
    gate = {"layer": jnp.eye(2), "key": jnp.array(key)}
    query = jnp.array([[2.0, 2.0], [0.5, 0.5], [0.0, 0.0]])
    weights = gate_weight(query, gate)
    np.testing.assert_allclose(weights, [expected, expected, 0.0], atol=1e-6)


def test_gate_weight_and_its_gradient():
    query, generator = queries_of(1, 4), np.random.default_rng(0)
    gate = {
        "layer": generator.standard_normal((CONFIG.width, HIDDEN)).astype(np.float32),
        "key": generator.standard_normal(HIDDEN).astype(np.float32),
    }
    layer, key = wide(gate["layer"]), wide(gate["key"])
    expected = weight_in_float64(wide(query), layer, key)
    np.testing.assert_allclose(gate_weight(query, gate), expected, atol=1e-6)
    slopes = jax.grad(lambda gate: gate_weight(query, gate).sum())(gate)
    step = 1e-6
    for place in [(0, 0), (3, 5), (15, 11)]:
        moved = [layer.copy(), layer.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (weight_in_float64(wide(query), each, key).sum() for each in moved)
        assert slopes["layer"][place] == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-5)
    for place in range(HIDDEN):
        moved = [key.copy(), key.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (weight_in_float64(wide(query), layer, each).sum() for each in moved)
        assert slopes["key"][place] == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-5)


def test_each_lora_has_the_weight_of_its_own_gate():
    method = gain_lora()
    parameters, query = random_trees(context_with(method)), queries_of(2, 5)
    found = method.weights(parameters, query)
    memory = wide(parameters.memory)
    change = wide(parameters.shared["change"])
    own = {
        name: memory["start"][name] + memory["free"][name] @ change[name]
        for name in ("layer", "key")
    }
    gates = [own] + [{name: memory["gates"][name][task] for name in own} for task in range(TASKS)]
    expected = [weight_in_float64(wide(query), gate["layer"], gate["key"]) for gate in gates]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-4)
    factors = method.adapter(parameters, query)["expert"]["up_proj"]
    repeated = np.repeat(np.asarray(found), method.lora.rank, axis=1)
    for layer in range(CONFIG.layers):
        np.testing.assert_array_equal(factors["weights"][layer], repeated)
    with pytest.raises(ValueError, match="by a query, and none was given"):
        method.adapter(parameters)


class Ungated(GainLora):
    """All gates fixed at 1."""

    name = "ungated"

    def weights(self, parameters, query):
        del parameters
        return jnp.ones((len(query), 1 + TASKS))


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_with_gates_fixed_at_1_it_is_the_sum_of_loras(weight):
    ours = context_with(method_with(Ungated, weight=weight, hidden=HIDDEN))
    theirs = context_with(method_with(OLora, weight=weight))
    parameters = random_trees(ours)
    same = trees({"expert": parameters.shared["expert"]}, {"expert": parameters.memory["expert"]})
    batch = batch_of(random_examples([3, 9, 1, 6]), "lm", training=True)
    (left, metrics), slopes = jax.value_and_grad(loss_of(ours, parameters, batch), has_aux=True)(
        parameters.replace(memory={})
    )
    (right, others), expected = jax.value_and_grad(loss_of(theirs, same, batch), has_aux=True)(
        same.replace(memory={})
    )
    assert float(left) == pytest.approx(float(right), rel=1e-5)
    assert float(metrics["overlap"]) == pytest.approx(float(others["overlap"]), rel=1e-6)
    for mine, other in zip(
        *(jax.tree.leaves(found.shared["expert"]) for found in (slopes, expected)), strict=True
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)


def test_a_gate_learns_from_the_loss():
    context = context_with(gain_lora(weight=0.0))
    parameters = random_trees(context)
    batch = batch_of(random_examples([3, 9, 1, 6]), "lm", training=True)
    slopes = jax.grad(loss_of(context, parameters, batch), has_aux=True)(
        parameters.replace(memory={})
    )[0]
    for leaf in jax.tree.leaves(slopes.shared["change"]):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-4


def begun(method, index, shared, memory):
    return method.begin_task(trees(shared, memory), start_of(index))


def finished_once(method, queries):
    """A first task that is finished, its gate having moved."""
    shared = method.init_shared(jax.random.key(0), CONFIG, TASKS)
    memory = begun(method, 0, shared, method.init_memory(CONFIG, TASKS))
    moved = {**shared, "change": random_change(3)}
    return trees(moved, memory), method.finish_task(trees(moved, memory), end_of(0, queries))


def random_change(seed):
    generator = np.random.default_rng(seed)
    return {
        "layer": generator.standard_normal((CONFIG.width, HIDDEN)).astype(np.float32),
        "key": generator.standard_normal(HIDDEN).astype(np.float32),
    }


def test_finishing_a_task_keeps_its_gate():
    method, queries = gain_lora(), queries_of(4, 6)
    trained, finished = finished_once(method, queries)
    before, after = (method.weights(each, queries) for each in (trained, finished))
    np.testing.assert_allclose(after[:, 1], before[:, 0], rtol=1e-6)
    assert np.abs(before[:, 0]).max() > 0.1
    assert not np.any(after[:, 0]) and not np.any(after[:, 2:])
    shapes = [jax.tree.map(jnp.shape, (each.shared, each.memory)) for each in (trained, finished)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_a_later_gate_is_0_for_the_texts_of_earlier_tasks_however_it_moves(threshold):
    method, old, new = gain_lora(threshold=threshold), queries_of(4, 5), queries_of(5, 5)
    _, finished = finished_once(method, old)
    memory = begun(method, 1, finished.shared, finished.memory)
    moved = trees({**finished.shared, "change": random_change(6)}, memory)
    gate, first = current_gate(moved), jax.tree.map(lambda leaf: leaf[0], memory["gates"])
    assert float(gate_weight(new, gate).max()) > 0.1
    reached = float(gate_weight(old, gate).max())
    hidden = [np.asarray(hidden_layer(old, each["layer"])) for each in (gate, first)]
    if threshold:
        assert reached < 1e-5
        np.testing.assert_allclose(*hidden, atol=1e-4)
        start = trees(finished.shared, memory)
        assert float(gate_weight(old, current_gate(start)).max()) < 1e-5
        np.testing.assert_array_equal(memory["start"]["layer"], first["layer"])
    else:  # nothing is kept of the first task
        assert reached > 0.1
        assert np.abs(hidden[0] - hidden[1]).max() > 0.1


def test_the_logged_gate_is_the_mean_over_real_examples():
    method, query = gain_lora(weight=0.25), queries_of(7, 3)
    parameters = random_trees(context_with(method))
    real = np.array([1.0, 0.0, 1.0], np.float32)
    batch = batch_of(random_examples([2, 2, 2]), "lm", training=True)
    penalty = method.penalty(parameters, inputs_of(query=query, batch=batch.replace(weights=real)))
    gates = gate_weight(query, current_gate(parameters))
    assert float(penalty.metrics["gate"]) == pytest.approx(float(gates[0] + gates[2]) / 2, rel=1e-6)
    assert float(penalty.term) == pytest.approx(0.25 * float(penalty.metrics["overlap"]), rel=1e-6)
