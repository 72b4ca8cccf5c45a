"""Writing text: a batch of prompts is read into a cache, then one token follows another.

Axes: R rows, each with one text; S slots of the longest prompt; V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import reporting, stopping
from moecl_jax.data.batching import chunks
from moecl_jax.data.rows import row_length
from moecl_jax.errors import UserError
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.decoder import KeyValueCache, Prefix, empty_cache

_TOKENS_A_CALL = 64  # at most; a call ends with its last text
NOT_FINITE = (
    "the model's scores are not finite, so that they choose no token: its weights or its training "
    "are broken"
)
"""Why a prompt has no continuation."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: only the k most probable tokens are drawn; 0 for all.
      top_p: only the most probable of those are drawn that together reach this probability.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature = {self.temperature} must be a number of at least 0")
        if self.top_k < 0:
            raise UserError(f"top_k = {self.top_k} must be at least 0 (all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p} must be above 0 and at most 1")


GREEDY = Sampling()


@flax.struct.dataclass
class Continuation:
    """Texts being written.

    Attributes:
      cache: keys and values of all tokens but the last one of each row.
      tokens: `[R]`, the last ones.
      positions: `[R]`, theirs.
      done: `[R]`, whether the text has ended.
      finite: `[R]`, whether each token was chosen by finite logits. A text ends where one was not.
      keys: `[R]`, a key a row; each position folds its number in.
      query: `[R, D]`, mean frozen word embedding of each prompt.
    """

    cache: KeyValueCache
    tokens: jax.Array
    positions: jax.Array
    done: jax.Array
    finite: jax.Array
    keys: jax.Array
    query: jax.Array


def read_prompts(
    parameters: TaskParameters,
    frozen: Tree,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    prefix: Prefix | None = None,
    *,
    context: StepContext,
    end: int,
    sampling: Sampling,
    slots: int,
) -> Continuation:
    """Reads prompts and writes the first token after each.

    Args:
      parameters: parameters of the task.
      frozen: parameters of the decoder.
      prompts: `[R, S]` ids, padded at the end.
      lengths: `[R]`; 0 for a row that is to be left alone.
      keys: `[R]`.
      prefix: tokens before each prompt; None for none.
      context: static parts.
      end: id of end of sequence.
      sampling: how tokens are chosen.
      slots: slots of the cache: at least the prefix and S, and the tokens of the longest finished
        text.
    """
    rows, width = prompts.shape
    cache = empty_cache(context.architecture.sizes, rows, slots, context.architecture.dtype)
    positions = jnp.broadcast_to(jnp.arange(width), prompts.shape)
    decoder = context.architecture.frozen_decoder()
    words: Any = decoder.apply({"params": frozen}, prompts.reshape(-1), method="embed")
    real = (positions < lengths[:, None]).astype(jnp.float32)
    words = words.reshape(rows, width, -1).astype(jnp.float32)
    query = jnp.einsum("rs,rsd->rd", real, words) / jnp.maximum(lengths, 1)[:, None]
    writer = _Writer.of(parameters, frozen, jnp.repeat(query, width, axis=0), context)
    last = jnp.maximum(lengths, 1) - 1
    at = last
    if prefix is not None:
        cache, positions, at = prefix.into(cache), prefix.length + positions, prefix.length + last
    hidden, cache = writer.decode(prompts, positions, cache)
    texts = Continuation(cache, prompts[:, 0], at, lengths == 0, jnp.ones(rows, bool), keys, query)
    return _append(texts, writer.logits(hidden[jnp.arange(rows) * width + last]), end, sampling)


def write_tokens(
    parameters: TaskParameters,
    frozen: Tree,
    continuation: Continuation,
    count: jax.Array,
    *,
    context: StepContext,
    end: int,
    sampling: Sampling,
    room: int,
) -> tuple[jax.Array, Continuation]:
    """Writes more tokens of each text, until all have ended.

    Args:
      parameters: parameters of the task.
      frozen: parameters of the decoder.
      continuation: the texts so far.
      count: largest number of tokens to write, at most `room`.
      context: static parts.
      end: id of end of sequence.
      sampling: how tokens are chosen.
      room: tokens that there is room for.

    Returns:
      The tokens `[room, R]`, with ends after those that were written, and the longer texts.
    """
    writer = _Writer.of(parameters, frozen, continuation.query, context)
    rows = len(continuation.tokens)

    def unfinished(state: tuple[jax.Array, jax.Array, Continuation]) -> jax.Array:
        written, _, texts = state
        return (written < count) & ~texts.done.all()

    def write(
        state: tuple[jax.Array, jax.Array, Continuation],
    ) -> tuple[jax.Array, jax.Array, Continuation]:
        written, tokens, texts = state
        hidden, cache = writer.decode(texts.tokens[:, None], texts.positions[:, None], texts.cache)
        texts = dataclasses.replace(texts, cache=cache)
        texts = _append(texts, writer.logits(hidden), end, sampling)
        return written + 1, tokens.at[written].set(texts.tokens), texts

    nothing = jnp.int32(0), jnp.full((room, rows), end, jnp.int32), continuation
    _, tokens, continuation = jax.lax.while_loop(unfinished, write, nothing)
    return tokens, continuation


def choose(
    logits: jax.Array, keys: jax.Array, positions: jax.Array, sampling: Sampling
) -> jax.Array:
    """The next token of each row.

    A row's choice depends on its own key and position alone, not on the rows beside it.

    Args:
      logits: `[R, V]` float32.
      keys: `[R]`.
      positions: `[R]`, of the tokens that are chosen.
      sampling: how.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        shares = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        least = jnp.where(before < sampling.top_p, descending, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in)(keys, positions), logits)


@dataclasses.dataclass(frozen=True)
class Generator:
    """The compiled functions that write text, and what they need of a model.

    Attributes:
      read_prompts: compiled function of that name.
      write_tokens: compiled function of that name, which overwrites the texts that it is given.
      frozen: parameters of the decoder.
      end: id of end of sequence.
      context_length: tokens a text may have.
    """

    read_prompts: Callable[..., Continuation]
    write_tokens: Callable[..., tuple[jax.Array, Continuation]]
    frozen: Tree
    end: int
    context_length: int

    @classmethod
    def of(cls, context: StepContext, frozen: Tree, end: int) -> "Generator":
        """Makes the functions; each is compiled when it first meets a shape.

        Args:
          context: static parts.
          frozen: parameters of the decoder.
          end: id of end of sequence.
        """
        read = functools.partial(read_prompts, context=context, end=end)
        write = functools.partial(write_tokens, context=context, end=end, room=_TOKENS_A_CALL)
        return cls(
            jax.jit(read, static_argnames=("sampling", "slots")),
            jax.jit(write, static_argnames="sampling", donate_argnums=2),
            frozen,
            end,
            context.architecture.sizes.context_length,
        )

    def write(
        self,
        parameters: TaskParameters,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        batch_size: int = 16,
        prefix: Prefix | None = None,
    ) -> list[np.ndarray | None]:
        """Continues prompts, each to its end of sequence or to `max_tokens` tokens.

        A prompt's continuation does not depend on those it shares a batch with.

        Args:
          parameters: parameters of the task.
          prompts: ids of each prompt.
          max_tokens: largest number of tokens of a continuation.
          sampling: how tokens are chosen.
          seed: decides a draw, with a prompt's place in `prompts` and the token's position.
          batch_size: prompts at a time.
          prefix: tokens before each prompt; None for none.

        Returns:
          Ids of each continuation, without end of sequence; None where logits were not finite.

        Raises:
          UserError: a prompt with `max_tokens` exceeds the model's context.
        """
        written: list[np.ndarray | None] = []
        for chosen in chunks(range(len(prompts)), batch_size):
            stopping.check()
            rows = [prompts[index] for index in chosen]
            columns, finite = [], np.ones(batch_size, bool)
            for column, finite in self._columns(  # noqa: B007
                parameters,
                rows,
                chosen,
                max_tokens,
                sampling,
                seed,
                batch_size,
                _TOKENS_A_CALL,
                prefix,
            ):
                columns.append(column)
            tokens = np.concatenate(columns).T
            written += [
                _until(row, self.end) if good else None
                for row, good in zip(tokens[: len(rows)], finite, strict=False)
            ]
            reporting.advance(len(rows))
        return written

    def stream(
        self,
        parameters: TaskParameters,
        prompt: np.ndarray,
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        prefix: Prefix | None = None,
    ) -> Iterator[int]:
        """The same for one prompt, token by token as they are written.

        Raises:
          UserError: as for `write`; or the logits of a token are not finite.
        """
        for tokens, finite in self._columns(
            parameters, [prompt], [0], max_tokens, sampling, seed, 1, 1, prefix
        ):
            if not finite[0]:
                raise UserError(NOT_FINITE)
            if tokens[0, 0] == self.end:
                return
            yield int(tokens[0, 0])

    def _columns(
        self,
        parameters: TaskParameters,
        rows: Sequence[np.ndarray],
        places: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        seed: int,
        batch_size: int,
        count: int,
        prefix: Prefix | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens `[n, R]` of a batch, at most `count` at a time, and which rows are finite `[R]`.

        It goes on until all rows have ended or have `max_tokens`.
        """
        lengths = np.zeros(batch_size, np.int32)
        lengths[: len(rows)] = [len(row) for row in rows]
        before = 0 if prefix is None else int(prefix.length)
        longest = before + int(lengths.max())
        total = longest + max_tokens
        if not 0 <= seed < 2**32:
            raise UserError(f"seed = {seed} must be at least 0 and below 2**32")
        if max_tokens < 1:
            raise UserError(f"max_tokens = {max_tokens} must be at least 1")
        if total > self.context_length:
            raise UserError(
                f"a prompt of {longest} tokens and max_tokens = {max_tokens} exceed the "
                f"{self.context_length} positions of the model; lower max_tokens or shorten the "
                "prompt"
            )
        padded = np.zeros((batch_size, row_length(int(lengths.max()))), np.int32)
        for row, ids in enumerate(rows):
            padded[row, : len(ids)] = ids
        numbers = np.zeros(batch_size, np.uint32)
        numbers[: len(places)] = places
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        least = 0 if prefix is None else prefix.key.shape[1]
        slots = row_length(max(before + padded.shape[1], total, least))
        texts = self.read_prompts(
            parameters, self.frozen, padded, lengths, keys, prefix, sampling=sampling, slots=slots
        )
        yield np.asarray(texts.tokens)[None], np.asarray(texts.finite)
        for start in range(1, max_tokens, count):
            if np.asarray(texts.done).all():
                return
            more = min(count, max_tokens - start)
            tokens, texts = self.write_tokens(
                parameters, self.frozen, texts, np.int32(more), sampling=sampling
            )
            yield np.asarray(tokens)[:more], np.asarray(texts.finite)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """What stays the same from token to token.

    Attributes:
      weights: the LLM's.
      adapter: what the layers are given.
      context: static parts.
    """

    weights: Tree
    adapter: Tree
    context: StepContext

    @classmethod
    def of(
        cls, parameters: TaskParameters, frozen: Tree, query: jax.Array, context: StepContext
    ) -> "_Writer":
        """Reads the parameters of a task; `query` `[N, D]` is that of each token's prompt."""
        method = context.method
        adapter = method.adapter(parameters, query)
        return cls(method.llm_weights(frozen, parameters.shared), adapter, context)

    def decode(
        self, tokens: jax.Array, positions: jax.Array, cache: KeyValueCache
    ) -> tuple[jax.Array, KeyValueCache]:
        """Hidden states `[N, D]` of tokens `[R, S]`, and the cache with them in it."""
        decoder, weights = self.context.decoder(training=False), {"params": self.weights}
        out: Any = decoder.apply(weights, tokens, positions, cache, self.adapter, method="decode")
        return out

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[R, V]` of the tokens after those with hidden states `[R, D]`."""
        decoder = self.context.architecture.frozen_decoder()
        out: Any = decoder.apply({"params": self.weights}, hidden, method="logits")
        return out


def _append(texts: Continuation, logits: jax.Array, end: int, sampling: Sampling) -> Continuation:
    """Chooses the token after each text's last one by its logits `[R, V]`."""
    positions = texts.positions + 1
    finite = texts.finite & (texts.done | jnp.isfinite(logits.max(axis=-1)))
    done = texts.done | ~finite
    tokens = jnp.where(done, end, choose(logits, texts.keys, positions, sampling))
    return dataclasses.replace(
        texts,
        tokens=tokens.astype(jnp.int32),
        positions=positions,
        done=done | (tokens == end),
        finite=finite,
    )


def _until(tokens: np.ndarray, end: int) -> np.ndarray:
    """The tokens before the first end."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if ends.size else tokens
