"""Writing text with a cache, against whole forward passes (test_oracles: against torch)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CONFIG,
    batch_of,
    context_of,
    frozen_params,
    generator_of,
    random_examples,
    random_parameters,
    with_architecture,
)

from moecl_jax.errors import UserError
from moecl_jax.kernels import as_bits
from moecl_jax.methods.forward import forward
from moecl_jax.models.lora import TARGETS
from moecl_jax.serving.generation import Sampling, choose

LENGTHS = [3, 9, 1, 6, 4]


@pytest.fixture(scope="module")
def model():
    adapted = context_of(targets=TARGETS)
    return adapted, random_parameters(adapted, 0.5), frozen_params()


@pytest.fixture(scope="module")
def prompts():
    return [example.prompt for example in random_examples(LENGTHS, seed=3)]


@pytest.fixture(scope="module")
def greedy(model, prompts):
    """Ten tokens after each prompt, by a whole forward pass for each token."""
    adapted, active, frozen = model

    @jax.jit
    def next_token(batch, last):
        hidden, _ = forward(active, frozen, batch, adapted, seeds=None)
        decoder = adapted.decoder(training=False)
        return decoder.apply({"params": frozen}, hidden[last][None], method="logits").argmax()

    texts = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(10):
            example = random_examples([1])[0]
            example = type(example)(np.array(text, np.int32), 0)
            batch = batch_of([example], "classification", training=True, packed=False)
            text.append(int(next_token(batch, len(text) - 1)))
        texts.append(np.array(text[len(prompt) :]))
    return texts


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_greedy_text_is_that_of_whole_forward_passes_whatever_the_batch(
    model, prompts, greedy, batch_size
):
    adapted, active, frozen = model
    written = generator_of(adapted, frozen).write(
        active, prompts, max_tokens=10, batch_size=batch_size
    )
    for got, wanted in zip(written, greedy, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_text_stops_before_its_end_of_sequence(model, prompts, greedy):
    adapted, active, frozen = model
    end = int(greedy[1][4])
    stopping = generator_of(adapted, frozen, end)
    written = stopping.write(active, prompts, max_tokens=10, batch_size=8)
    shortened = 0
    for got, wanted in zip(written, greedy, strict=True):
        cut = list(wanted).index(end) if end in wanted else len(wanted)
        np.testing.assert_array_equal(got, wanted[:cut])
        shortened += cut < len(wanted)
    assert shortened >= 1 and len(written[1]) <= 4
    streamed = list(stopping.stream(active, prompts[1], max_tokens=10))
    np.testing.assert_array_equal(streamed, written[1])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        pytest.param(Sampling(1.0, top_k=3, top_p=0.9), marks=pytest.mark.slow),
    ],
)
def test_a_text_ends_where_logits_are_not_finite_and_its_neighbours_go_on(model, prompts, sampling):
    adapted, active, frozen = model
    table = frozen["embedder"]["embedding"]
    unused = (set(range(len(table))) - {int(token) for ids in prompts for token in ids}).pop()
    broken = frozen | {"embedder": {"embedding": table.at[unused].set(jnp.inf)}}
    given = [*prompts[:2], np.array([5, unused, 6])]
    write = functools.partial(
        generator_of(adapted, broken).write, active, max_tokens=4, sampling=sampling
    )
    alone, together = write(prompts[:2]), write(given)
    assert together[2] is None and all(ids is not None for ids in alone)
    for got, wanted in zip(together[:2], alone, strict=True):
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(UserError, match="scores are not finite"):
        list(generator_of(adapted, broken).stream(active, given[2], max_tokens=4))


def test_no_step_is_made_after_all_texts_have_ended(model, prompts, greedy):
    adapted, active, frozen = model
    end = int(greedy[1][4])
    generator = generator_of(adapted, frozen, end)
    lengths = np.array([len(prompts[1])], np.int32)
    padded = np.zeros((1, 16), np.int32)
    padded[0, : lengths[0]] = prompts[1]
    keys = jax.random.split(jax.random.key(0), 1)
    texts = generator.read_prompts(
        active, frozen, padded, lengths, keys, sampling=Sampling(), slots=32
    )
    start = int(texts.positions[0])
    written = list(greedy[1]).index(end) + 1
    tokens, texts = generator.write_tokens(active, frozen, texts, np.int32(20), sampling=Sampling())
    assert bool(texts.done[0]) and int(texts.positions[0]) - start == written - 1
    assert set(np.asarray(tokens)[written - 1 :, 0].tolist()) == {end}


def test_the_cache_is_overwritten_in_place_and_never_copied():
    sizes = dataclasses.replace(CONFIG, layers=8)
    adapted = with_architecture(context_of(), sizes=sizes, dtype=jnp.bfloat16)
    active, frozen = random_parameters(adapted), as_bits(frozen_params(sizes, jnp.bfloat16))
    generator = generator_of(adapted, frozen)
    slots = 4096
    texts = jax.eval_shape(
        functools.partial(generator.read_prompts.__wrapped__, sampling=Sampling(), slots=slots),
        active,
        frozen,
        jax.ShapeDtypeStruct((2, 16), jnp.int32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),
    )
    compiled = generator.write_tokens.lower(
        active, frozen, texts, jnp.int32(3), sampling=Sampling()
    ).compile()
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(texts.cache))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache  # a few copies of one layer's part, of eight


@pytest.mark.parametrize("max_tokens", [1, 2, 17, 20])
def test_no_more_than_max_tokens_are_written(model, prompts, max_tokens):
    adapted, active, frozen = model
    written = generator_of(adapted, frozen).write(active, prompts[:2], max_tokens=max_tokens)
    assert [len(tokens) for tokens in written] == [max_tokens] * 2


@pytest.mark.slow
def test_sampled_text_depends_on_seed_and_place_but_not_on_the_batch(model, prompts):
    adapted, active, frozen = model
    write = functools.partial(
        generator_of(adapted, frozen).write,
        active,
        prompts,
        max_tokens=8,
        sampling=Sampling(temperature=1.5),
    )
    one, alone, other = write(batch_size=4), write(batch_size=1), write(batch_size=4, seed=1)
    for first, second in zip(one, alone, strict=True):
        np.testing.assert_array_equal(first, second)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    same = generator_of(adapted, frozen).write(
        active, [prompts[0]] * 3, max_tokens=8, sampling=Sampling(temperature=1.5)
    )
    assert not np.array_equal(same[0], same[1])


def shares(sampling, logits, draws=4000):
    keys = jax.random.split(jax.random.key(0), draws)
    rows = jnp.broadcast_to(jnp.array(logits), (draws, len(logits)))
    drawn = choose(rows, keys, jnp.zeros(draws, jnp.int32), sampling)
    return np.bincount(drawn, minlength=len(logits)) / draws


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(temperature=1.0), [0.4, 0.3, 0.2, 0.1]),
        # p ** (1 / 0.5), normalised: .16 .09 .04 .01 over .30
        (Sampling(temperature=0.5), [0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3]),
        (Sampling(temperature=1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        # The first two reach 0.7, so 0.75 needs the third.
        (Sampling(temperature=1.0, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=1.0, top_p=0.05), [1, 0, 0, 0]),
        # Top-k first: .4 and .3 become 4/7 and 3/7, of which the first alone reaches 0.5.
        (Sampling(temperature=1.0, top_k=2, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(), [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_the_right_probabilities(sampling, expected):
    got = shares(sampling, np.log([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    np.testing.assert_allclose(got, expected, atol=0.03)
    assert all(got[np.array(expected) == 0] == 0)


def test_what_does_not_fit_the_context_is_refused(model, prompts):
    adapted, active, frozen = model
    small = generator_of(adapted, frozen, context_length=12)
    assert len(small.write(active, [prompts[1]], max_tokens=3)[0]) == 3
    with pytest.raises(UserError, match="prompt of 9 tokens and max_tokens = 4 exceed the 12"):
        small.write(active, [prompts[1]], max_tokens=4)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_sampling_out_of_range_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        Sampling(**values)
