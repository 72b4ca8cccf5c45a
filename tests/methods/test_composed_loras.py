"""O-LoRA and MoCL: formulas in values and gradients, by hand and against float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import (
    LENGTHS,
    SCALE,
    compiled_step,
    context_with,
    inputs_of,
    loss_of,
    method_with,
    random_trees,
    trees,
    wide,
)
from tiny import (
    CONFIG,
    OPTIMIZER,
    TASKS,
    batch_of,
    frozen_params,
    generator_of,
    random_examples,
)

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.kernels import dot
from moecl_jax.methods import TaskEnd
from moecl_jax.methods.added_loras import side_by_side
from moecl_jax.methods.forward import prompt_query
from moecl_jax.methods.mocl import Mocl, cosine
from moecl_jax.methods.o_lora import OLora
from moecl_jax.methods.per_task import PerTask
from moecl_jax.methods.stream import in_corner
from moecl_jax.models.experts import FrozenFfn
from moecl_jax.models.lora import LayerContext
from moecl_jax.serving.scoring import evaluation_step
from moecl_jax.training.steps import init_train_state


@pytest.fixture(scope="module")
def batch():
    return batch_of(random_examples(LENGTHS), "lm", training=True)


def change_of_weights(expert):
    """A B, `[L, I, O]` by target, in float64."""
    expert = wide(expert)
    return {name: np.einsum("lir,lro->lio", f["a"], f["b"]) for name, f in expert.items()}


# O-LoRA


@pytest.mark.parametrize(("form", "overlap"), [("absolute", 9.0), ("squared", 41.0)])
def test_o_lora_overlap_by_hand(form, overlap):
    # Rows of the earlier A are (1, 2) and (3, -1), of the current one (2, 1): products 4 and 5.
    past = {"up_proj": {"a": jnp.array([[[1.0, 3.0], [2.0, -1.0]]])}}
    own = {"up_proj": {"a": jnp.array([[[2.0], [1.0]]]), "b": jnp.ones((1, 1, 3))}}
    method = method_with(OLora, form=form)
    penalty = method.penalty(trees({"expert": own}, {"expert": past}), inputs_of())
    assert float(penalty.term) == 0.5 * overlap
    assert penalty.reported is None  # the term itself
    assert {name: float(value) for name, value in penalty.metrics.items()} == {"overlap": overlap}
    assert float(penalty.adversarial) == 0.0


@pytest.mark.parametrize("form", ["absolute", "squared"])
def test_o_lora_penalty_and_gradient_of_all_modules_and_layers(form):
    method = method_with(OLora, form=form, weight=0.3)
    parameters = random_trees(context_with(method))

    def penalty(shared):
        return method.penalty(parameters.replace(shared=shared), inputs_of()).term

    value, gradients = jax.value_and_grad(penalty)(parameters.shared)
    past, own = wide(parameters.memory["expert"]), wide(parameters.shared["expert"])
    expected = 0.0
    for name, factors in own.items():
        for layer in range(CONFIG.layers):
            overlap = past[name]["a"][layer].T @ factors["a"][layer]
            slope = np.sign(overlap) if form == "absolute" else 2 * overlap
            expected += 0.3 * (np.abs(overlap) if form == "absolute" else overlap**2).sum()
            np.testing.assert_allclose(
                gradients["expert"][name]["a"][layer],
                0.3 * past[name]["a"][layer] @ slope,
                rtol=1e-5,
                atol=1e-6,
            )
        assert not np.any(gradients["expert"][name]["b"])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_o_lora_without_earlier_loras_has_no_penalty_and_no_gradient():
    method = method_with(OLora)
    shared = random_trees(context_with(method)).shared
    memory = method.init_memory(CONFIG, TASKS)
    value, gradients = jax.value_and_grad(
        lambda shared: method.penalty(trees(shared, memory), inputs_of()).term
    )(shared)
    assert float(value) == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_o_lora_composes_by_the_sum_of_all_loras():
    method = method_with(OLora)
    parameters = random_trees(context_with(method))
    composed = method.adapter(parameters)["expert"]
    own, past = change_of_weights(parameters.shared["expert"]), wide(parameters.memory["expert"])
    for name, change in change_of_weights(composed).items():
        expected = own[name]
        for task in range(TASKS):
            slots = slice(2 * task, 2 * task + 2)
            expected = expected + np.einsum(
                "lir,lro->lio", past[name]["a"][:, :, slots], past[name]["b"][:, slots]
            )
        np.testing.assert_allclose(change, expected, rtol=1e-12)


@pytest.mark.parametrize("composed", [True, False])
def test_finishing_an_o_lora_task_changes_no_answer(composed):
    method = method_with(OLora, composed=composed)
    shared = random_trees(context_with(method)).shared
    memory = method.init_memory(CONFIG, TASKS)
    answers = []
    for index in range(TASKS):
        current = jax.tree.map(lambda leaf, i=index: leaf + 0.1 * i, shared)
        before = method.adapter(trees(current, memory))["expert"]
        end = TaskEnd(index, jax.random.key(index), CONFIG)
        finished = method.finish_task(trees(current, memory), end)
        own, memory = finished.expert, finished.memory
        fresh = method.init_shared(jax.random.key(9), CONFIG, TASKS)
        after = method.adapter(trees(fresh, memory, own))["expert"]
        for name, change in change_of_weights(before).items():
            np.testing.assert_allclose(change_of_weights(after)[name], change, rtol=1e-12)
        answers.append((own, change_of_weights(before)))
    if not composed:  # an earlier task's answers are its own LoRA's, for ever
        for own, change in answers:
            later = change_of_weights(method.adapter(trees(fresh, memory, own))["expert"])
            for name in change:
                np.testing.assert_array_equal(later[name], change[name])


def test_memory_for_more_tasks_holds_the_same_loras():
    method = method_with(Mocl)
    memory = random_trees(context_with(method)).memory
    empty = method.init_memory(CONFIG, TASKS + 2)
    longer = in_corner(memory, empty)
    assert jax.tree.map(jnp.shape, longer) == jax.tree.map(jnp.shape, empty)
    before, after = (change_of_weights(tree["expert"]) for tree in (memory, longer))
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(longer["vectors"][:TASKS], memory["vectors"])
    assert not np.any(longer["vectors"][TASKS:])


@pytest.mark.parametrize("composed", [True, False])
def test_first_o_lora_task_with_weight_0_is_per_task_tuning(batch, composed):
    own = method_with(OLora, weight=0.0, composed=composed)
    per_task, o_lora = context_with(method_with(PerTask)), context_with(own)
    plain = random_trees(per_task)
    expert = plain.expert
    active = trees({"expert": expert}, own.init_memory(CONFIG, TASKS))
    states = [
        init_train_state(chosen.method, OPTIMIZER, start, jax.random.key(0))
        for chosen, start in ((per_task, plain), (o_lora, active))
    ]
    for _ in range(3):
        losses = []
        for index, chosen in enumerate((per_task, o_lora)):
            states[index], metrics = compiled_step(
                states[index],
                frozen_params(),
                batch,
                jnp.float32(1e-2),
                context=chosen,
                optimizer=OPTIMIZER,
            )
            losses.append(float(metrics["loss"]))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    ours, theirs = states[1].active.shared["expert"], states[0].active.expert
    for left, right, start in zip(*map(jax.tree.leaves, (ours, theirs, expert)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)
        assert np.abs(right - start).min() > 0


# MoCL


def test_cosine_by_hand():
    query = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    vectors = jnp.array([[4.0, 3.0], [-6.0, -8.0], [0.0, 0.0]])
    expected = [[24 / 25, -1.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(cosine(query, vectors), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("training", "finished", "exists"),
    [
        (0.0, 0.0, [1, 0, 0, 0]),  # the untrained model
        (1.0, 0.0, [1, 0, 0, 0]),
        (0.0, 1.0, [0, 1, 0, 0]),
        (1.0, 2.0, [1, 1, 1, 0]),
        (0.0, 3.0, [0, 1, 1, 1]),
    ],
)
def test_mocl_weights_are_a_softmax_over_the_experts_that_exist(training, finished, exists):
    method = method_with(Mocl)
    memory = {"training": jnp.float32(training), "finished": jnp.float32(finished)}
    parameters = random_trees(context_with(method), **memory)
    query = np.random.default_rng(2).standard_normal((5, CONFIG.width)).astype(np.float32)
    vectors = wide(
        np.concatenate([parameters.shared["vector"][None], parameters.memory["vectors"]])
    )
    queries = wide(query)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)[None]
    shares = np.exp(queries @ vectors.T / norms) * np.array([exists], np.float64)
    weights = method.weights(parameters, query)
    np.testing.assert_allclose(weights, shares / shares.sum(axis=1, keepdims=True), atol=1e-6)


def test_mocl_match_loss_and_its_gradient():
    method = method_with(Mocl, match=0.7)
    parameters = random_trees(context_with(method))
    query = np.random.default_rng(2).standard_normal((3, CONFIG.width)).astype(np.float32)
    real = np.array([1.0, 0.0, 1.0], np.float32)  # the second place is filled up
    one = batch_of(random_examples([2, 2, 2]), "lm", training=True)
    seen = inputs_of(query=query, batch=dataclasses.replace(one, weights=real))
    value, gradients = jax.value_and_grad(
        lambda shared: method.penalty(parameters.replace(shared=shared), seen).term
    )(parameters.shared)
    q, v = wide(query)[[0, 2]], wide(parameters.shared["vector"])
    units, norm = q / np.linalg.norm(q, axis=1, keepdims=True), np.linalg.norm(v)
    match = units @ v / norm
    np.testing.assert_allclose(value, 0.7 * np.mean(1 - match), rtol=1e-6)
    slope = (units - match[:, None] * v[None] / norm) / norm
    np.testing.assert_allclose(gradients["vector"], -0.7 * slope.mean(axis=0), atol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["expert"]))


def test_mocl_gives_each_token_its_own_sum_of_loras():
    method = method_with(Mocl)
    parameters = random_trees(context_with(method), training=jnp.ones(()), finished=jnp.float32(2))
    generator = np.random.default_rng(3)
    x, query = generator.standard_normal((2, 6, CONFIG.width)).astype(np.float32)
    layer = jax.tree.map(lambda leaf: leaf[0], method.adapter(parameters, query))
    kernels = {
        name: frozen_params()["layers"]["feed_forward"][name]["kernel"][0]
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    out = ffn_output(method, kernels, x, layer)
    weights = wide(method.weights(parameters, query))
    own = change_of_weights(parameters.shared["expert"])
    past = wide(parameters.memory["expert"])
    for token in range(len(x)):
        merged = {}
        for name, kernel in wide(kernels).items():
            merged[name] = kernel + SCALE * weights[token, 0] * own[name][0]
            for task in range(TASKS):
                slots = slice(2 * task, 2 * task + 2)
                a, b = past[name]["a"][0][:, slots], past[name]["b"][0][slots]
                merged[name] += SCALE * weights[token, 1 + task] * a @ b
        hidden = wide(x[token]) @ merged["gate_proj"]
        activation = hidden / (1 + np.exp(-hidden)) * (wide(x[token]) @ merged["up_proj"])
        np.testing.assert_allclose(out[token], activation @ merged["down_proj"], atol=2e-5)


def ffn_output(method, kernels, x, layer):
    """A layer's FFN with an adapter, in evaluation."""

    def projection(name):
        return lambda values, dtype: dot(values, kernels[name], dtype)

    frozen = FrozenFfn(*(projection(name) for name in ("gate_proj", "up_proj", "down_proj")))
    context = LayerContext(jnp.ones((1, len(x))), None)
    return method.feed_forward(training=False)(frozen, x, layer, context)[0]


def test_a_prompt_s_query_is_the_mean_of_its_words_without_its_answer():
    examples = random_examples(LENGTHS)
    words = wide(frozen_params()["embedder"]["embedding"])
    expected = [words[example.prompt].mean(axis=0) for example in examples]
    mocl = context_with(method_with(Mocl))
    for training in (True, False):
        chosen = batch_of(examples, "lm", training=training)
        query = prompt_query(frozen_params(), chosen, mocl)
        np.testing.assert_allclose(query, expected, atol=1e-6)
    filled = batch_of(examples, "lm", training=True, batch_size=6)
    assert not np.any(prompt_query(frozen_params(), filled, mocl)[4:])


def test_mocl_s_loss_reaches_the_task_vector_through_the_weights_too(batch):
    """By finite differences of the instruction loss alone, along the gradient."""
    mocl = context_with(method_with(Mocl, match=0.0))
    active = random_trees(mocl, training=jnp.ones(()), finished=jnp.float32(2))
    whole = loss_of(mocl, active, batch)

    @jax.jit
    def of_vector(vector):
        shared = {**active.shared, "vector": vector}
        return whole(active.replace(shared=shared, memory={}))[0]

    vector = active.shared["vector"]
    gradient = jax.grad(of_vector)(vector)
    norm = float(jnp.linalg.norm(gradient))
    step = 0.02 * gradient / norm
    difference = (of_vector(vector + step) - of_vector(vector - step)) / 0.04
    assert norm > 1e-3
    assert float(difference) == pytest.approx(norm, rel=0.01)


def test_mocl_writes_what_one_pass_with_the_prompt_s_query_finds_most_probable():
    mocl = context_with(method_with(Mocl))
    active = random_trees(mocl, training=jnp.zeros(()), finished=jnp.float32(TASKS))
    # Experts so large, and so different, that the text depends on their weights.
    active = jax.tree.map(lambda leaf: leaf * 1.5, active)
    active.memory.update(training=jnp.zeros(()), finished=jnp.float32(TASKS))
    prompts = [example.prompt for example in random_examples(LENGTHS, seed=3)]
    generator = generator_of(mocl, frozen_params())
    written = generator.write(active, prompts, max_tokens=6, batch_size=8)
    examples = [
        TokenizedExample(prompt, 0, text) for prompt, text in zip(prompts, written, strict=True)
    ]
    layout = BatchLayout(len(examples), True, 32, 1, 6)
    one_pass = make_batch(examples, (), layout, task_index=0, class_count=0, training=False)
    _, answered, _ = evaluation_step(active, frozen_params(), one_pass, context=mocl)
    assert np.all(answered)
    other = dict(active.memory, vectors=-active.memory["vectors"])
    changed = active.replace(memory=other)
    rewritten = generator.write(changed, prompts, max_tokens=6, batch_size=8)
    assert any(np.any(a != b) for a, b in zip(written, rewritten, strict=True))


def test_two_loras_side_by_side_keep_their_order():
    first, second = (
        {"up_proj": {"a": jnp.full((1, 2, 1), n), "b": jnp.full((1, 1, 3), n)}} for n in (1.0, 2.0)
    )
    joined = side_by_side(first, second)["up_proj"]
    np.testing.assert_array_equal(joined["a"], [[[1.0, 2.0], [1.0, 2.0]]])
    np.testing.assert_array_equal(joined["b"], [[[1.0] * 3, [2.0] * 3]])
