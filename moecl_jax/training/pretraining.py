"""Continued pre-training: what all tasks share is trained on plain text before the first task.

    L = mean over tokens i of - log p(i + 1 | .. i)

(Gururangan et al. 2020, arXiv 2004.10964). Texts are streamed, never all in memory. They are
packed: put one after the other with an end of sequence between them, and cut into rows of equal
length. One paragraph in twenty is held out, and tells the perplexity before and after.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from moecl_jax import quiet, reporting, stopping
from moecl_jax.data.batching import Batch
from moecl_jax.data.encoding import TEXTS_A_CALL, encode_between
from moecl_jax.data.rows import up
from moecl_jax.data.tokenize import end_of_sequence
from moecl_jax.errors import UserError, one_line
from moecl_jax.methods.added_loras import AddedLoras
from moecl_jax.methods.forward import StepContext, forward, vocabulary_logits
from moecl_jax.methods.next_token import next_token_losses
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.stream import StreamState, in_corner
from moecl_jax.models.sharding import first_process, wait_for_all
from moecl_jax.progress import TRAIN
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.training.schedule import Schedule
from moecl_jax.training.steps import make_optimizer
from moecl_jax.writing import whole_file

PRETRAINED_NAME = "pretrained.safetensors"
"""The file in a workdir with what all tasks share as it was pre-trained."""

_HELD_OUT = 20  # one paragraph in so many is held out
_HELD_OUT_ROWS = 64  # rows of held-out text that are scored, at most
_SHUFFLED = 1024  # paragraphs that are in memory, to be drawn from
_FACTS = "facts"  # key of the file's metadata
_KEY = 0x707265  # tells the random numbers of pre-training from a task's


def pretrained(
    evaluator: Evaluator, stream: StreamState, workdir: Path | None
) -> tuple[StreamState, dict[str, Any] | None]:
    """The state before the first task, pre-trained as the settings ask for it.

    Args:
      evaluator: model, method and tasks.
      stream: the state before, with no finished task.
      workdir: keeps what was pre-trained, so that a training that is interrupted in its first task
        goes on from it; None keeps nothing.

    Returns:
      The state; and what is told of the pre-training: `texts`, `steps`, `tokens` and
      `held_out_tokens`, and `perplexity_before` and `perplexity_after` of the held-out texts. The
      state as it was and None where no texts are named.

    Raises:
      UserError: there are no texts, the model has no tokenizer, or the method has nothing that all
        tasks share.
    """
    settings = evaluator.settings
    if not settings.self_supervised.texts:
        return stream, None
    _refuse_nothing_shared(evaluator, stream)
    file = None if workdir is None else workdir / PRETRAINED_NAME
    saved = file is not None and file.exists()
    wait_for_all("looked for what was pre-trained")
    if file is not None and saved:
        shared, facts = _load(file, stream.shared)
        shared = in_corner(shared, stream.shared)  # tasks may have been added since
        return dataclasses.replace(stream, shared=shared), facts
    texts = Texts(Path(settings.self_supervised.texts), settings.seed)
    training = _Pretraining(evaluator, stream, texts)
    before = training.perplexity()
    tokens = training.run(settings.self_supervised.steps)
    facts = {
        "texts": str(texts.folder),
        "steps": settings.self_supervised.steps,
        "tokens": tokens,
        "held_out_tokens": training.held_out_tokens,
        "perplexity_before": before,
        "perplexity_after": training.perplexity(),
    }
    if not math.isfinite(facts["perplexity_after"]):
        raise _not_finite(texts, "ends in a perplexity")
    reporting.current().message(
        f"pre-trained on {texts.folder}: perplexity of held-out text {before:.2f}, now "
        f"{facts['perplexity_after']:.2f}"
    )
    shared = evaluator.model.placement.host(training.shared)
    if file is not None and first_process():
        _save(file, shared, facts)
    return dataclasses.replace(stream, shared=jax.tree.map(jnp.asarray, shared)), facts


@dataclasses.dataclass(frozen=True)
class Texts:
    """The paragraphs of the text files of a folder.

    Attributes:
      folder: text files (.txt, UTF-8), in it or below; a paragraph ends with an empty line.
      seed: seed of their order in training.
    """

    folder: Path
    seed: int

    def held_out(self) -> Iterator[str]:
        """The paragraphs that are not trained on."""
        return (text for place, text in enumerate(self._texts()) if place % _HELD_OUT == 0)

    def training(self, epoch: int) -> Iterator[str]:
        """The others, shuffled as they are streamed."""
        others = (text for place, text in enumerate(self._texts()) if place % _HELD_OUT)
        return shuffled(others, np.random.default_rng((self.seed, epoch, *b"texts")), _SHUFFLED)

    def _texts(self) -> Iterator[str]:
        """All paragraphs, in the order of the files' paths.

        Raises:
          UserError: there are no text files, or one cannot be read.
        """
        import datasets

        files = sorted(str(path) for path in self.folder.rglob("*.txt"))
        if not files:
            raise UserError(
                f"config: self_supervised.texts = '{self.folder}' holds no text files (.txt); name "
                "a folder that does"
            )
        with quiet.datasets():
            rows = datasets.load_dataset(
                "text", data_files=files, split="train", streaming=True, sample_by="paragraph"
            )
        try:
            for row in rows:
                if row["text"].strip():
                    yield row["text"].strip("\r\n")
        except (OSError, ValueError) as error:  # a UnicodeDecodeError is one
            raise UserError(
                f"the text files of {self.folder} cannot be read as UTF-8: {one_line(error)}"
            ) from error


def shuffled(texts: Iterator[str], generator: np.random.Generator, size: int) -> Iterator[str]:
    """Texts in a random order, drawn from `size` of them at a time."""
    waiting = list(itertools.islice(texts, size))
    for text in texts:
        place = int(generator.integers(len(waiting)))
        waiting[place], drawn = text, waiting[place]
        yield drawn
    yield from (waiting[place] for place in generator.permutation(len(waiting)))


def rows_of(texts: Iterable[str], tokenizer: Any, length: int) -> Iterator[np.ndarray]:
    """Texts in rows of so many tokens, the last of which may be shorter.

    Each text ends in end of sequence: of texts `[5, 6]` and `[7]`, and 2 for the end, rows of three
    are `[5, 6, 2]` and `[7, 2]`. A last row of one token, which predicts nothing, is left out.
    """
    end, rest = end_of_sequence(tokenizer), list[int]()
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, TEXTS_A_CALL)):
        for ids, _ in encode_between(chunk, "", "", tokenizer, special_tokens=False):
            rest += [*ids, end]
            while len(rest) >= length:
                yield np.array(rest[:length], np.int32)
                del rest[:length]
    if len(rest) > 1:
        yield np.array(rest, np.int32)


def batch_of_rows(rows: list[np.ndarray], count: int, length: int) -> Batch:
    """A batch of rows of text, one example each and without answers.

    Args:
      rows: at most `count` rows of at most `length` ids.
      count: number of rows of the batch; missing ones are empty.
      length: number of slots of a row.
    """
    tokens, segments = np.zeros((2, count, length), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
        segments[place, : len(row)] = place + 1
    nowhere = np.zeros(count, np.int32)
    answer = np.zeros((count, 1, 1), np.int32)
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "positions": np.tile(np.arange(length, dtype=np.int32), (count, 1)),
        "segments": segments,
        "branches": np.zeros_like(tokens),
        "weights": (np.arange(count) < len(rows)).astype(np.float32),
        "labels": nowhere,
        "last_token": nowhere,
        "answer_positions": answer,
        "predicted": np.zeros(0, np.int32),
        "answer_index": answer,
        "answer_targets": answer,
        "answer_mask": answer.astype(np.float32),
        "task_index": np.int32(0),
        "class_count": np.int32(1),
    }
    return Batch(**arrays)


class _Pretraining:
    """The training of a stream's shared tree on texts.

    Attributes:
      shared: the tree as it is now.
      held_out_tokens: number of tokens that are predicted in the held-out texts.
    """

    def __init__(self, evaluator: Evaluator, stream: StreamState, texts: Texts):
        model, settings = evaluator.model, evaluator.settings
        if model.tokenizer is None:
            raise UserError(
                f"{model.source} holds no tokenizer, without which self_supervised.texts cannot be "
                "read; put its tokenizer.json there"
            )
        self.model, self.texts, self.seed = model, texts, settings.seed
        self.size = up(settings.batch.size, model.placement.row_shards)
        self.length = settings.data.max_length
        starting = evaluator.starting
        begun = starting.begin(stream.shared, 0, None, stream.memory)
        memory = evaluator.method.begin_task(begun, starting.task_start(0))  # as if in a task
        self.parameters = model.placement.put(begun.replace(memory=memory))
        self.shared = self.parameters.shared
        section = settings.optimizer
        optimizer = make_optimizer(0.0, section.clip_norm)  # decay would move what has no gradient
        self.optimizer_state = model.placement.put(optimizer.init(self.shared))
        self.schedule = Schedule.of(section)
        context = evaluator.context
        step = functools.partial(pretraining_step, context=context, optimizer=optimizer)
        self.step = jax.jit(step)
        self.scored = jax.jit(functools.partial(text_losses, context=context))
        rows = itertools.islice(self._rows(texts.held_out()), _HELD_OUT_ROWS)
        self.held_out = list(self._batches(rows))
        if not self.held_out:
            raise _too_little(texts)
        self.held_out_tokens = 0

    def perplexity(self) -> float:
        """Perplexity of the held-out texts."""
        total, count = 0.0, 0.0
        parameters = self.parameters.replace(shared=self.shared)
        for batch in self.held_out:
            stopping.check()
            losses, follows = self.scored(parameters, self.model.params, batch)
            total += float(np.asarray(losses, np.float64).sum())
            count += float(np.asarray(follows).sum())
        self.held_out_tokens = int(count)
        return math.exp(total / count) if count and total / count < 700 else math.inf

    def run(self, steps: int) -> int:
        """Trains; returns the number of tokens that were predicted."""
        key = jax.random.fold_in(jax.random.key(self.seed), _KEY)
        tokens = 0
        total, length = steps * self.size, self.length
        with reporting.stage("pre-training", TRAIN, total, size=length) as stage:
            for place, batch in enumerate(itertools.islice(self._endless(), steps)):
                stopping.check()
                rate = np.float32(self.schedule(place, steps))
                self.shared, self.optimizer_state, loss = self.step(
                    self.shared,
                    self.optimizer_state,
                    jax.random.fold_in(key, place),
                    self.parameters,
                    self.model.params,
                    batch,
                    rate,
                )
                tokens += int(np.maximum(np.count_nonzero(batch.segments, axis=1) - 1, 0).sum())
                if place % 10 == 0:
                    stage.losses = {"loss": float(loss)}
                    if not math.isfinite(stage.losses["loss"]):
                        raise _not_finite(self.texts, f"has after {place + 1} steps a loss")
                reporting.advance(self.size)
        return tokens

    def _endless(self) -> Iterator[Batch]:
        """Batches of one pass over the texts after another."""
        for epoch in itertools.count():
            empty = True
            for batch in self._batches(self._rows(self.texts.training(epoch))):
                empty = False
                yield batch
            if empty:
                raise _too_little(self.texts)

    def _rows(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        return rows_of(texts, self.model.tokenizer, self.length)

    def _batches(self, rows: Iterator[np.ndarray]) -> Iterator[Batch]:
        while chunk := list(itertools.islice(rows, self.size)):
            yield batch_of_rows(chunk, self.size, self.length)


def _not_finite(texts: Texts, what: str) -> UserError:
    return UserError(
        f"pre-training on {texts.folder} {what} that is not finite; lower optimizer.learning_rate, "
        "or set optimizer.clip_norm"
    )


def _too_little(texts: Texts) -> UserError:
    return UserError(
        f"the text files of {texts.folder} hold too little text: one paragraph in {_HELD_OUT} is "
        "held out, the first among them, and the others are trained on. Give more text, with empty "
        "lines between paragraphs"
    )


def pretraining_step(
    shared: Tree,
    optimizer_state: optax.OptState,
    key: jax.Array,
    parameters: TaskParameters,
    frozen: Tree,
    batch: Batch,
    learning_rate: jax.Array,
    *,
    context: StepContext,
    optimizer: optax.GradientTransformation,
) -> tuple[Tree, optax.OptState, jax.Array]:
    """One update of the shared tree by next tokens; returns it, the optimizer's state and the loss.

    Args:
      shared: the tree that is trained.
      optimizer_state: the optimizer's state, of `shared` alone.
      key: PRNG key of the step.
      parameters: those with which the first task begins, for all but the shared tree.
      frozen: parameters of the decoder.
      batch: rows of text.
      learning_rate: scalar of this step.
      context: static parts.
      optimizer: optimizer that `make_optimizer` gives.
    """

    def loss_of(trained: Tree) -> jax.Array:
        losses, follows = text_losses(
            parameters.replace(shared=trained), frozen, batch, context=context, key=key
        )
        return jnp.sum(losses) / jnp.maximum(jnp.sum(follows), 1.0)

    loss, gradient = jax.value_and_grad(loss_of)(shared)
    updates, optimizer_state = optimizer.update(gradient, optimizer_state, shared)
    shared = jax.tree.map(lambda p, u: p - learning_rate * u, shared, updates)
    return context.placement.keep(shared), optimizer_state, loss


def text_losses(
    parameters: TaskParameters,
    frozen: Tree,
    batch: Batch,
    *,
    context: StepContext,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What `next_token_losses` gives for rows of text; with a key for dropout in training."""
    seeds = None
    if key is not None:
        seeds = jax.random.bits(key, (context.architecture.sizes.layers,), jnp.uint32)
    hidden, _ = forward(parameters, frozen, batch, context, seeds=seeds)
    logits_of = functools.partial(_logits, parameters, frozen, context)
    return next_token_losses(hidden, batch, logits_of)


def _logits(
    parameters: TaskParameters, frozen: Tree, context: StepContext, states: jax.Array
) -> jax.Array:
    return vocabulary_logits(parameters, states, frozen, context)


def _refuse_nothing_shared(evaluator: Evaluator, stream: StreamState) -> None:
    """Refuses methods whose tasks carry nothing on that could be pre-trained."""
    if not jax.tree.leaves(stream.shared) or isinstance(evaluator.method, AddedLoras):
        raise UserError(
            f"config: self_supervised.texts: method = '{evaluator.method.name}' has nothing that "
            "all tasks carry on, which could be pre-trained; leave the texts out, or take another "
            "method, such as 'moe_cl' or 'sequential_lora'"
        )


def _save(file: Path, shared: Tree, facts: dict[str, Any]) -> None:
    tensors = {
        jax.tree_util.keystr(path): np.ascontiguousarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(shared)
    }
    with whole_file(file) as stream:
        stream.write(safetensors.numpy.save(tensors, metadata={_FACTS: json.dumps(facts)}))


def _load(file: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """The saved tree, in the structure of another.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with safetensors.safe_open(file, "numpy") as tensors:
            facts = json.loads(tensors.metadata()[_FACTS])
            shared = jax.tree.map_with_path(
                lambda path, _: jnp.asarray(tensors.get_tensor(jax.tree_util.keystr(path))), like
            )
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{file} is damaged: {one_line(error)}. Delete it to pre-train again"
        ) from error
    return shared, facts
