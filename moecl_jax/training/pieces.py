"""Which shapes a stream's training batches have, and how a batch is cut into pieces of them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from moecl_jax.data.batching import Batch, BatchLayout, chunks, epoch_order, make_batch, need_of
from moecl_jax.data.rehearsal import with_response
from moecl_jax.data.shapes import Need, Shape, pieces
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.training.steps import Piece

_BATCHES = 48  # batches of a task that shapes are chosen by


@dataclasses.dataclass(frozen=True)
class Cutter:
    """Cuts training batches into pieces.

    Attributes:
      evaluator: model, method and tasks.
      examples: each task's training examples.
      layout: packing of the pieces.
      shapes: shapes of the pieces.
      parts: the least number of pieces of a batch.
    """

    evaluator: Evaluator
    examples: Sequence[Sequence[TokenizedExample]]
    layout: BatchLayout
    shapes: tuple[Shape, ...]
    parts: int

    @classmethod
    def of(cls, evaluator: Evaluator, tasks: Sequence[TokenizedTask]) -> "Cutter":
        """Chooses the shapes by the lengths of the tasks' training examples.

        Raises:
          UserError: a batch cannot be computed in so many parts, or an example is too long.
        """
        settings, policy = evaluator.settings, evaluator.method.examples
        size = settings.batch.size + policy.joined
        parts = settings.batch.accumulation_steps
        if parts > size:
            raise UserError(
                f"config: batch.accumulation_steps = {parts} exceeds the {size} examples of a "
                "training batch; lower it, or raise batch.size"
            )
        layout = evaluator.layout(-(-size // parts))
        examples = [own_examples(evaluator, task, place) for place, task in enumerate(tasks)]
        needs = [
            [need_of(example, evaluator.answers[place], training=True) for example in own]
            for place, own in enumerate(examples)
        ]
        batches = _batches(needs, settings.batch.size, policy.joined, policy.joint, settings.seed)
        cut = [[batch[i] for i in part] for batch in batches for part in _parts(len(batch), parts)]
        every = list(itertools.chain.from_iterable(needs))
        for size_of in (lambda need: need.slots, lambda need: need.answer):
            cut += [[max(every, key=size_of)]] if every else []
        steps = sum(-(-len(of_task) // settings.batch.size) for of_task in needs)
        count = steps * settings.epochs * parts
        return cls(
            evaluator, examples, layout, layout.planner.choose(cut, count) if cut else (), parts
        )

    @classmethod
    def of_unknown(cls, evaluator: Evaluator) -> "Cutter":
        """Cuts batches of examples that are not known yet, in a few shapes up to the longest."""
        settings = evaluator.settings
        parts = settings.batch.accumulation_steps
        layout = evaluator.layout(-(-settings.batch.size // parts))
        answer = max((len(ids) for labels in evaluator.answers for ids in labels), default=1)
        longest = settings.data.max_length
        lengths = sorted({max(longest // part, min(longest, 2 * answer)) for part in (1, 2, 4, 8)})
        needs = [Need(length, answer, answer) for length in lengths]
        batches = [[need] * layout.batch_size for need in needs] + [[needs[-1]]]
        return cls(evaluator, (), layout, layout.planner.choose(batches, 10**6), parts)

    def cut(self, index: int, examples: Sequence[TokenizedExample]) -> list[tuple[Batch, Piece]]:
        """The pieces of a batch of a task: their arrays, and what the step is told of each."""
        answers, layout = self.evaluator.answers[index], self.layout
        needs = [need_of(example, answers, training=True) for example in examples]
        averaged = np.array([n.answer if self.evaluator.context.head == "lm" else 1 for n in needs])
        placed = [
            ([part[i] for i in places], shape)
            for part in _parts(len(examples), self.parts)
            for places, shape in pieces(
                [needs[i] for i in part], self.shapes, layout.batch_size, layout.packed
            )
        ]
        found = []
        for number, (places, shape) in enumerate(placed):
            piece = Piece.of(
                averaged[places].sum() / averaged.sum(),
                len(places) / len(examples),
                number == len(placed) - 1,
            )
            found.append((self._batch(index, [examples[p] for p in places], shape, places), piece))
        return found

    def samples(self) -> Iterator[tuple[Batch, Piece]]:
        """A batch of each shape."""
        for shape in self.shapes:
            for index, own in enumerate(self.examples):
                answers = self.evaluator.answers[index]
                fitting = (
                    example
                    for example in own
                    if shape.holds([need_of(example, answers, training=True)], self.layout.packed)
                )
                example = next(fitting, None)
                if example is not None:
                    yield self._batch(index, [example], shape, [0]), Piece.of(1.0, 1.0, last=True)
                    break

    def of_one_shape(self, index: int, examples: Sequence[TokenizedExample]) -> Iterator[Batch]:
        """Batches of examples of a task in their order, all of the shape that any example fits."""
        answers, layout = self.evaluator.answers[index], self.layout
        widest = max(self.shapes, key=lambda shape: (shape.length, shape.answer, shape.slots))
        for chunk in chunks(range(len(examples)), layout.batch_size):
            chosen = [examples[place] for place in chunk]
            needs = [need_of(example, answers, training=True) for example in chosen]
            for places, shape in pieces(needs, (widest,), layout.batch_size, layout.packed):
                yield self._batch(index, [chosen[p] for p in places], shape, places)

    def alone(self, index: int, example: TokenizedExample) -> Batch:
        """The batch of one example of a task, of one shape for all examples."""
        length = max(shape.length for shape in self.shapes)
        shape = Shape(length, 1, length, max(shape.answer for shape in self.shapes))
        return self._batch(index, [example], shape, [0], batch_size=1)

    def _batch(
        self,
        index: int,
        examples: Sequence[TokenizedExample],
        shape: Shape,
        members: Sequence[int],
        batch_size: int | None = None,
    ) -> Batch:
        size = self.layout.batch_size if batch_size is None else batch_size
        return make_batch(
            examples,
            self.evaluator.answers[index],
            dataclasses.replace(self.layout, batch_size=size),
            task_index=index,
            class_count=len(self.evaluator.tasks[index].labels),
            training=True,
            shape=shape,
            members=members,
        )


def own_examples(evaluator: Evaluator, task: TokenizedTask, place: int) -> list[TokenizedExample]:
    """A task's training examples, as they mix with those of others if they have to."""
    policy, examples = evaluator.method.examples, task.splits["train"]
    if not policy.joint and not policy.joined:
        return list(examples)
    return [with_response(example, evaluator.answers[place]) for example in examples]


def _batches(
    needs: Sequence[Sequence[Need]], size: int, joined: int, joint: bool, seed: int
) -> Iterator[list[Need]]:
    """Batches like those that will be trained: of each task's first epoch, or of all tasks'."""
    generator = np.random.default_rng((seed, *b"shapes"))
    pools = [list(itertools.chain.from_iterable(needs))] if joint else list(needs)
    for place, pool in enumerate(pools):
        drawn = list(chunks(epoch_order(seed, place, 0, len(pool)), size))
        earlier = list(itertools.chain.from_iterable(pools[:place])) if joined else []
        for chunk in drawn[:: -(-len(drawn) // _BATCHES)] if drawn else ():
            more = generator.permutation(len(earlier))[:joined]
            yield [*(pool[i] for i in chunk), *(earlier[i] for i in more)]


def _parts(count: int, parts: int) -> list[list[int]]:
    """At most `parts` pieces of so many examples, none empty, whose sizes differ by one at most."""
    bounds = np.linspace(0, count, min(parts, count) + 1).astype(int)
    return [list(range(start, end)) for start, end in itertools.pairwise(bounds)]
