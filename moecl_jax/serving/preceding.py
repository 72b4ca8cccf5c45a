"""Puts what a method says before texts' prompts, as far as it fits the model's context."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.demonstrations import (
    demonstration,
    fitting,
    front_of,
    one_after_another,
    separator_of,
    without_front,
)
from moecl_jax.data.encoding import encode_between
from moecl_jax.data.rehearsal import with_response
from moecl_jax.data.rows import ROW_LENGTHS, up
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TokenizedExample, end_of_sequence, prompt_format
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.preceding import Asked, Preceding
from moecl_jax.models.decoder import Prefix, empty_cache
from moecl_jax.models.light_tokenizer import AnyTokenizer
from moecl_jax.models.model import Model

_PREFIX_SLOTS = 128  # a prefix's slots are a multiple of it, so that few shapes are compiled
_MOST_PREFIXES = 8  # tasks whose prefixes are kept on the device


@dataclasses.dataclass(frozen=True)
class Preceded:
    """Texts with what stands before them.

    Attributes:
      parameters: parameters that answer, as programs are given them.
      examples: the texts, whose prompts begin with their own pieces.
      prefix: what stands before all of them; None for nothing.
      own_limit: the most tokens by which a text's own pieces make its prompt longer.
      shown: number of pieces that precede each text, summed over the texts.
      left_out: number of pieces that did not fit, likewise.
    """

    parameters: TaskParameters
    examples: Sequence[TokenizedExample]
    prefix: Prefix | None = None
    own_limit: int = 0
    shown: int = 0
    left_out: int = 0


class Preceder:
    """Puts before the texts of tasks what a method says.

    Attributes:
      read_prefix: the compiled function of that name.
    """

    def __init__(
        self, model: Model, context: StepContext, tasks: Sequence[Task], max_length: int
    ) -> None:
        """For the tasks of a stream.

        Args:
          model: frozen LLM with a tokenizer.
          context: static parts of all steps.
          tasks: tasks of the stream in their order.
          max_length: tokens of a prompt with its answer, which no piece takes room from.
        """
        self._model, self._method, self._tasks = model, context.method, tasks
        self._room = min(model.sizes.context_length, ROW_LENGTHS[-1]) - max_length
        self._prefixes: dict[int, tuple[TaskParameters, bytes, Prefix]] = {}
        self.read_prefix = jax.jit(functools.partial(read_prefix, context=context))

    def __call__(
        self,
        parameters: TaskParameters,
        index: int,
        examples: Sequence[TokenizedExample],
        features: Callable[[Sequence[TokenizedExample]], np.ndarray],
    ) -> Preceded:
        """Texts that are asked as a task's, with what precedes them.

        Args:
          parameters: parameters that answer.
          index: place of the task.
          examples: n texts.
          features: gives what the frozen model makes of texts alone, `[n, D]`.
        """
        tokenizer = self._model.tokenizer
        assert tokenizer is not None
        separator = separator_of(prompt_format(self._tasks[index], tokenizer), tokenizer)
        asked = Asked(
            index,
            examples,
            lambda: features(examples),
            lambda text: plain_ids(text, tokenizer),
            len(separator),
        )
        answering = self._model.placement.put(self._method.answering(parameters))
        return preceded(
            answering,
            examples,
            self._method.preceding(parameters, asked),
            front=front_of(tokenizer),
            separator=separator,
            room=self._room,
            read=functools.partial(self._read, parameters, answering, index),
        )

    def demonstrations(
        self, index: int, examples: Sequence[TokenizedExample], answers: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """The ids of examples of a task with their answers, as they precede other prompts.

        Args:
          index: place of the task.
          examples: examples of it.
          answers: ids of each label's text; empty in a free-form task.
        """
        tokenizer = self._model.tokenizer
        assert tokenizer is not None
        form, front = prompt_format(self._tasks[index], tokenizer), front_of(tokenizer)
        end = end_of_sequence(tokenizer)
        return [
            demonstration(with_response(example, answers), form, front, end) for example in examples
        ]

    def _read(
        self, parameters: TaskParameters, answering: TaskParameters, index: int, ids: np.ndarray
    ) -> Prefix:
        """The prefix of a task's texts, computed once for the same parameters and ids."""
        known = self._prefixes.get(index)
        if known is None or known[0] is not parameters or known[1] != ids.tobytes():
            if len(self._prefixes) >= _MOST_PREFIXES:
                self._prefixes.clear()
            tokens = np.zeros(up(len(ids), _PREFIX_SLOTS), np.int32)
            tokens[: len(ids)] = ids
            length = np.int32(len(ids))
            prefix = self.read_prefix(answering, self._model.params, tokens, length)
            known = self._prefixes[index] = parameters, ids.tobytes(), prefix
        return known[2]


def plain_ids(text: str, tokenizer: AnyTokenizer) -> np.ndarray:
    """The ids of a text, int32 `[P]`; a special token's text in it is plain characters."""
    [(ids, _)] = encode_between([text], "", "", tokenizer, special_tokens=False)
    return np.array(ids, np.int32)


def preceded(
    answering: TaskParameters,
    examples: Sequence[TokenizedExample],
    before: Preceding,
    *,
    front: np.ndarray,
    separator: np.ndarray,
    room: int,
    read: Callable[[np.ndarray], Prefix],
) -> Preceded:
    """Texts with what stands before them; of pieces that do not fit, none is cut.

    Args:
      answering: parameters that answer.
      examples: n texts.
      before: what a method says of them.
      front: ids before any text.
      separator: ids after each piece.
      room: tokens that there is room for.
      read: reads ids into a prefix.
    """
    count = len(examples)
    room = max(0, room - len(front))
    used = fitting([len(piece) + len(separator) for piece in before.common], room)
    common = one_after_another([before.common[place] for place in used], separator)
    shown, left_out = count * len(used), count * (len(before.common) - len(used))
    limit = min(room - len(common), before.own_limit)
    prompts = [example.prompt for example in examples]
    if len(common):
        prompts = [without_front(prompt, front) for prompt in prompts]
    for place, pieces in enumerate(before.own):
        chosen = fitting([len(piece) + len(separator) for piece in pieces], limit)
        shown, left_out = shown + len(chosen), left_out + len(pieces) - len(chosen)
        if chosen:
            own = one_after_another([pieces[index] for index in chosen], separator)
            first = front[: 0 if len(common) else None]
            prompts[place] = np.concatenate([first, own, without_front(prompts[place], front)])
    return Preceded(
        answering,
        [
            example if example.prompt is prompt else dataclasses.replace(example, prompt=prompt)
            for example, prompt in zip(examples, prompts, strict=True)
        ],
        read(np.concatenate([front, common])) if len(common) else None,
        limit + len(front) if before.own else 0,
        shown,
        left_out,
    )


def read_prefix(
    parameters: TaskParameters,
    frozen: Tree,
    tokens: jax.Array,
    length: jax.Array,
    *,
    context: StepContext,
) -> Prefix:
    """Computes the keys and values of tokens that stand before texts.

    Args:
      parameters: parameters that answer for the texts.
      frozen: parameters of the decoder.
      tokens: `[P]` ids, padded at the end.
      length: scalar, how many of them are tokens.
      context: static parts.
    """
    method, slots = context.method, len(tokens)
    cache = empty_cache(context.architecture.sizes, 1, slots, context.architecture.dtype)
    out: Any = context.decoder(training=False).apply(
        {"params": method.llm_weights(frozen, parameters.shared)},
        tokens[None],
        jnp.arange(slots)[None],
        cache,
        method.adapter(parameters),
        method="decode",
    )
    return Prefix.of(out[1], length)
