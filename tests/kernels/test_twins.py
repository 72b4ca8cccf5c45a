"""Every kernel against its plain twin, in values and gradients; and a whole model on either."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CONFIG,
    OPTIMIZER,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
    with_architecture,
)

from moecl_jax import kernels
from moecl_jax.errors import UserError
from moecl_jax.kernels.dispatch import kernel
from moecl_jax.models.lora import TARGETS
from moecl_jax.training.steps import init_train_state, loss

# Largest error, as a share of the largest number. Bfloat16 has steps of 2^-8, and both forms round
# at places of their own.
BOUNDS = {"float32": 1e-5, "bfloat16": 2.0**-6}
N, WIDTH, RANK = 6, 64, 3
# Two examples of three tokens and one, and two tokens of padding.
MEMBERSHIP = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]], np.float32)


def draw(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape), dtype)


def factors(**more):
    return {"a": draw(WIDTH, RANK), "b": draw(RANK, 5), **more}


def quantized(dtype, bits):
    return kernels.quantize(draw(WIDTH, 5, dtype=dtype), bits)


def causal_mask(slots):
    """A text of all slots but the last three, which are another."""
    segments = (np.arange(slots) >= slots - 3)[None]
    mask = np.tril(np.ones((slots, slots), bool)) & (segments == segments.T)
    return jnp.asarray(np.stack([mask, np.tril(np.ones_like(mask))]))[:, None]


def attention(dtype, slots):
    """Query, key and value of two rows; two query heads share a head of keys."""
    states = [draw(2, slots, heads, 8, dtype=dtype, seed=heads) for heads in (4, 2, 2)]
    return states, {"mask": causal_mask(slots), "scale": 0.3, "causal": True}


# Cases of each kernel: a function of the dtype that gives what is differentiated and the rest.
CASES = {
    "dense": [
        lambda dtype: ([draw(WIDTH, 5)], {"dtype": dtype}),
        lambda dtype: ([], {"kernel": quantized("float32", 8), "dtype": dtype}),
        lambda dtype: ([], {"kernel": kernels.as_bits(quantized("bfloat16", 4)), "dtype": dtype}),
    ],
    "dot": [
        lambda dtype: ([draw(N, WIDTH, dtype=dtype), draw(WIDTH, 5)], {}),
        lambda dtype: ([draw(N, 5, dtype=dtype), draw(5, WIDTH)], {"dtype": jnp.float32}),
        lambda dtype: ([draw(N, WIDTH, dtype=dtype), draw(5, WIDTH)], {"kernel_axis": -1}),
        lambda dtype: ([draw(2, N, 8, dtype=dtype), draw(2, 8, 4, dtype=dtype)], {}),
        lambda dtype: ([draw(N, WIDTH, dtype=dtype)], {"kernel": quantized(dtype, 4)}),
    ],
    "affine": [
        lambda dtype: ([draw(N, WIDTH, dtype=dtype), draw(WIDTH, 5), draw(5)], {}),
        lambda dtype: ([draw(N, WIDTH, dtype=dtype)], {"kernel": quantized(dtype, 8)}),
        lambda dtype: (
            [draw(N, WIDTH, dtype=dtype)],
            kernels.as_bits(
                {"kernel": draw(WIDTH, 5, dtype="bfloat16"), "bias": draw(5, dtype="bfloat16")}
            )
            | {"dtype": jnp.float32},
        ),
    ],
    "embedding": [
        lambda dtype: ([draw(9, 4, dtype=dtype)], {"tokens": jnp.array([3, 8, 3])}),
        lambda dtype: (
            [],
            {"table": kernels.as_bits(draw(9, 4, dtype=dtype)), "tokens": jnp.array([3, 8, 3])},
        ),
    ],
    "vocabulary_logits": [
        lambda dtype: ([draw(N, WIDTH, dtype=dtype), draw(24, WIDTH, dtype=dtype)], {}),
        lambda dtype: (
            [draw(N, WIDTH, dtype=dtype)],
            {"table": kernels.as_bits(draw(24, WIDTH, dtype=dtype))},
        ),
    ],
    "to_rank": [lambda dtype: ([draw(N, WIDTH, dtype=dtype), factors()], {})],
    "from_rank": [
        lambda dtype: (
            [draw(N, RANK), factors(weights=draw(N, RANK))],
            {"scale": 2.0, "weight": None, "dtype": dtype},
        ),
    ],
    "low_rank": [
        lambda dtype: ([draw(N, WIDTH, dtype=dtype), factors()], {"scale": 2.0}),
        lambda dtype: (
            [draw(N, WIDTH, dtype=dtype), factors(weights=draw(N, RANK))],
            {"scale": 2.0, "weight": draw(N, 1)},
        ),
    ],
    "mean_over_tokens": [
        lambda dtype: ([draw(N, WIDTH, dtype=dtype)], {"membership": jnp.asarray(MEMBERSHIP)}),
        lambda dtype: ([draw(N, 4, dtype=dtype)], {"membership": jnp.zeros((2, N))}),
    ],
    "gated_activation": [
        lambda dtype, act=act: (
            [draw(N, 5), draw(N, 5, seed=1)],
            {"activation": act, "dtype": dtype},
        )
        for act in (jax.nn.silu, functools.partial(jax.nn.gelu, approximate=True))
    ],
    # Gradients of weights whose sum is 1.
    "weighted_sum": [
        lambda dtype, experts=experts: (
            [
                [draw(N, WIDTH, dtype=dtype, seed=e).astype(jnp.float32) for e in range(experts)],
                Softmax(draw(N, experts)),
            ],
            {},
        )
        for experts in (1, 2, 3)
    ],
    "dropout": [
        lambda dtype, rate=rate: (
            [draw(40, WIDTH, dtype=dtype)],
            {"rate": rate, "seed": jnp.uint32(3)},
        )
        for rate in (0.05, 0.5, 0.0)
    ]
    + [
        lambda dtype: (
            [draw(40, WIDTH, dtype=dtype)],
            {
                "rate": 0.5,
                "seed": jnp.uint32(3),
                "places": jnp.arange(40, dtype=jnp.uint32)[::-1] << 16,
            },
        )
    ]
    + [lambda dtype: ([draw(N, 4, dtype=dtype)], {"rate": 0.5, "seed": None})],
    "save_for_backward": [
        lambda dtype: ([draw(N, 5)], {"dtype": dtype}),
        lambda dtype: ([draw(N, 5, dtype=dtype)], {"dtype": dtype}),
    ],
    "rearranged": [
        lambda dtype: (
            [draw(4, 5, dtype=dtype)],
            {"source": jnp.array([2, 4, 0, 3, 4]), "back": jnp.array([2, 5, 0, 3])},
        )
    ],
    # Rows that are taken whole, in halves, and of an odd length with many keys.
    "attention": [functools.partial(attention, slots=slots) for slots in (24, 64, 257)],
}


@dataclasses.dataclass
class Softmax:
    """Stands for the softmax of scores among the differentiated arguments."""

    scores: jax.Array


jax.tree_util.register_dataclass(Softmax, data_fields=["scores"], meta_fields=[])


def values_and_gradients(function, differentiated, others):
    """Of a function of positional and named arguments, for a random cotangent."""

    def run(differentiated):
        plain = jax.tree.map(
            lambda leaf: jax.nn.softmax(leaf.scores) if isinstance(leaf, Softmax) else leaf,
            differentiated,
            is_leaf=lambda leaf: isinstance(leaf, Softmax),
        )
        return function(*plain, **others)

    @jax.jit
    def both(differentiated):
        out, pull = jax.vjp(run, differentiated)
        return out, pull(draw(*out.shape, seed=7).astype(out.dtype))

    return both(differentiated)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_a_kernel_is_its_plain_twin_in_values_and_gradients(name, dtype, backend, monkeypatch):
    """On a CPU some are computed in another way than on an accelerator; either runs here."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    forms = kernels.KERNELS[name]
    for case in CASES[name]:
        given = case(dtype)
        found = values_and_gradients(forms.fast, *given)
        expected = values_and_gradients(forms.reference, *given)
        chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            bound = BOUNDS[dtype] * np.abs(theirs).max(initial=0.0)
            np.testing.assert_allclose(ours, theirs, atol=bound, rtol=0)


def test_each_name_is_that_of_an_exported_function():
    assert set(CASES) == set(kernels.KERNELS)
    assert set(kernels.KERNELS) <= set(kernels.__all__)


def test_a_kernel_without_a_twin_is_refused():
    def nameless(x):
        return x

    with pytest.raises(AttributeError, match="nameless"):
        kernel(nameless)
    assert "nameless" not in kernels.KERNELS


def test_the_switch_holds_for_what_is_compiled_already():
    x = draw(N, 5, dtype="bfloat16")

    @jax.jit
    def product(x):
        traces.append(1)
        return kernels.dot(x, x, kernel_axis=-1)

    def form():
        del traces[:]
        product(x)
        assert len(traces) == 1
        return "custom_vjp" in str(jax.make_jaxpr(product.__wrapped__)(x))

    traces = []
    assert form()
    with kernels.use("reference"):
        assert not form()
        with kernels.use("fast"):
            assert form()
        assert not form()
    assert form()


def test_an_unknown_form_is_refused():
    with (
        pytest.raises(UserError, match=r"'slow'.*expected 'fast' or 'reference'"),
        kernels.use("slow"),
    ):
        pass


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("float32", 1e-5), pytest.param("bfloat16", 0.05, marks=pytest.mark.slow)],
)
def test_a_model_s_loss_and_gradients_are_those_of_plain_mathematics(dtype, bound):
    """MoE-CL with dropout and experts everywhere; stored as on a CPU."""
    chosen = context_of(dropout=0.3, targets=TARGETS)
    chosen = with_architecture(chosen, dtype=jnp.dtype(dtype), remat="projections")
    frozen = kernels.as_bits(frozen_params(CONFIG, jnp.dtype(dtype)))
    batch = batch_of(random_examples((9, 5, 14)), "lm", training=True)
    state = init_train_state(chosen.method, OPTIMIZER, random_parameters(chosen), jax.random.key(0))
    step = jax.value_and_grad(loss, has_aux=True)
    found = {}
    for form in ("fast", "reference"):
        with kernels.use(form):
            run = jax.jit(lambda active: step(active, state, frozen, batch, chosen))
            traced = run.trace(state.active)
            assert ("optimization_barrier" in str(traced.jaxpr)) == (form == "fast")
            found[form] = traced.lower().compile()(state.active)
    ours, theirs = ([np.asarray(leaf) for leaf in jax.tree.leaves(found[form])] for form in found)
    assert max(np.linalg.norm(leaf) for leaf in theirs) > 0.1
    for got, wanted in zip(ours, theirs, strict=True):
        assert np.linalg.norm(got - wanted) <= bound * max(np.linalg.norm(wanted), 1e-3)
