"""Shapes of batches: few, so that few programs are compiled, and such that few slots stay empty.

A compiled program takes arrays of one shape. Training chooses its shapes once for a stream, from
the lengths of its examples; a batch takes the smallest that holds it, or is computed in two or more
pieces. Scoring does not care which texts share a batch, so it fills a shape with as many as fit.

A cost is in slots: what a token costs in all layers. The constants below were measured on a CPU
with a model of 135M parameters and change little with its size.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moecl_jax.data.rows import first_fit, row_length, up

MOST_SHAPES = 3
PIECE_COST = 19.0  # what a further piece costs: all weights are read once more
LOGIT_COST = 0.2  # what a position costs whose logits are computed
SHAPE_COST = 1500.0  # what a shape costs a stream: a program is compiled, or found on disk
SCORING_ROWS = 128
"""What the lengths of packed rows in scoring are multiples of.

XLA's CPU backend sums products of float32 matrices in another order where the result is no multiple
of 64 wide. Here that is the queries' scores of half a row's keys.
"""
_STEP = 16  # numbers of slots are multiples of it
_SAMPLE = 96  # batches that shapes are chosen by
_SIZES = 48  # sizes that are tried


class Need(NamedTuple):
    """What one example needs of a batch.

    Attributes:
      slots: tokens of the prompt and of all answers but their last ones.
      predicted: positions whose logits are needed, each counted once.
      answer: tokens of the longest answer.
    """

    slots: int
    predicted: int
    answer: int


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """The sizes of a batch's arrays, but for its number of examples.

    Attributes:
      slots: N, the slots that are computed.
      rows: R.
      length: S, slots of a row.
      answer: A, tokens of an answer.
      predicted: P, in scoring the positions whose logits are computed; 0 in training.
      aligned: whether packed texts begin where their place in a row does not change their scores.
    """

    slots: int
    rows: int
    length: int
    answer: int
    predicted: int = 0
    aligned: bool = False

    @property
    def compact(self) -> bool:
        """Whether not all slots of all rows are computed."""
        return self.slots < self.rows * self.length

    def holds(self, needs: Sequence[Need], packed: bool) -> bool:
        """Whether examples fit in: at least one."""
        lengths = [need.slots for need in needs]
        if max(lengths) > self.length or max(need.answer for need in needs) > self.answer:
            return False
        if self.predicted and sum(need.predicted for need in needs) > self.predicted:
            return False
        if not packed:
            return len(needs) <= self.rows
        if sum(lengths) > self.slots:
            return False
        return max(self.places(lengths)[0]) < self.rows

    def places(self, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        """Row and offset of each packed text, given their slots."""
        return first_fit(lengths, self.length, aligned=self.aligned)

    def cost(self, examples: int) -> float:
        """What a batch of so many examples costs in it, the reading of the weights included."""
        logits = self.predicted or examples * self.answer
        return self.slots + LOGIT_COST * logits + PIECE_COST


@dataclasses.dataclass(frozen=True)
class Planner:
    """Chooses the shapes of a stream's training batches.

    Attributes:
      examples: B, the number of examples of a full batch.
      packed: whether several examples share a row.
      compact: whether packed slots that hold no token need not be computed.
      row_length: the least number of slots of a packed row.
      row_multiple: rows are a multiple of this.
      padded_length: the least number of slots of a row with one example.
    """

    examples: int
    packed: bool
    compact: bool
    row_length: int
    row_multiple: int = 1
    padded_length: int = 0

    def choose(self, batches: Sequence[Sequence[Need]], count: int) -> tuple[Shape, ...]:
        """At most three shapes for so many batches like these, ascending.

        One of them holds each example of these batches alone.

        Args:
          batches: what their examples need, each of at least one.
          count: number of batches that will be trained; shapes must be worth their compilation.
        """
        candidates = self._candidates(batches)
        sample = batches[:: -(-len(batches) // _SAMPLE)]
        tried = [_Tried(batch, candidates, self) for batch in sample]
        single = np.array([each.single for each in tried])
        pairs = np.array([each.pairs for each in tried]) if self.in_pieces else None
        shape_cost = SHAPE_COST * len(tried) / max(count, 1)
        every = list(itertools.chain.from_iterable(batches))
        longest = max(need.slots for need in every)
        answer = max(need.answer for need in every)
        extreme = [Need(longest, 0, answer)]
        whole = [c for c, s in enumerate(candidates) if s.holds(extreme, self.packed)]
        count = len(candidates)
        best: tuple[float, tuple[int, ...]] = (math.inf, (whole[-1],))
        for start in range(MOST_SHAPES):
            spread = (count * (2 + start) // 6, count * (4 + start) // 7)
            best = min(best, _descend([whole[-1], *spread], single, pairs, whole, shape_cost))
        return tuple(sorted({candidates[c] for c in best[1]}))

    @property
    def in_pieces(self) -> bool:
        """Whether a batch may be cut where that leaves fewer slots empty."""
        return self.packed and self.compact

    def _candidates(self, batches: Sequence[Sequence[Need]]) -> list[Shape]:
        longest = max(need.slots for batch in batches for need in batch)
        answers = sorted({up(max(n.answer for n in batch), 4) for batch in batches})
        answers = sorted({answers[0], answers[len(answers) // 2], answers[-1]})
        if not self.packed:
            rows = up(self.examples, self.row_multiple)
            sizes = sorted({row_length(max(n.slots for n in batch)) for batch in batches})
            if longest <= self.padded_length:
                sizes = [self.padded_length]
            return [Shape(rows * s, rows, s, a) for s in sizes for a in answers]
        length = row_length(max(longest, self.row_length))
        if not self.in_pieces:
            needed = {max(first_fit([n.slots for n in b], length)[0]) + 1 for b in batches}
            counts = sorted({up(count, self.row_multiple) for count in needed})
            return [Shape(r * length, r, length, a) for r in counts for a in answers]
        sums = [sum(need.slots for need in batch) for batch in batches]
        least, most = up(longest, _STEP), up(max(sums), _STEP)
        step = up(max(1, (most - least) // _SIZES), _STEP)
        sizes = sorted({*range(least, most, step), most})
        return [Shape(n, _rows(n, length), length, a) for n in sizes for a in answers]


def _rows(slots: int, length: int) -> int:
    """Rows for so many computed slots, with some to spare for what does not fill a row."""
    return -(-slots * 5 // (4 * length)) + 1


class _Tried:
    """What a batch costs in each candidate, and in each pair of them (in two pieces)."""

    def __init__(self, batch: Sequence[Need], candidates: Sequence[Shape], planner: Planner):
        costs = np.array([shape.cost(planner.examples) for shape in candidates])
        fits = [shape.holds(batch, planner.packed) for shape in candidates]
        self.single = np.where(fits, costs, math.inf)
        if not planner.in_pieces:
            return
        answer = max(need.answer for need in batch)
        reach, total = _sums([need.slots for need in batch])[-1], sum(n.slots for n in batch)
        first = np.array([_highest(reach, shape.slots) for shape in candidates])
        sizes = np.array([shape.slots for shape in candidates])
        able = np.array([shape.answer >= answer for shape in candidates])
        possible = (total - first[:, None] <= sizes[None]) & able[:, None] & able[None]
        self.pairs = np.where(possible, costs[:, None] + costs[None], math.inf)


def _descend(
    chosen: list[int],
    single: np.ndarray,
    pairs: np.ndarray | None,
    whole: Sequence[int],
    shape_cost: float,
) -> tuple[float, tuple[int, ...]]:
    """Exchanges one of the chosen candidates after the other while that lowers the cost."""

    def cost(of: Sequence[int]) -> float:
        if not set(of) & set(whole):
            return math.inf  # some example might fit nowhere
        least = single[:, list(of)].min(axis=1)
        if pairs is not None:
            for one, other in itertools.product(of, of):
                least = np.minimum(least, pairs[:, one, other])
        return float(np.where(np.isinf(least), 1e6, least).sum()) + shape_cost * len(set(of))

    found = cost(chosen)
    improved = True
    while improved:
        improved = False
        for place in range(len(chosen)):
            for candidate in range(single.shape[1]):
                other = [*chosen[:place], candidate, *chosen[place + 1 :]]
                lower = cost(other)
                if lower < found:
                    chosen, found, improved = other, lower, True
    return found, tuple(sorted(chosen))


def pieces(
    needs: Sequence[Need], shapes: Sequence[Shape], examples: int, packed: bool
) -> list[tuple[list[int], Shape]]:
    """Cuts a training batch into pieces of whole examples, as few slots as can be.

    Args:
      needs: those of the batch's examples, at least one.
      shapes: what `Planner.choose` gave; one of them holds any example alone.
      examples: B of a full batch.
      packed: whether several examples share a row.

    Returns:
      For each piece the places of its examples and its shape.
    """
    every = list(range(len(needs)))
    options = [
        (shape.cost(examples), [(every, shape)]) for shape in shapes if shape.holds(needs, packed)
    ]
    for one, other in itertools.product(shapes, shapes):
        if not (one.compact and other.compact):
            continue
        filled = _filling([need.slots for need in needs], one.slots)
        rest = [place for place in every if place not in filled]
        parts = [(filled, one), (rest, other)]
        if all(p and shape.holds([needs[i] for i in p], packed) for p, shape in parts):
            options.append((one.cost(examples) + other.cost(examples), parts))
    if not options:
        return _greedily(needs, shapes, packed)
    return min(options, key=lambda option: option[0])[1]


def _greedily(
    needs: Sequence[Need], shapes: Sequence[Shape], packed: bool
) -> list[tuple[list[int], Shape]]:
    """Fills one piece after the other, each of the largest shape but the last."""
    found, waiting = [], sorted(range(len(needs)), key=lambda place: -needs[place].slots)
    while waiting:
        taken: list[int] = []
        for place in waiting:
            held = [needs[p] for p in (*taken, place)]
            if any(shape.holds(held, packed) for shape in shapes):
                taken.append(place)
        held = [needs[place] for place in taken]
        shape = next(shape for shape in shapes if shape.holds(held, packed))
        found.append((sorted(taken), shape))
        waiting = [place for place in waiting if place not in taken]
    return found


def _sums(lengths: Sequence[int]) -> list[int]:
    """Which sums the first 0, 1, .. lengths can have: bit i of a number is set for the sum i."""
    reach = [1]
    for length in lengths:
        reach.append(reach[-1] | reach[-1] << length)
    return reach


def _highest(reach: int, most: int) -> int:
    """The largest sum that is at most `most`."""
    return (reach & ((1 << (most + 1)) - 1)).bit_length() - 1


def _filling(lengths: Sequence[int], most: int) -> list[int]:
    """Places of lengths whose sum is as large as can be, and at most `most`."""
    reach = _sums(lengths)
    left, chosen = _highest(reach[-1], most), []
    for place in reversed(range(len(lengths))):
        if not reach[place] >> left & 1:
            chosen.append(place)
            left -= lengths[place]
    return chosen[::-1]


def scoring_shapes(
    slots: int, longest: int, most_predicted: int, answer: int, planner: Planner
) -> tuple[Shape, ...]:
    """Shapes of scoring: one to be filled with many texts, and one for few or for long ones.

    Texts that have a row each are sorted into rows of two more lengths.

    Args:
      slots: about as many as the first is to have.
      longest: slots of the longest text that is let in, with all its labels.
      most_predicted: P of the text that needs most.
      answer: A.
      planner: how rows are filled.
    """
    if planner.packed:
        lengths = [row_length(min(planner.row_length, longest)), row_length(longest)]
        if planner.compact:
            lengths = [up(length, SCORING_ROWS) for length in lengths]
        computed = [slots, slots // 4]
    else:
        lengths = sorted({row_length(-(-longest // part)) for part in (1, 2, 4)})
        if longest <= planner.padded_length:
            lengths = [planner.padded_length]
        computed = [planner.examples * length for length in lengths]
    found = set()
    for length, least in zip(lengths, computed, strict=True):
        count = up(max(least, length), _STEP)
        rows = up(-(-count // length), planner.row_multiple)
        if planner.in_pieces:
            rows = -(-count * 8 // (5 * length)) + 1  # aligned texts leave gaps
        else:
            count = rows * length
        predicted = max(up(count * 5 // 16, 8), most_predicted)
        found.add(Shape(count, rows, length, answer, predicted, planner.in_pieces))
    return tuple(sorted(found))


def groups(
    needs: Sequence[Need], shapes: Sequence[Shape], most_examples: int, packed: bool
) -> Iterator[tuple[list[int], Shape]]:
    """Fills batches of scoring with texts, in their order but for those of another length.

    Args:
      needs: those of all texts; each fits one of the shapes alone.
      shapes: what `scoring_shapes` gave.
      most_examples: B of a batch.
      packed: whether several texts share a row.

    Yields:
      The places of a batch's texts, and its shape.
    """
    classes: dict[int, list[int]] = {}
    for place, need in enumerate(needs):
        fitting = [shape.length for shape in shapes if shape.length >= need.slots]
        classes.setdefault(min(fitting), []).append(place)
    for length, waiting in sorted(classes.items()):
        able = [shape for shape in shapes if shape.length >= length]
        while waiting:
            count, shape = _most(waiting, needs, able, most_examples, packed)
            yield waiting[:count], shape
            waiting = waiting[count:]


def _most(
    waiting: Sequence[int],
    needs: Sequence[Need],
    able: Sequence[Shape],
    most_examples: int,
    packed: bool,
) -> tuple[int, Shape]:
    """How many of the waiting texts the next batch takes, and in which shape."""
    best: tuple[float, int, Shape] | None = None
    for shape in able:
        most = min(len(waiting), most_examples if packed else min(most_examples, shape.rows))
        held = [needs[place] for place in waiting[:most]]
        sizes = np.cumsum([need.slots for need in held])
        logits = np.cumsum([need.predicted for need in held])
        fits = (logits <= shape.predicted) & ((sizes <= shape.slots) | (not packed))
        count = int(np.count_nonzero(fits))
        while count and not shape.holds(held[:count], packed):
            count -= 1
        if not count:
            continue
        filled = float(sizes[count - 1])
        wasted = shape.cost(most_examples) / filled
        if best is None or wasted < best[0]:
            best = (wasted, count, shape)
    assert best is not None  # each text fits a shape alone
    return best[1], best[2]
