"""Low-rank experts on attention, and the cache of keys and values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, batch_of, context_of, frozen_params, random_examples, random_parameters

from moecl_jax.methods.forward import forward
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.decoder import empty_cache
from moecl_jax.models.lora import (
    ATTENTION_TARGETS,
    FFN_TARGETS,
    TARGETS,
    LayerContext,
    init_expert,
    lora_term,
)

METHODS = [context_of, lambda **settings: context_of(method=SequentialLora, **settings)]
NAMES = ["moe_cl", "sequential_lora"]


def experts_of(active):
    experts = [active.shared["expert"], active.expert]
    return [expert for expert in experts if expert]


def merged(frozen, experts, scale):
    """The frozen tree with the experts' attention products added to its kernels."""
    attention = dict(frozen["layers"]["attention"])
    for name in attention:
        kernel = attention[name]["kernel"]
        for expert in experts:
            if name in expert:
                product = jnp.einsum("lir,lro->lio", expert[name]["a"], expert[name]["b"])
                kernel = kernel + scale * product
        attention[name] = {"kernel": kernel}
    return {**frozen, "layers": {**frozen["layers"], "attention": attention}}


def without_attention(active):
    """The same trees, less what adapts attention."""

    def keep(expert):
        return {name: factors for name, factors in expert.items() if name in FFN_TARGETS}

    shared = {**active.shared, "expert": keep(active.shared["expert"])}
    return active.replace(shared=shared, expert=keep(active.expert))


@pytest.mark.parametrize("make", METHODS, ids=NAMES)
@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj"), (*FFN_TARGETS, "o_proj")])
def test_experts_on_attention_equal_merged_kernels_in_values_and_gradients(make, targets):
    adapted, plain = make(targets=targets), make(targets=tuple(set(targets) & set(FFN_TARGETS)))
    active, frozen = random_parameters(adapted), frozen_params()
    batch = batch_of(random_examples([5, 3, 4]), "lm", training=True)
    scale = adapted.method.lora.scale
    projection = np.random.default_rng(0).standard_normal((32, CONFIG.width)).astype(np.float32)
    real = batch.segments.reshape(-1, 1) > 0

    @jax.jit
    def with_terms(active):
        hidden, _ = forward(active, frozen, batch, adapted, seeds=None)
        return jnp.sum(hidden * projection * real), hidden

    @jax.jit
    def with_merged_kernels(active):
        kernels = merged(frozen, experts_of(active), scale)
        hidden, _ = forward(without_attention(active), kernels, batch, plain, seeds=None)
        return jnp.sum(hidden * projection * real), hidden

    ours, hidden = jax.grad(with_terms, has_aux=True)(active)
    theirs, expected = jax.grad(with_merged_kernels, has_aux=True)(active)
    np.testing.assert_allclose(hidden * real, expected * real, atol=2e-5, rtol=0)
    moved = 0
    for (path, got), wanted in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        size = np.linalg.norm(wanted)
        moved += bool(size > 0)
        error = np.linalg.norm(got - wanted)
        assert error <= 2e-5 * max(size, 1e-3), (jax.tree_util.keystr(path), error, size)
    assert moved >= 2 * len(targets)


def test_a_new_expert_leaves_attention_as_it_is():
    adapted = context_of(targets=TARGETS)
    active = random_parameters(adapted)
    fresh = {"q_proj": {"a": jnp.ones((2, 16, 2)), "b": jnp.zeros((2, 2, 16))}}
    with_fresh = active.replace(expert={**active.expert, **fresh})
    without = active.replace(
        expert={name: f for name, f in active.expert.items() if name != "q_proj"}
    )
    batch, frozen = batch_of(random_examples([5]), "lm", training=True), frozen_params()
    hidden, _ = forward(with_fresh, frozen, batch, adapted, seeds=None)
    expected, _ = forward(without, frozen, batch, adapted, seeds=None)
    np.testing.assert_array_equal(hidden, expected)


def test_each_expert_and_projection_draws_its_own_mask():
    x, rate = jnp.ones((200, 16)), 0.4
    identity = {"a": jnp.eye(16), "b": jnp.eye(16)}
    expert = dict.fromkeys(("q_proj", "k_proj", "v_proj"), identity)
    adapter = {"shared": expert, "task": expert}
    context = LayerContext(jnp.zeros((0, 200)), jnp.uint32(7))

    def term(name, *experts):
        return np.asarray(
            lora_term(name, x, adapter, context, experts=experts, scale=1.0, dropout_rate=rate)
        )

    first = term("q_proj", "shared")
    np.testing.assert_allclose(first[first > 0], 1 / (1 - rate), rtol=1e-6)
    assert abs((first > 0).mean() - (1 - rate)) < 0.03
    second_expert = term("q_proj", "shared", "task") - first
    for other in (second_expert, term("k_proj", "shared"), term("v_proj", "shared")):
        assert abs(((first > 0) & (other > 0.1)).mean() - (1 - rate) ** 2) < 0.03


def test_without_task_attention_the_shared_expert_adapts_it_alone():
    shared_only = context_of(targets=TARGETS, task_attention=False)
    active, frozen = random_parameters(shared_only), frozen_params()
    assert set(active.expert) == set(FFN_TARGETS)
    assert set(active.shared["expert"]) == set(TARGETS)
    batch = batch_of(random_examples([5, 3]), "lm", training=True)
    hidden, _ = forward(active, frozen, batch, shared_only, seeds=None)
    scale = shared_only.method.lora.scale
    kernels = merged(frozen, [active.shared["expert"]], scale)
    plain = context_of()
    expected, _ = forward(without_attention(active), kernels, batch, plain, seeds=None)
    real = batch.segments.reshape(-1, 1) > 0
    np.testing.assert_allclose(hidden * real, expected * real, atol=2e-5, rtol=0)


def test_attention_targets_leave_the_ffn_experts_starting_values_alone():
    key = jax.random.key(3)
    full, ffn = (init_expert(key, CONFIG, 2, targets) for targets in (TARGETS, FFN_TARGETS))
    chex.assert_trees_all_equal({name: full[name] for name in FFN_TARGETS}, ffn)
    widths = {name: (f["a"].shape[1], f["b"].shape[2]) for name, f in full.items()}
    assert {name: widths[name] for name in ATTENTION_TARGETS} == {
        "q_proj": (16, 16), "k_proj": (16, 8), "v_proj": (16, 8), "o_proj": (16, 16)
    }  # fmt: skip


@pytest.mark.parametrize("pieces", [[7], [4, 3], [1] * 7, [3, 1, 1, 2]])
def test_decoding_in_pieces_equals_one_pass(pieces):
    adapted = context_of(targets=TARGETS)
    active, frozen = random_parameters(adapted), frozen_params()
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocabulary_size, (3, 7)).astype(np.int32)
    decoder = adapted.decoder(training=False)
    adapter = adapted.method.adapter(active)
    positions = np.broadcast_to(np.arange(7, dtype=np.int32), (3, 7))
    segments = np.ones((3, 7), np.int32)
    whole, _ = decoder.apply(
        {"params": frozen}, tokens, positions, segments, 0 * segments, np.zeros((0, 21)), adapter
    )
    cache, parts, start = empty_cache(CONFIG, 3, 9, jnp.float32), [], 0
    for count in pieces:
        part = slice(start, start + count)
        hidden, cache = decoder.apply(
            {"params": frozen}, tokens[:, part], positions[:, part], cache, adapter, method="decode"
        )
        parts.append(hidden.reshape(3, count, -1))
        start += count
    joined = np.concatenate(parts, axis=1).reshape(21, -1)
    np.testing.assert_allclose(joined, whole, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_a_cache_gives_rows_of_different_lengths_what_each_has_alone():
    plain, active, frozen = context_of(), random_parameters(context_of()), frozen_params()
    decoder = plain.decoder(training=False)
    adapter = plain.method.adapter(active)
    generator = np.random.default_rng(1)
    lengths = np.array([2, 5, 3])
    prompts = generator.integers(0, CONFIG.vocabulary_size, (3, 5)).astype(np.int32)
    following = generator.integers(0, CONFIG.vocabulary_size, (3, 4)).astype(np.int32)
    steps = np.arange(5, dtype=np.int32)
    cache = empty_cache(CONFIG, 3, 12, jnp.float32)

    def decode(tokens, positions, cache):
        return decoder.apply({"params": frozen}, tokens, positions, cache, adapter, method="decode")

    _, cache = decode(prompts, np.broadcast_to(steps, (3, 5)), cache)
    outputs = []
    for step in range(4):
        hidden, cache = decode(
            following[:, step : step + 1], (lengths + step)[:, None].astype(np.int32), cache
        )
        outputs.append(hidden)
    for row, length in enumerate(lengths):
        text = np.concatenate([prompts[row, :length], following[row]])[None]
        ids = np.ones_like(text)
        alone, _ = decoder.apply(
            {"params": frozen}, text, np.arange(text.size, dtype=np.int32)[None], ids, 0 * ids,
            np.zeros((0, text.size)), adapter,
        )  # fmt: skip
        got = np.stack([output[row] for output in outputs])
        np.testing.assert_allclose(got, alone[length:], atol=2e-5, rtol=0)
