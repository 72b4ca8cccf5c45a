"""Batches: random examples laid out in rows of slots, with few slots wasted.

Axes: B examples, R rows, S slots a row, K continuations an example (1 in training, the
task's labels in evaluation), A tokens an answer.

The layout is data: `packed` puts several examples in one row, told apart by segment ids;
`padded` and `padded_to_max` give each example a row of its own. The same compiled step takes all.
Only attention needs rows: with `compact` all else is computed of the filled slots alone.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from moecl_jax.data.rows import ROW_LENGTHS, first_fit, row_length, up
from moecl_jax.data.shapes import Need, Planner, Shape
from moecl_jax.data.tokenize import TokenizedExample


@flax.struct.dataclass
class Batch:
    """The arrays of one step, NumPy's until a step is called with them.

    N slots are computed: all R * S of the row-major layout, or those in `slots`. Positions among
    them are 'flat'.

    Attributes:
      tokens: `[R, S]` ids; 0 where padded.
      positions: `[R, S]` position in the example.
      segments: `[R, S]` 0 for padding, else 1 + index of the example in the batch.
      branches: `[R, S]` 0 for the prompt, else 1 + index of the continuation.
      weights: `[B]` 1 for an example, 0 where the last batch of an epoch is filled up.
      labels: `[B]` class.
      last_token: `[B]` flat position of the prompt's last token.
      answer_positions: `[B, K, A]` flat position whose logits predict the answer's token.
      predicted: `[P]` those positions, each of them once; 0 where padded. Empty in training, where
        an example has one answer, whose positions are distinct as they are.
      answer_index: `[B, K, A]` place of each in `predicted`.
      answer_targets: `[B, K, A]` the token to predict.
      answer_mask: `[B, K, A]` 1 for an answer's token.
      task_index: scalar, place of the task in the stream; in a mixed batch `[B]`, each example's
        place among the tasks of the batch.
      class_count: scalar, classes of the task; in a mixed batch `[B]`, those of each example's.
      slots: `[N]` which of the R * S slots are computed: those that hold a token, ascending, and a
        few more, so that few shapes are compiled. `None` for all.
      members: `[B]` place of each example in the whole batch of which this is a piece; `None` for
        their order.
    """

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    branches: jax.Array
    weights: jax.Array
    labels: jax.Array
    last_token: jax.Array
    answer_positions: jax.Array
    predicted: jax.Array
    answer_index: jax.Array
    answer_targets: jax.Array
    answer_mask: jax.Array
    task_index: jax.Array
    class_count: jax.Array
    slots: jax.Array | None = None
    members: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """R, S and N."""
        rows, slots = self.tokens.shape
        return rows, slots, rows * slots if self.slots is None else len(self.slots)

    def flat(self, grid: jax.Array) -> jax.Array:
        """The `[N]` elements that are computed of one of the `[R, S]` arrays."""
        return grid.reshape(-1) if self.slots is None else grid.reshape(-1)[self.slots]


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """How the examples of a batch become rows of slots, and the shapes of its arrays.

    Attributes:
      batch_size: B, the number of examples of a full batch; a smaller one is filled up.
      packed: True to put several examples into one row, False to give each a row of its own.
      row_length: the least number of slots of a packed row. Rows may be up to half as long again
        where that saves slots.
      continuations: K in the evaluation of label tasks, at least the labels of the widest task.
      answer_length: A of label tasks, the tokens of the longest label. Examples that bring their
        own responses have a K of 1, and a longer A out of `ROW_LENGTHS` where they need it.
      padded_length: the least number of slots of a row with one example. Where it is not 0, packed
        rows are as short as they can be.
      row_multiple: rows are padded up to a multiple of this, so that devices can share them.
      compact: whether only attention is computed where packed rows are empty.
    """

    batch_size: int
    packed: bool
    row_length: int
    continuations: int
    answer_length: int
    padded_length: int = 0
    row_multiple: int = 1
    compact: bool = False

    @property
    def planner(self) -> Planner:
        """Chooses shapes of such batches."""
        return Planner(
            self.batch_size,
            self.packed,
            self.compact,
            self.row_length,
            self.row_multiple,
            self.padded_length,
        )


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """One example's tokens and where its answers are predicted, relative to its start."""

    tokens: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    answers: tuple[tuple[np.ndarray, np.ndarray], ...]  # (positions, targets) of each


def lay_out(prompt: np.ndarray, answers: Sequence[np.ndarray]) -> LaidOut:
    """Appends each answer, less its last token, to the prompt as a branch of its own.

    With prompt `[5, 6, 7]` and answers `[8, 2]` and `[9, 4, 2]`:

        tokens     5 6 7 8 9 4
        positions  0 1 2 3 3 4
        branches   0 0 0 1 2 2
        answers    8 and 2 are predicted at 2, 3;  9, 4 and 2 at 2, 4, 5
    """
    tokens, positions, branches = [prompt], [np.arange(len(prompt))], [np.zeros(len(prompt), int)]
    predicted, start = [], len(prompt)
    for branch, answer in enumerate(answers, start=1):
        fed = len(answer) - 1
        tokens.append(answer[:-1])
        positions.append(len(prompt) + np.arange(fed))
        branches.append(np.full(fed, branch))
        where = np.concatenate([[len(prompt) - 1], np.arange(start, start + fed)])
        predicted.append((where, answer))
        start += fed
    join = np.concatenate
    return LaidOut(join(tokens), join(positions), join(branches), tuple(predicted))


def need_of(example: TokenizedExample, answers: Sequence[np.ndarray], *, training: bool) -> Need:
    """What an example needs of a batch that `make_batch` lays out."""
    lengths = [len(answer) for answer in _answers(example, answers, training=training)]
    fed = sum(lengths) - len(lengths)
    return Need(len(example.prompt) + fed, fed + 1 if lengths else 0, max(lengths, default=1))


def make_batch(
    examples: Sequence[TokenizedExample],
    answers: Sequence[np.ndarray],
    layout: BatchLayout,
    *,
    task_index: int,
    class_count: int,
    training: bool,
    shape: Shape | None = None,
    members: Sequence[int] | None = None,
) -> Batch:
    """Lays out up to B examples of one task.

    Args:
      examples: between 1 and B examples; missing ones get weight 0 and no slots.
      answers: the answer's ids for each label; empty for a classification head or free-form
        examples, each of which has its own response as its one answer.
      layout: packing.
      task_index: place of the task in the stream.
      class_count: classes of the task.
      training: whether only the right answer follows the prompt, or every label's.
      shape: shape of the arrays, which must hold the examples; by default one for these alone.
      members: place of each example in the batch of which this is a piece, if it is one.
    """
    return _assemble(
        examples,
        [lay_out(e.prompt, _answers(e, answers, training=training)) for e in examples],
        layout,
        shape,
        training=training,
        task_index=np.int32(task_index),
        class_count=np.int32(class_count),
        members=None
        if members is None
        else np.resize(np.array(members, np.int32), layout.batch_size),
    )


def make_mixed_batch(
    examples: Sequence[TokenizedExample],
    tasks: Sequence[int],
    answers: Sequence[Sequence[np.ndarray]],
    layout: BatchLayout,
    *,
    class_counts: Sequence[int],
    shape: Shape | None = None,
) -> Batch:
    """Lays out up to B examples of several tasks for evaluation: a mixed batch.

    It differs from the batch of one task in the shapes of `task_index` and `class_count` alone.

    Args:
      examples: between 1 and B examples; missing ones get weight 0, no slots and task 0.
      tasks: for each example the place of its task in `answers` and `class_counts`.
      answers: for each task what `make_batch` takes.
      layout: packing.
      class_counts: for each task the number of its classes.
      shape: shape of the arrays, which must hold the examples; by default one for these alone.

    Returns:
      The batch, with `task_index` and `class_count` of shape `[B]`.
    """
    chosen = [_answers(e, answers[t], training=False) for e, t in zip(examples, tasks, strict=True)]
    sequences = [lay_out(e.prompt, own) for e, own in zip(examples, chosen, strict=True)]
    task_index, class_count = np.zeros((2, layout.batch_size), np.int32)
    task_index[: len(tasks)] = tasks
    class_count[: len(tasks)] = [class_counts[task] for task in tasks]
    return _assemble(
        examples,
        sequences,
        layout,
        shape,
        training=False,
        task_index=task_index,
        class_count=class_count,
    )


def _assemble(
    examples: Sequence[TokenizedExample],
    sequences: Sequence[LaidOut],
    layout: BatchLayout,
    shape: Shape | None,
    *,
    training: bool,
    **of_task: Any,
) -> Batch:
    """The batch of laid-out examples; `of_task` are its remaining arrays, as they are."""
    lengths = [len(sequence.tokens) for sequence in sequences]
    rows, offsets, sides = place(lengths, layout, shape)

    grid = {name: np.zeros(sides, np.int32) for name in ("tokens", "positions", "branches")}
    segments = np.zeros(sides, np.int32)
    starts = np.array(rows) * sides[1] + offsets
    filled = np.concatenate(
        [start + np.arange(n) for start, n in zip(starts, lengths, strict=True)]
    )
    filled.sort()
    computed, every = None, math.prod(sides)
    if shape is not None and shape.compact:
        computed = computed_slots(filled, every, shape.slots)
    elif shape is None and layout.packed and layout.compact:
        computed = computed_slots(filled, every, computed_count(len(filled), every))
    count, answer_length = 1 if training else layout.continuations, layout.answer_length
    if shape is not None:
        answer_length = shape.answer
    elif examples[0].response is not None:
        longest = max(len(where) for sequence in sequences for where, _ in sequence.answers)
        fits = longest <= answer_length
        count, answer_length = 1, answer_length if fits else row_length(longest)
    answer_shape = (layout.batch_size, count, answer_length)
    answer_positions = np.zeros(answer_shape, np.int32)
    answer_targets = np.zeros(answer_shape, np.int32)
    answer_mask = np.zeros(answer_shape, np.float32)
    last_token = np.zeros(layout.batch_size, np.int32)
    for index, (sequence, row, offset) in enumerate(zip(sequences, rows, offsets, strict=True)):
        slots = slice(offset, offset + len(sequence.tokens))
        for name, array in grid.items():
            array[row, slots] = getattr(sequence, name)
        segments[row, slots] = index + 1
        flat = row * sides[1] + offset
        if computed is not None:
            flat = int(np.searchsorted(filled, flat))
        last_token[index] = flat + len(examples[index].prompt) - 1
        for branch, (where, targets) in enumerate(sequence.answers):
            answer_positions[index, branch, : len(where)] = flat + where
            answer_targets[index, branch, : len(targets)] = targets
            answer_mask[index, branch, : len(targets)] = 1.0
    predicted, answer_index = _distinct(
        answer_positions, answer_mask * (not training), None if shape is None else shape.predicted
    )
    labels = np.zeros(layout.batch_size, np.int32)
    labels[: len(examples)] = [example.label for example in examples]
    weights = (np.arange(layout.batch_size) < len(examples)).astype(np.float32)
    arrays: dict[str, Any] = {
        **grid,
        "segments": segments,
        "weights": weights,
        "labels": labels,
        "last_token": last_token,
        "answer_positions": answer_positions,
        "predicted": predicted,
        "answer_index": answer_index,
        "answer_targets": answer_targets,
        "answer_mask": answer_mask,
        "slots": computed,
        **of_task,
    }
    return Batch(**arrays)


def _answers(
    example: TokenizedExample, answers: Sequence[np.ndarray], *, training: bool
) -> Sequence[np.ndarray]:
    """What follows an example's prompt."""
    if example.response is not None:
        return [example.response]
    return [answers[example.label]] if training and answers else answers


def _distinct(
    positions: np.ndarray, mask: np.ndarray, count: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[B, K, A]` that are not masked, each once, `[P]`; and the place of each in them.

    Answers of one prompt all begin at its last token. P is `count`, or a multiple of 8 B, so that
    few are compiled.
    """
    distinct = np.unique(positions[mask > 0])
    padded = np.zeros(up(len(distinct), 8 * len(positions)) if count is None else count, np.int32)
    padded[: len(distinct)] = distinct
    index = np.searchsorted(distinct, positions).clip(max=max(len(distinct) - 1, 0))
    return padded, index.astype(np.int32)


def place(
    lengths: Sequence[int], layout: BatchLayout, shape: Shape | None = None
) -> tuple[list[int], list[int], tuple[int, int]]:
    """Row and offset of each sequence and the grid's sides `(R, S)`, those of a shape if given.

    Packed: into rows of one length, the shortest or one up to half as long again, where that leaves
    a twentieth of all slots out. (Attention costs more in longer rows, and where empty slots cost
    attention alone, it is the shortest.) Padded: one row each.
    """
    if shape is not None:
        rows, offsets = list(range(len(lengths))), [0] * len(lengths)
        if layout.packed:
            rows, offsets = shape.places(lengths)
        return rows, offsets, (shape.rows, shape.length)
    if not layout.packed:
        longest = max(lengths)
        slots = layout.padded_length if longest <= layout.padded_length else row_length(longest)
        count = up(layout.batch_size, layout.row_multiple)
        return list(range(len(lengths))), [0] * len(lengths), (count, slots)
    shortest = row_length(max(max(lengths), layout.row_length))
    longest = shortest if layout.padded_length or layout.compact else shortest * 3 // 2
    packings = []
    for slots in (slots for slots in ROW_LENGTHS if shortest <= slots <= longest):
        rows, offsets = first_fit(lengths, slots)
        sides = (up(max(rows) + 1, layout.row_multiple), slots)
        cost = math.prod(sides) * (1.0 if slots == shortest else 1 / 0.95)
        packings.append((cost, rows, offsets, sides))
    return min(packings)[1:]


def computed_count(filled: int, slots: int) -> int:
    """How many of so many slots are computed where so many are filled.

    It is a multiple of 32, and of an eighth of the power of two below the number of the filled, so
    that few shapes are compiled.
    """
    return min(up(filled, max(32, 2 ** int(np.log2(filled)) // 8)), slots)


def computed_slots(filled: np.ndarray, slots: int, count: int) -> np.ndarray:
    """Which of so many slots are computed: those that are filled, ascending, then empty ones.

    What is computed of a filled slot does not depend on how many empty ones follow.
    """
    empty = np.setdiff1d(np.arange(slots), filled)
    return np.concatenate([filled, empty[: count - len(filled)]]).astype(np.int32)


def epoch_order(seed: int, task_index: int, epoch: int, count: int) -> np.ndarray:
    """Permutation of `count` examples, a function of seed, task and epoch alone."""
    return np.random.default_rng((seed, task_index, epoch)).permutation(count)


def chunks(order: Sequence[int] | np.ndarray, size: int) -> Iterator[Sequence[int]]:
    """Consecutive pieces of `size`; the last may be shorter."""
    for start in range(0, len(order), size):
        yield list(order[start : start + size])
