"""Second moments of the projections' inputs, against NumPy; and that nobody else pays for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import context_with, random_trees, wide
from streams import assert_bit_equal, tiny_settings
from tiny import (
    CONFIG,
    LORA,
    OPTIMIZER,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.data.batching import make_batch
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS
from moecl_jax.methods.forward import forward
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.o_lora import OLora
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.experts import FrozenFfn, lora_layer, moe_layer
from moecl_jax.models.lora import FFN_TARGETS, LayerContext
from moecl_jax.serving.session import model_of
from moecl_jax.training.moments import mean_moments, moments_step, no_moments
from moecl_jax.training.steps import init_train_state, train_step
from moecl_jax.training.trainer import Trainer

LENGTHS = [3, 9, 1, 6, 12]
WIDTH, FFN = 6, 5


def layer_problem():
    """A layer's kernels, tokens, a shared and a task expert; two of seven tokens are padding."""
    generator = np.random.default_rng(0)
    sizes = {"gate_proj": (WIDTH, FFN), "up_proj": (WIDTH, FFN), "down_proj": (FFN, WIDTH)}
    kernels = {
        name: generator.standard_normal(size).astype(np.float32) for name, size in sizes.items()
    }
    frozen = FrozenFfn(
        *(lambda x, dtype, name=name: (x @ kernels[name]).astype(dtype) for name in sizes)
    )
    experts = [
        {
            name: {
                "a": generator.standard_normal((inputs, 2)).astype(np.float32),
                "b": generator.standard_normal((2, outputs)).astype(np.float32),
            }
            for name, (inputs, outputs) in sizes.items()
        }
        for _ in range(2)
    ]
    x = generator.standard_normal((7, WIDTH)).astype(np.float32)
    membership = np.array([[1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]], np.float32)
    return frozen, kernels, x, experts, LayerContext(membership)


def activation_of(kernels, x, expert, scale):
    """act(W_g x) * W_u x with the expert's terms, in float64."""
    kernels, x, expert = wide((kernels, x, expert))
    gate, up = (
        x @ (kernels[name] + scale * expert[name]["a"] @ expert[name]["b"])
        for name in ("gate_proj", "up_proj")
    )
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("kind", ["lora", "moe"])
def test_a_layer_reports_the_products_of_real_tokens_inputs(kind):
    frozen, kernels, x, (shared, task), context = layer_problem()
    common = {"scale": 0.5, "dropout_rate": 0.0}
    if kind == "lora":
        call = functools.partial(lora_layer, frozen, x, {"expert": shared}, context, **common)
    else:
        gate = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)
        adapter = {"shared": shared, "task": task, "gate": gate}
        call = functools.partial(
            moe_layer, frozen, x, adapter, context, **common, adversarial=False
        )
    out, reports = call(second_moments=True)
    plain, without = call()
    np.testing.assert_array_equal(out, plain)
    assert set(reports) - set(without) == {"input_moment", "activation_moment"}
    real = [0, 1, 3, 4, 5]
    rows, activation = wide(x)[real], activation_of(kernels, x, shared, 0.5)[real]
    np.testing.assert_allclose(reports["input_moment"], rows.T @ rows, rtol=1e-5, atol=1e-5)
    expected = activation.T @ activation
    np.testing.assert_allclose(reports["activation_moment"], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("up_proj",), {"input_moment"}),
        (("down_proj",), {"activation_moment"}),
        (("q_proj",), set()),
    ],
)
def test_what_no_expert_adapts_is_not_measured(targets, names):
    frozen, _, x, (expert, _), context = layer_problem()
    adapter = {"expert": {name: f for name, f in expert.items() if name in targets}}
    _, reports = lora_layer(
        frozen, x, adapter, context, scale=1.0, dropout_rate=0.0, second_moments=True
    )
    assert set(reports) == names
    assert set(no_moments(CONFIG, targets)) == names | {"tokens"}


def moments_of(context, parameters, batches):
    step = jax.jit(functools.partial(moments_step, context=context), donate_argnums=0)
    sums = no_moments(CONFIG, FFN_TARGETS)
    for batch in batches:
        sums = step(sums, parameters, frozen_params(), batch)
    return mean_moments(sums, FFN_TARGETS), int(sums["tokens"])


@pytest.mark.parametrize("name", ["sequential_lora", "o_lora", "mocl", "moe_cl"])
def test_moments_do_not_depend_on_how_examples_are_laid_out(name):
    context = context_with(METHODS[name](LORA))
    parameters, examples = random_trees(context), random_examples(LENGTHS)
    batch = functools.partial(batch_of, head="lm", training=True)
    packed, tokens = moments_of(context, parameters, [batch(examples)])
    pieces = [batch(examples[:2], packed=False, batch_size=4), batch(examples[2:])]
    cut, same = moments_of(context, parameters, pieces)
    alone = [moments_of(context, parameters, [batch([e], packed=False)]) for e in examples]
    assert tokens == same == sum(count for _, count in alone)
    for target in FFN_TARGETS:
        mean = sum(found[target] * np.float64(count) for found, count in alone) / tokens
        np.testing.assert_allclose(packed[target], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cut[target], mean, rtol=1e-4, atol=1e-5)
        assert packed[target].dtype == np.float32
        assert np.linalg.eigvalsh(packed[target]).min() > -1e-4
    assert packed["gate_proj"] is packed["up_proj"]
    assert packed["down_proj"].shape == (CONFIG.layers, CONFIG.ffn_width, CONFIG.ffn_width)


def test_moments_are_those_without_dropout():
    examples = [batch_of(random_examples(LENGTHS), "lm", training=True)]
    found = []
    for dropout in (0.0, 0.5):
        context = context_with(SequentialLora(dataclasses.replace(LORA, dropout=dropout)))
        found.append(moments_of(context, random_trees(context), examples)[0])
    assert_bit_equal(*found)


@pytest.mark.parametrize("name", ["sequential_lora", "moe_cl"])
def test_training_computes_no_moments(name):
    context = context_of("lm", METHODS[name])
    parameters = random_parameters(context)
    state = init_train_state(context.method, OPTIMIZER, parameters, jax.random.key(0))
    batch = batch_of(random_examples(LENGTHS), "lm", training=True)
    step = functools.partial(train_step, context=context, optimizer=OPTIMIZER)
    shape = f"[{CONFIG.ffn_width},{CONFIG.ffn_width}]"
    training = jax.make_jaxpr(step)(state, frozen_params(), batch, jnp.float32(1e-3))
    measuring = jax.make_jaxpr(functools.partial(moments_step, context=context))(
        no_moments(CONFIG, FFN_TARGETS), parameters, frozen_params(), batch
    )
    assert shape not in str(training)
    assert shape in str(measuring)


class Measuring(OLora):
    """Asks for moments when a task begins and ends."""

    name = "measuring"
    asked: list = []  # noqa: RUF012 -- of the test that follows

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        self.traits = dataclasses.replace(self.traits, reads_moments=True)

    def begin_task(self, parameters, start):
        self.asked.append((start, parameters, start.inputs()))
        return parameters.memory

    def finish_task(self, parameters, end):
        self.asked.append((end, parameters, end.inputs()))
        return super().finish_task(parameters, end)


def alone(evaluator, index, examples):
    """Each example in a batch of its own."""
    for example in examples:
        yield make_batch(
            [example],
            evaluator.answers[index],
            evaluator.layout(1),
            task_index=index,
            class_count=len(evaluator.tasks[index].labels),
            training=True,
        )


def measured(evaluator, parameters, index, examples):
    """The moments of a task's examples, each in a batch of its own."""
    context = evaluator.context
    step = jax.jit(functools.partial(moments_step, context=context), donate_argnums=0)
    sums = no_moments(evaluator.model.sizes, FFN_TARGETS)
    for batch in alone(evaluator, index, examples):
        sums = step(sums, parameters, evaluator.model.params, batch)
    return mean_moments(sums, FFN_TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_a_method_gets_the_moments_of_its_task_s_training_examples(tmp_path, head):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=1, head=head)
    model, tasks = model_of(settings), settings.task_objects()
    Measuring.asked.clear()
    session = Trainer(model, Measuring(settings.lora, weight=0.0), settings=settings).fit(tasks)
    # It is asked once before the step is compiled, when no examples are read.
    (first, _, zero), *asked = Measuring.asked
    assert first.index == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(zero))
    assert [each.index for each, _, _ in asked] == [0, 0, 1, 1]
    keys = {tuple(jax.random.key_data(each.key).tolist()) for each, _, _ in asked}
    assert len(keys) == 4
    tokenized = session.evaluator.load()
    for each, parameters, found in asked:
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, zero)
        examples = tokenized[each.index].splits["train"]
        expected = measured(session.evaluator, parameters, each.index, examples)
        for target in FFN_TARGETS:
            scale = np.abs(expected[target]).max()
            assert scale > 1e-3
            np.testing.assert_allclose(found[target], expected[target], atol=1e-5 * scale, rtol=0)
        assert_bit_equal(each.inputs(), found)  # asked again, it is the same


def test_experts_on_attention_are_refused_where_moments_are_needed(tmp_path):
    settings = tiny_settings(tmp_path, lora__targets=("up_proj", "q_proj", "o_proj"))
    trainer = Trainer(model_of(settings), Measuring(settings.lora), settings=settings)
    message = "'measuring' needs second moments .* leave q_proj, o_proj out of lora.targets"
    with pytest.raises(UserError, match=message):
        trainer.fit(settings.task_objects())


class Pooling(MoeCl):
    """Asks for the discriminator's inputs when a task ends."""

    name = "pooling"
    asked: list = []  # noqa: RUF012 -- of the test that follows

    def finish_task(self, parameters, end):
        self.asked.append((end.index, parameters, end.reports("adversarial")))
        return super().finish_task(parameters, end)


@pytest.mark.slow
def test_a_method_gets_what_the_layers_report_of_each_training_example(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=1, lora__dropout=0.5)
    model, tasks = model_of(settings), settings.task_objects()
    Pooling.asked.clear()
    session = Trainer(model, Pooling(settings.lora), settings=settings).fit(tasks)
    evaluator = session.evaluator
    context = dataclasses.replace(evaluator.context, reported=("adversarial",))
    step = jax.jit(functools.partial(forward, context=context, seeds=None))
    assert [index for index, *_ in Pooling.asked] == [0, 1]
    for index, parameters, found in Pooling.asked:
        examples = evaluator.load()[index].splits["train"]
        expected = [
            step(parameters, model.params, batch)[1]["shared_pooled"][:, 0]
            for batch in alone(evaluator, index, examples)
        ]
        pooled = found["shared_pooled"]
        assert pooled.shape == (len(examples), model.sizes.layers, model.sizes.width)
        ours, theirs = (
            np.array(sorted(np.reshape(x, (len(x), -1)).tolist())) for x in (pooled, expected)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.ptp(ours, axis=0).min() > 1e-4
