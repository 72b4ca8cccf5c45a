"""Formulas of the baselines, in values and gradients, against hand-worked numbers and float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streams import assert_bit_equal
from tiny import (
    ANSWERS,
    CONFIG,
    SETTINGS,
    TASK_INDEX,
    TASKS,
    batch_of,
    frozen_params,
    learner,
    random_examples,
    randomised,
    writer,
)

from moecl_jax.data.batching import Layout, make_batch
from moecl_jax.data.rehearsal import replayed, reservoir, with_response
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS, Ewc, Lwf, Mocl, OLora, PerTask, SequentialFull
from moecl_jax.methods.base import View
from moecl_jax.methods.lwf import distillation
from moecl_jax.methods.mocl import cosine
from moecl_jax.methods.o_lora import side_by_side
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.linear import as_bits, dot
from moecl_jax.models.lora import TARGETS, LayerContext
from moecl_jax.models.moe_ffn import FrozenFfn
from moecl_jax.state import Initializer
from moecl_jax.steps import (
    evaluation_step,
    forward,
    importance_step,
    init_train_state,
    instruction_loss,
    loss,
    output_logits,
    prompt_query,
    train_step,
)

LENGTHS = [3, 9, 1, 6]
SCALE = SETTINGS.scale
compiled_step = jax.jit(train_step, static_argnames="learner")


def method_of(kind, **options):
    return kind(SETTINGS, CONFIG, kind.Options(**options))


def learner_of(method, head="lm"):
    return dataclasses.replace(learner(head), method=method)


def random_trees(learner, **memory):
    """All trees random, the memory's too but for what is given; no B is zero."""
    initializer = Initializer(learner.method, 0, learner.head, len(ANSWERS))

    def begin():
        start = initializer.stream(TASKS)
        return initializer.begin(start.shared, TASK_INDEX, memory=start.memory)

    active = randomised(jax.eval_shape(begin), 0.3)
    return dataclasses.replace(active, memory={**active.memory, **memory})


def loss_of(learner, active, batch):
    """L and metrics as functions of what is trained, without a task's beginning."""
    state = init_train_state(learner, active, jax.random.key(0))
    state = dataclasses.replace(state, memory=active.memory)
    return lambda trained: loss(trained, state, frozen_params(), batch, learner)


def view(memory, **parts):
    """A view with what a penalty needs alone."""
    names = [field.name for field in dataclasses.fields(View)]
    return View(**{**dict.fromkeys(names), "memory": memory, **parts})


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def change_of_weights(expert):
    """The sum over r of A B, `[L, I, O]` by target, in float64; each r weighed if it says so."""
    expert = wide(expert)
    return {name: np.einsum("lir,lro->lio", f["a"], f["b"]) for name, f in expert.items()}


@pytest.fixture(scope="module")
def batch():
    return batch_of(random_examples(LENGTHS), "lm", training=True)


# O-LoRA


@pytest.mark.parametrize(("form", "overlap"), [("absolute", 9.0), ("squared", 41.0)])
def test_o_lora_overlap_by_hand(form, overlap):
    # Rows of the earlier A are (1, 2) and (3, -1), of the current one (2, 1): products 4 and 5.
    past = {"up_proj": {"a": jnp.array([[[1.0, 3.0], [2.0, -1.0]]])}}
    own = {"up_proj": {"a": jnp.array([[[2.0], [1.0]]]), "b": jnp.ones((1, 1, 3))}}
    method = method_of(OLora, form=form)
    term, metrics = method.penalty({"expert": own}, view({"expert": past}))
    assert float(term) == 0.5 * overlap
    assert (float(metrics["overlap"]), float(metrics["penalty"])) == (overlap, 0.5 * overlap)
    assert float(metrics["loss_adversarial"]) == 0.0


@pytest.mark.parametrize("form", ["absolute", "squared"])
def test_o_lora_penalty_and_gradient_of_all_modules_and_layers(form):
    method = method_of(OLora, form=form, weight=0.3)
    trees = random_trees(learner_of(method))

    def penalty(shared):
        return method.penalty(shared, view(trees.memory))[0]

    value, gradients = jax.value_and_grad(penalty)(trees.shared)
    past, own = wide(trees.memory["expert"]), wide(trees.shared["expert"])
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
    method = method_of(OLora)
    shared = random_trees(learner_of(method)).shared
    memory = method.init_memory(TASKS)
    value, gradients = jax.value_and_grad(lambda s: method.penalty(s, view(memory))[0])(shared)
    assert float(value) == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_o_lora_composes_by_the_sum_of_all_loras():
    method = method_of(OLora)
    trees = random_trees(learner_of(method))
    composed = method.adapter(trees.shared, trees.expert, trees.memory)["expert"]
    own, past = change_of_weights(trees.shared["expert"]), wide(trees.memory["expert"])
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
    method = method_of(OLora, composed=composed)
    shared = random_trees(learner_of(method)).shared
    memory = method.init_memory(TASKS)
    answers = []
    for index in range(TASKS):
        current = jax.tree.map(lambda leaf, i=index: leaf + 0.1 * i, shared)
        before = method.adapter(current, {}, memory)["expert"]
        _, own, memory = method.finish_task(
            current, {}, memory, index=index, key=jax.random.key(index), importance={}
        )
        fresh = method.init_shared(jax.random.key(9), TASKS)
        after = method.adapter(fresh, own, memory)["expert"]
        for name, change in change_of_weights(before).items():
            np.testing.assert_allclose(change_of_weights(after)[name], change, rtol=1e-12)
        answers.append((own, change_of_weights(before)))
    if not composed:  # an earlier task's answers are its own LoRA's, for ever
        for own, change in answers:
            later = change_of_weights(method.adapter(fresh, own, memory)["expert"])
            for name in change:
                np.testing.assert_array_equal(later[name], change[name])


def test_memory_for_more_tasks_holds_the_same_loras():
    method = method_of(Mocl)
    memory = random_trees(learner_of(method)).memory
    longer = method.extend_memory(memory, TASKS + 2)
    empty = method.init_memory(TASKS + 2)
    assert jax.tree.map(jnp.shape, longer) == jax.tree.map(jnp.shape, empty)
    before, after = (change_of_weights(tree["expert"]) for tree in (memory, longer))
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(longer["vectors"][:TASKS], memory["vectors"])
    assert not np.any(longer["vectors"][TASKS:])


@pytest.mark.parametrize("composed", [True, False])
def test_first_o_lora_task_with_weight_0_is_per_task_tuning(batch, composed):
    per_task, own = learner_of(method_of(PerTask)), method_of(OLora, weight=0.0, composed=composed)
    o_lora = learner_of(own)
    plain = random_trees(per_task)
    expert = plain.expert
    active = dataclasses.replace(
        plain, shared={"expert": expert}, expert={}, memory=own.init_memory(TASKS)
    )
    states = [
        init_train_state(chosen, start, jax.random.key(0))
        for chosen, start in ((per_task, plain), (o_lora, active))
    ]
    for _ in range(3):
        losses = []
        for index, chosen in enumerate((per_task, o_lora)):
            states[index], metrics = compiled_step(
                states[index], frozen_params(), batch, jnp.float32(1e-2), learner=chosen
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
    method = method_of(Mocl)
    memory = {"training": jnp.float32(training), "finished": jnp.float32(finished)}
    trees = random_trees(learner_of(method), **memory)
    query = np.random.default_rng(2).standard_normal((5, CONFIG.width)).astype(np.float32)
    vectors = wide(np.concatenate([trees.shared["vector"][None], trees.memory["vectors"]]))
    queries = wide(query)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)[None]
    shares = np.exp(queries @ vectors.T / norms) * np.array([exists], np.float64)
    weights = method.weights(trees.shared, trees.memory, query)
    np.testing.assert_allclose(weights, shares / shares.sum(axis=1, keepdims=True), atol=1e-6)


def test_mocl_match_loss_and_its_gradient():
    method = method_of(Mocl, match=0.7)
    trees = random_trees(learner_of(method))
    query = np.random.default_rng(2).standard_normal((3, CONFIG.width)).astype(np.float32)
    real = np.array([1.0, 0.0, 1.0], np.float32)  # the second place is filled up
    one = batch_of(random_examples([2, 2, 2]), "lm", training=True)
    seen = view(trees.memory, query=query, batch=dataclasses.replace(one, weights=real))
    value, gradients = jax.value_and_grad(lambda s: method.penalty(s, seen)[0])(trees.shared)
    q, v = wide(query)[[0, 2]], wide(trees.shared["vector"])
    units, norm = q / np.linalg.norm(q, axis=1, keepdims=True), np.linalg.norm(v)
    match = units @ v / norm
    np.testing.assert_allclose(value, 0.7 * np.mean(1 - match), rtol=1e-6)
    slope = (units - match[:, None] * v[None] / norm) / norm
    np.testing.assert_allclose(gradients["vector"], -0.7 * slope.mean(axis=0), atol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["expert"]))


def test_mocl_gives_each_token_its_own_sum_of_loras():
    method = method_of(Mocl)
    trees = random_trees(learner_of(method), training=jnp.ones(()), finished=jnp.float32(2))
    generator = np.random.default_rng(3)
    x, query = generator.standard_normal((2, 6, CONFIG.width)).astype(np.float32)
    layer = jax.tree.map(
        lambda leaf: leaf[0], method.adapter(trees.shared, {}, trees.memory, query)
    )
    kernels = {
        name: frozen_params()["layers"]["feed_forward"][name]["kernel"][0]
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    out = ffn_output(method, kernels, x, layer)
    weights = wide(method.weights(trees.shared, trees.memory, query))
    own = change_of_weights(trees.shared["expert"])
    past = wide(trees.memory["expert"])
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
    mocl = learner_of(method_of(Mocl))
    for training in (True, False):
        chosen = batch_of(examples, "lm", training=training)
        query = prompt_query(frozen_params(), chosen, mocl)
        np.testing.assert_allclose(query, expected, atol=1e-6)
    filled = batch_of(examples, "lm", training=True, batch_size=6)
    assert not np.any(prompt_query(frozen_params(), filled, mocl)[4:])


def test_mocl_s_loss_reaches_the_task_vector_through_the_weights_too(batch):
    """By finite differences of the instruction loss alone, along the gradient."""
    mocl = learner_of(method_of(Mocl, match=0.0))
    active = random_trees(mocl, training=jnp.ones(()), finished=jnp.float32(2))
    whole = loss_of(mocl, active, batch)

    @jax.jit
    def of_vector(vector):
        shared = {**active.shared, "vector": vector}
        return whole(dataclasses.replace(active, shared=shared, memory={}))[0]

    vector = active.shared["vector"]
    gradient = jax.grad(of_vector)(vector)
    norm = float(jnp.linalg.norm(gradient))
    step = 0.02 * gradient / norm
    difference = (of_vector(vector + step) - of_vector(vector - step)) / 0.04
    assert norm > 1e-3
    assert float(difference) == pytest.approx(norm, rel=0.01)


def test_mocl_writes_what_one_pass_with_the_prompt_s_query_finds_most_probable():
    mocl = learner_of(method_of(Mocl))
    active = random_trees(mocl, training=jnp.zeros(()), finished=jnp.float32(TASKS))
    # Experts so large, and so different, that the text depends on their weights.
    active = jax.tree.map(lambda leaf: leaf * 1.5, active)
    active.memory.update(training=jnp.zeros(()), finished=jnp.float32(TASKS))
    prompts = [example.prompt for example in random_examples(LENGTHS, seed=3)]
    written = writer(mocl, frozen_params()).write(active, prompts, max_tokens=6, batch_size=8)
    examples = [
        TokenizedExample(prompt, 0, text) for prompt, text in zip(prompts, written, strict=True)
    ]
    layout = Layout(len(examples), True, 32, 1, 6)
    one_pass = make_batch(examples, (), layout, task_index=0, class_count=0, training=False)
    _, answered, _ = evaluation_step(active, frozen_params(), one_pass, learner=mocl)
    assert np.all(answered)
    other = dict(active.memory, vectors=-active.memory["vectors"])
    changed = dataclasses.replace(active, memory=other)
    rewritten = writer(mocl, frozen_params()).write(changed, prompts, max_tokens=6, batch_size=8)
    assert any(np.any(a != b) for a, b in zip(written, rewritten, strict=True))


# EWC


def test_ewc_penalty_and_gradient_by_hand():
    method = method_of(Ewc, weight=2.0)
    memory = {"fisher": {"x": jnp.array([3.0, 0.5])}, "anchor": {"x": jnp.array([0.0, 4.0])}}
    shared = {"x": jnp.array([1.0, 2.0])}
    value, gradient = jax.value_and_grad(lambda s: method.penalty(s, view(memory))[0])(shared)
    assert float(value) == 0.5 * 2.0 * (3.0 * 1.0 + 0.5 * 4.0)
    np.testing.assert_array_equal(gradient["x"], [6.0, -2.0])
    at_anchor = jax.grad(lambda s: method.penalty(s, view(memory))[0])(memory["anchor"])
    assert not np.any(at_anchor["x"])


def test_ewc_fisher_information_runs_over_the_tasks():
    method = method_of(Ewc, decay=0.5)
    memory = {"fisher": {"x": jnp.array([4.0])}, "anchor": {"x": jnp.array([0.0])}}
    shared = {"x": jnp.array([7.0])}
    carried, _, memory = method.finish_task(
        shared, {}, memory, index=1, key=jax.random.key(0), importance={"x": jnp.array([3.0])}
    )
    assert carried is shared
    assert float(memory["fisher"]["x"][0]) == 0.5 * 4.0 + 3.0
    assert float(memory["anchor"]["x"][0]) == 7.0


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_importance_is_the_squared_slope_of_an_example_s_log_likelihood(head):
    """Against finite differences of the log-probability that the evaluation finds."""
    ewc = learner_of(method_of(Ewc), head)
    active = random_trees(ewc)
    for example in random_examples([5, 3, 4])[1:]:  # labels 1 and 2, of several tokens
        alone = batch_of([example], head, training=True)
        importance = importance_step(active, frozen_params(), alone, learner=ewc)
        asked = batch_of([example], head, training=False)

        @jax.jit
        def log_probability(shared, asked=asked, label=example.label):
            chosen = dataclasses.replace(active, shared=shared)
            scores, _, _ = evaluation_step(chosen, frozen_params(), asked, learner=ewc)
            return scores[0, label] if head == "lm" else jax.nn.log_softmax(scores[0])[label]

        for name, factor, place in (
            ("gate_proj", "a", (0, 2, 1)),
            ("up_proj", "b", (1, 1, 3)),
            ("down_proj", "b", (1, 0, 7)),
        ):
            ends = []
            for step in (0.01, -0.01):
                moved = jax.tree.map(lambda leaf: leaf, active.shared)
                leaf = moved["expert"][name][factor]
                moved["expert"][name][factor] = leaf.at[place].add(step)
                ends.append(float(log_probability(moved)))
            slope = (ends[0] - ends[1]) / 0.02
            got = float(importance["expert"][name][factor][place])
            assert got == pytest.approx(slope**2, rel=0.02, abs=1e-6), (name, factor)


# LwF


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_and_its_gradient(temperature):
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(scale=3, size=(2, 2, 1, 3, 5)).astype(np.float32)
    mask = np.array([[[1, 1, 0]], [[1, 0, 0]]], np.float32)

    def shares(logits):
        exponents = np.exp(wide(logits) / temperature)
        return exponents / exponents.sum(axis=-1, keepdims=True)

    taught, learnt = shares(teacher), shares(student)
    divergence = (taught * np.log(taught / learnt)).sum(axis=-1)
    value, gradient = jax.value_and_grad(distillation, argnums=1)(
        teacher, student, mask, temperature
    )
    expected = temperature**2 * (divergence * mask).sum() / 3
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slope = temperature * (learnt - taught) * wide(mask)[..., None] / 3
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


def test_distillation_by_hand():
    # softmax (1/2, 1/2) of the teacher and (4/5, 1/5) of the student at T = 2.
    teacher, student = jnp.zeros((1, 1, 1, 2)), 2 * jnp.log(jnp.array([[[[4.0, 1.0]]]]))
    value = distillation(teacher, student, jnp.ones((1, 1, 1)), 2.0)
    assert float(value) == pytest.approx(4 * 0.5 * (np.log(5 / 8) + np.log(5 / 2)), rel=1e-6)


def test_lwf_s_first_task_has_no_teacher(batch):
    lwf, plain = learner_of(method_of(Lwf)), learner_of(method_of(SequentialLora))
    active = random_trees(lwf, finished=jnp.zeros(()))
    trained = dataclasses.replace(active, memory={})
    gradients, metrics = jax.grad(loss_of(lwf, active, batch), has_aux=True)(trained)
    expected, _ = jax.grad(loss_of(plain, trained, batch), has_aux=True)(trained)
    assert float(metrics["loss"]) == float(metrics["loss_instruction"])  # the term is exactly 0
    assert_bit_equal(gradients, expected)


def test_lwf_s_teacher_is_the_model_before_the_task(batch):
    lwf = learner_of(method_of(Lwf, weight=0.4, temperature=3.0))
    active = random_trees(lwf, finished=jnp.ones(()))
    trained = dataclasses.replace(active, memory={})
    _, metrics = loss_of(lwf, active, batch)(trained)
    logits = []
    for shared in (active.memory["teacher"], active.shared):
        chosen = dataclasses.replace(active, shared=shared)
        hidden, _ = forward(chosen, frozen_params(), batch, lwf, seeds=None)
        logits.append(output_logits(chosen, hidden, frozen_params(), batch, lwf))
    expected = 0.4 * float(distillation(*logits, batch.answer_mask, 3.0))
    assert expected > 1e-3
    term = float(metrics["loss"] - metrics["loss_instruction"])
    assert term == pytest.approx(expected, abs=2e-6)

    state = init_train_state(lwf, active, jax.random.key(0))
    assert_bit_equal(state.memory["teacher"], active.shared)
    _, metrics = loss(state.active, state, frozen_params(), batch, lwf)
    assert float(metrics["loss"] - metrics["loss_instruction"]) == pytest.approx(0, abs=1e-6)
    _, _, memory = lwf.method.finish_task(
        active.shared, {}, state.memory, index=0, key=jax.random.key(0), importance={}
    )
    assert float(memory["finished"]) == 2.0


# Replay


def test_the_reservoir_is_a_uniform_sample():
    counts, capacity, draws = [4, 9, 7], 5, 3000
    places = [(task, place) for task, count in enumerate(counts) for place in range(count)]
    seen = dict.fromkeys(places, 0)
    for seed in range(draws):
        kept = reservoir(seed, counts, capacity)
        assert len(set(kept)) == capacity
        for place in kept:
            seen[place] += 1
    share = capacity / len(places)
    deviation = np.sqrt(draws * share * (1 - share))
    scores = (np.array(list(seen.values())) - draws * share) / deviation
    assert np.abs(scores).max() < 4  # of 20 normal numbers; 1 in 800 that one is larger
    # Counts sum to a constant, which takes a degree of freedom: 19 on average, deviation 6.2.
    assert 3 < (scores**2).sum() * 19 / 20 < 44


def test_the_reservoir_of_earlier_tasks_does_not_depend_on_later_ones():
    for seed in range(20):
        before = reservoir(seed, [10, 8], 6)
        after = reservoir(seed, [10, 8, 12], 6)
        assert reservoir(seed, [10, 8], 6) == before
        assert {place for place in after if place[0] < 2} <= set(before)
        for ours, theirs in zip(before, after, strict=True):  # a place is kept or taken
            assert theirs == ours or theirs[0] == 2
    assert reservoir(0, [2, 1], 6) == [(0, 0), (0, 1), (1, 0)]
    assert reservoir(0, [5], 0) == []
    assert reservoir(0, [], 4) == []


def test_what_is_replayed_depends_on_seed_task_and_step_alone():
    drawn = {
        (seed, task, step): tuple(replayed(seed, task, step, 64, 4))
        for seed in range(2)
        for task in range(3)
        for step in range(4)
    }
    assert len(set(drawn.values())) == len(drawn)
    for (seed, task, step), places in drawn.items():
        assert tuple(replayed(seed, task, step, 64, 4)) == places
        assert len(set(places)) == 4 and min(places) >= 0 and max(places) < 64
    assert sorted(replayed(0, 1, 2, 3, 4)) == [0, 1, 2]  # all of a memory that holds fewer
    assert len(replayed(0, 1, 2, 0, 4)) == 0
    assert len(replayed(0, 1, 2, 9, 0)) == 0


def test_examples_of_several_tasks_bring_their_own_answers():
    example, free = (
        random_examples([4, 3])[1],
        TokenizedExample(np.ones(2, np.int32), 0, ANSWERS[0]),
    )
    np.testing.assert_array_equal(with_response(example, ANSWERS).response, ANSWERS[1])
    assert with_response(example, ()) is example
    assert with_response(free, ANSWERS) is free
    layout = Layout(2, True, 32, 3, 4)
    own, mixed = (
        make_batch(examples, ANSWERS, layout, task_index=1, class_count=3, training=True)
        for examples in ([example], [with_response(example, ANSWERS)])
    )
    assert_bit_equal(own, mixed)


# All weights


def test_a_step_on_all_weights_is_adamw_s_own(batch):
    full = learner_of(method_of(SequentialFull))
    frozen, active = frozen_params(), random_trees(full)
    shapes = jax.tree.map(jnp.zeros_like, active.shared)
    assert jax.tree.map(jnp.shape, shapes["difference"]) == jax.tree.map(jnp.shape, frozen)
    active = dataclasses.replace(active, shared=shapes)

    def plain_loss(parameters):
        hidden, _ = forward(active, parameters, batch, full, seeds=None)
        return instruction_loss(output_logits(active, hidden, parameters, batch, full), batch, full)

    adam, weights = optax.adamw(1e-3, weight_decay=0.0), frozen
    moments = adam.init(weights)
    state = init_train_state(full, active, jax.random.key(0))
    for step in range(3):
        updates, moments = adam.update(jax.grad(plain_loss)(weights), moments, weights)
        weights = optax.apply_updates(weights, updates)
        state, _ = train_step(state, frozen, batch, jnp.float32(1e-3), learner=full)
        ours = full.method.parameters(frozen, state.active.shared)
        if step == 0:
            assert_bit_equal(ours, weights)
        for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(weights), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)
    for before, after in zip(jax.tree.leaves(frozen), jax.tree.leaves(ours), strict=True):
        assert np.any(before != after)


def test_steps_smaller_than_bfloat16_s_rounding_are_not_lost():
    method = method_of(SequentialFull)
    ones = jnp.ones((3,), jnp.bfloat16)
    for loaded in (ones, as_bits({"x": ones})["x"]):
        for difference, expected in ((1e-3, 1.0), (8e-3, 1.0078125)):
            shared = {"difference": {"x": jnp.full((3,), difference)}}
            weights = method.parameters({"x": loaded}, shared)["x"]
            assert weights.dtype == jnp.bfloat16
            np.testing.assert_array_equal(weights.astype(jnp.float32), [expected] * 3)


# All methods


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("joint", "replay")])
def test_each_method_s_loss_falls_and_its_memory_stays(name):
    """Joint training and replay have the step of sequential LoRA."""
    method = METHODS[name](dataclasses.replace(SETTINGS, targets=TARGETS), CONFIG)
    chosen = learner_of(method)
    initializer = Initializer(method, 0, "lm", len(ANSWERS))
    stream = initializer.stream(TASKS)
    state = init_train_state(
        chosen, initializer.begin(stream.shared, 0, memory=stream.memory), jax.random.key(0)
    )
    memory, batch = state.memory, batch_of(random_examples(LENGTHS), "lm", training=True)
    losses = []
    for _ in range(8):
        state, metrics = compiled_step(
            state, frozen_params(), batch, jnp.float32(5e-2), learner=chosen
        )
        losses.append(float(metrics["loss_instruction"]))
    assert losses[-1] < 0.9 * losses[0]
    assert_bit_equal(state.memory, memory)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("o_lora", {"weight": -1.0}, "weight = -1.0 must be at least 0"),
        ("o_lora", {"form": "cubed"}, "form = 'cubed' is not one of absolute, squared"),
        ("mocl", {"match": -1.0}, "match = -1.0 must be at least 0"),
        ("replay", {"memory": -1}, "memory = -1 must be at least 0"),
        ("ewc", {"decay": 2.0}, "decay = 2.0 must be between 0 and 1"),
        ("ewc", {"examples": 0}, "examples = 0 must be at least 1"),
        ("lwf", {"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ],
)
def test_options_out_of_range_are_named(name, option, message):
    with pytest.raises(UserError, match=message):
        METHODS[name].Options(**option)


def test_two_loras_side_by_side_keep_their_order():
    first, second = (
        {"up_proj": {"a": jnp.full((1, 2, 1), n), "b": jnp.full((1, 1, 3), n)}} for n in (1.0, 2.0)
    )
    joined = side_by_side(first, second)["up_proj"]
    np.testing.assert_array_equal(joined["a"], [[[1.0, 2.0], [1.0, 2.0]]])
    np.testing.assert_array_equal(joined["b"], [[[1.0] * 3, [2.0] * 3]])
