"""Examples of earlier tasks: what a memory holds, and what joins a batch."""

import numpy as np
from streams import assert_bit_equal
from tiny import (
    ANSWERS,
    random_examples,
)

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.data.rehearsal import replayed, reservoir, with_response
from moecl_jax.data.tokenize import TokenizedExample


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
    layout = BatchLayout(2, True, 32, 3, 4)
    own, mixed = (
        make_batch(examples, ANSWERS, layout, task_index=1, class_count=3, training=True)
        for examples in ([example], [with_response(example, ANSWERS)])
    )
    assert_bit_equal(own, mixed)
