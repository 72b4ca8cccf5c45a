"""Examples of earlier tasks: what a memory holds, and what joins a batch."""

from collections import Counter

import numpy as np
import pytest
from streams import assert_bit_equal
from tiny import (
    ANSWERS,
    random_examples,
)

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.data.rehearsal import (
    AllTasks,
    ClassBalanced,
    ExamplePolicy,
    PastTask,
    Reservoir,
    replayed,
    reservoir,
    with_response,
)
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError


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


def past(*classes: list[int]) -> list[PastTask]:
    """Tasks with so many examples of each class, the classes in turn as long as they last."""
    return [
        PastTask(f"t{index}", np.random.default_rng(index).permutation(np.repeat(range(len(c)), c)))
        for index, c in enumerate(classes)
    ]


def test_the_policies_are_the_functions_they_are_named_after():
    tasks = past([4, 6], [3, 3, 3])
    alone, memory, joint = ExamplePolicy(), Reservoir(5, 2), AllTasks()
    assert (alone.joined, alone.joint, alone.stored({}, tasks, 0)) == (0, False, [])
    assert len(alone.draw(0, 1, 2, 0)) == 0
    assert (joint.joined, joint.joint, joint.stored({}, tasks, 0)) == (0, True, [])
    assert (memory.joined, memory.joint) == (2, False)
    assert memory.stored({}, tasks, 3) == reservoir(3, [10, 9], 5)
    np.testing.assert_array_equal(memory.draw(3, 1, 7, 5), replayed(3, 1, 7, 5, 2))
    for wrong in ((-1, 2), (5, -2)):
        with pytest.raises(UserError, match=r"Reservoir: .* must be at least 0"):
            Reservoir(*wrong)


def test_class_balanced_memory_holds_equal_shares():
    tasks = past([30, 5], [1, 20, 40])
    policy = ClassBalanced(17, 4)
    kept = policy.stored({}, tasks, 0)
    counts = Counter((task, int(tasks[task].labels[place])) for task, place in kept)
    assert len(set(kept)) == len(kept) == 17
    assert counts == {(0, 0): 4, (0, 1): 4, (1, 0): 1, (1, 1): 4, (1, 2): 4}
    assert policy.stored({}, tasks, 0) == kept
    assert policy.stored({}, tasks, 1) != kept
    assert len(ClassBalanced(1000, 4).stored({}, tasks, 0)) == 96  # all there are
    assert ClassBalanced(0, 4).stored({}, tasks, 0) == ClassBalanced(9, 4).stored({}, [], 0) == []


def test_class_balanced_memory_only_forgets():
    tasks = past([30, 5], [1, 20, 40], [9, 9])
    for seed in range(20):
        before = set(ClassBalanced(12, 4).stored({}, tasks[:2], seed))
        after = ClassBalanced(12, 4).stored({}, tasks, seed)
        assert {place for place in after if place[0] < 2} <= before


def test_a_class_balanced_memory_draws_each_example_equally_often():
    tasks, draws = past([8, 2]), 2000
    seen: Counter = Counter()
    for seed in range(draws):
        seen.update(ClassBalanced(3, 1).stored({}, tasks, seed))
    labels = tasks[0].labels
    for (_, place), count in seen.items():
        share = 2 / 8 if labels[place] == 0 else 1 / 2
        assert abs(count - draws * share) < 4 * np.sqrt(draws * share * (1 - share))
    assert len(seen) == 10
