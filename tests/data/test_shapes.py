"""Few shapes for all batches: what is chosen, how batches are cut into pieces, and how filled."""

import itertools

import numpy as np
import pytest

from moecl_jax.data.shapes import (
    MOST_SHAPES,
    Need,
    Planner,
    Shape,
    _filling,
    groups,
    pieces,
    scoring_shapes,
)

PLANNER = Planner(8, packed=True, compact=True, row_length=96)


def needs_of(lengths, answer=3):
    return [Need(int(length), answer, answer) for length in lengths]


def random_batches(mean, count, size=8, seed=0, most=90):
    generator = np.random.default_rng((seed, mean))
    drawn = generator.lognormal(np.log(mean), 0.35, (count, size)).clip(4, most).astype(int)
    return [needs_of(lengths) for lengths in drawn]


def cost_of(batch, shapes):
    return sum(shape.cost(8) for _, shape in pieces(batch, shapes, 8, packed=True))


def test_sums_of_lengths_are_the_best_of_all_subsets():
    generator = np.random.default_rng(0)
    for most in (20, 60, 100):
        lengths = generator.integers(5, 40, 7).tolist()
        sums = (sum(chosen) for n in range(8) for chosen in itertools.combinations(lengths, n))
        found = _filling(lengths, most)
        assert sum(lengths[place] for place in found) == max(s for s in sums if s <= most)


def test_a_batch_is_cut_where_that_leaves_fewer_slots_empty():
    """100 + 70 and 60 slots fill two shapes of 176 and 64; one of 304 would leave 74 empty."""
    small, middle, large = (Shape(n, 4, 112, 4) for n in (64, 176, 304))
    batch = needs_of([100, 70, 60])
    found = pieces(batch, (small, middle, large), 8, packed=True)
    assert found == [([2], small), ([0, 1], middle)] or found == [([0, 1], middle), ([2], small)]
    assert pieces(batch, (large,), 8, packed=True) == [([0, 1, 2], large)]
    assert pieces(needs_of([100, 100, 100]), (small, large), 8, packed=True)[0][1] == large


def test_few_shapes_serve_tasks_of_different_lengths():
    batches = [*random_batches(20, 40), *random_batches(35, 40), *random_batches(50, 40)]
    shapes = PLANNER.choose(batches, count=len(batches))
    assert 1 < len(shapes) <= MOST_SHAPES
    filled = sum(need.slots for batch in batches for need in batch)
    computed = sum(shape.slots for b in batches for _, shape in pieces(b, shapes, 8, packed=True))
    assert computed < 1.12 * filled
    one = PLANNER.choose(batches, count=1)
    assert len(one) == 1
    assert sum(cost_of(b, shapes) for b in batches) < sum(cost_of(b, one) for b in batches)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "planner",
    [
        PLANNER,
        Planner(8, packed=True, compact=False, row_length=64, row_multiple=4),
        Planner(8, packed=False, compact=False, row_length=64),
    ],
)
def test_each_example_is_in_one_piece_that_holds_it(planner, seed):
    tried = [*random_batches(30, 300, seed=seed), needs_of([90]), needs_of([5], answer=9)]
    shapes = planner.choose(tried, count=1000)
    assert len(shapes) <= MOST_SHAPES
    most = max(need.slots for batch in tried for need in batch)
    long = needs_of([most] * 8, answer=9)
    for batch in [*random_batches(45, 30, seed=seed + 100, most=most), long]:
        found = pieces(batch, shapes, 8, planner.packed)
        assert sorted(place for places, _ in found for place in places) == list(range(8))
        for places, shape in found:
            assert shape in shapes
            assert shape.rows % planner.row_multiple == 0
            assert shape.holds([batch[place] for place in places], planner.packed)


def test_long_answers_get_shapes_of_their_own():
    """A stream with labels of 3 tokens and responses of 24: labels do not pay for responses."""
    labels, written = (
        random_batches(30, 60),
        [
            [need._replace(answer=24, predicted=24) for need in batch]
            for batch in random_batches(40, 30)
        ],
    )
    shapes = PLANNER.choose([*labels, *written], count=1000)
    assert {shape.answer for shape in shapes} == {4, 24}
    short = [all(s.answer == 4 for _, s in pieces(b, shapes, 8, packed=True)) for b in labels]
    assert sum(short) > 0.7 * len(labels)


@pytest.mark.parametrize("packed", [True, False])
def test_scoring_fills_batches_with_all_texts_once(packed):
    planner = Planner(64, packed, compact=packed, row_length=96)
    shapes = scoring_shapes(768, 250, 13, 4, planner)
    assert len(shapes) <= MOST_SHAPES
    generator = np.random.default_rng(0)
    needs = [Need(int(n), 7, 3) for n in generator.integers(8, 80, 300)]
    needs[17], needs[250] = Need(250, 13, 4), Need(180, 7, 3)
    found = list(groups(needs, shapes, 96, packed))
    assert sorted(place for places, _ in found for place in places) == list(range(300))
    for places, shape in found:
        assert shape.holds([needs[place] for place in places], packed)
    if packed:
        computed = sum(shape.slots for _, shape in found)
        assert computed < 1.15 * sum(need.slots for need in needs)


def test_a_padded_run_keeps_the_row_of_the_longest():
    planner = Planner(8, packed=False, compact=False, row_length=1, padded_length=304)
    assert planner.choose(random_batches(30, 4), count=100) == (Shape(8 * 304, 8, 304, 4),)
