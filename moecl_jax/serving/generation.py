"""Writing text: a batch of prompts is read into a cache, then one token follows another.

Axes: R rows, each with one text; S slots of the longest prompt; V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import stopping
from moecl_jax.data.batching import chunks
from moecl_jax.data.rows import row_length
from moecl_jax.errors import UserError
from moecl_jax.methods.forward import StepContext, vocabulary_logits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.decoder import KeyValueCache, empty_cache

_TOKENS_A_CALL = 16  # few calls, and few tokens written in vain after the last row has ended


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
      keys: `[R]`, a key a row; each position folds its number in.
      query: `[R, D]`, mean frozen word embedding of each prompt.
    """

    cache: KeyValueCache
    tokens: jax.Array
    positions: jax.Array
    done: jax.Array
    keys: jax.Array
    query: jax.Array


def read_prompts(
    parameters: TaskParameters,
    frozen: Tree,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
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
      context: static parts.
      end: id of end of sequence.
      sampling: how tokens are chosen.
      slots: slots of the cache: at least S, and the tokens of the longest finished text.
    """
    rows, width = prompts.shape
    cache = empty_cache(context.architecture.sizes, rows, slots, context.architecture.dtype)
    positions = jnp.broadcast_to(jnp.arange(width), prompts.shape)
    decoder = context.architecture.frozen_decoder()
    words: Any = decoder.apply({"params": frozen}, prompts.reshape(-1), method="embed")
    real = (positions < lengths[:, None]).astype(jnp.float32)
    words = words.reshape(rows, width, -1).astype(jnp.float32)
    query = jnp.einsum("rs,rsd->rd", real, words) / jnp.maximum(lengths, 1)[:, None]
    hidden, cache = _decode(parameters, frozen, prompts, positions, cache, query, context)
    last = jnp.arange(rows) * width + jnp.maximum(lengths, 1) - 1
    done = lengths == 0
    empty = Continuation(cache, prompts[:, 0], jnp.maximum(lengths, 1) - 1, done, keys, query)
    return _append(parameters, empty, hidden[last], frozen, context, end, sampling)


def write_tokens(
    parameters: TaskParameters,
    frozen: Tree,
    continuation: Continuation,
    *,
    context: StepContext,
    end: int,
    sampling: Sampling,
    count: int,
) -> tuple[jax.Array, Continuation]:
    """Writes `count` more tokens of each text, `[count, R]`; ends follow an end."""

    def write(before: Continuation, _: None) -> tuple[Continuation, jax.Array]:
        hidden, cache = _decode(
            parameters,
            frozen,
            before.tokens[:, None],
            before.positions[:, None],
            before.cache,
            before.query,
            context,
        )
        read = dataclasses.replace(before, cache=cache)
        after = _append(parameters, read, hidden, frozen, context, end, sampling)
        return after, after.tokens

    continuation, tokens = jax.lax.scan(write, continuation, length=count)
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
      write_tokens: compiled function of that name.
      frozen: parameters of the decoder.
      end: id of end of sequence.
      context_length: tokens a text may have.
    """

    read_prompts: Callable[..., Continuation]
    write_tokens: Callable[..., tuple[jax.Array, Continuation]]
    frozen: Tree
    end: int
    context_length: int

    def write(
        self,
        parameters: TaskParameters,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        batch_size: int = 16,
    ) -> list[np.ndarray]:
        """Continues prompts, each to its end of sequence or to `max_tokens` tokens.

        A prompt's continuation does not depend on those it shares a batch with.

        Args:
          parameters: parameters of the task.
          prompts: ids of each prompt.
          max_tokens: largest number of tokens of a continuation.
          sampling: how tokens are chosen.
          seed: decides a draw, with a prompt's place in `prompts` and the token's position.
          batch_size: prompts at a time.

        Returns:
          Ids of each continuation, without end of sequence.

        Raises:
          UserError: a prompt with `max_tokens` exceeds the model's context.
        """
        written: list[np.ndarray] = []
        for chosen in chunks(range(len(prompts)), batch_size):
            stopping.check()
            rows = [prompts[index] for index in chosen]
            columns = list(
                self._columns(
                    parameters, rows, chosen, max_tokens, sampling, seed, batch_size, _TOKENS_A_CALL
                )
            )
            tokens = np.concatenate(columns)[:max_tokens].T
            written += [_until(row, self.end) for row in tokens[: len(rows)]]
        return written

    def stream(
        self,
        parameters: TaskParameters,
        prompt: np.ndarray,
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> Iterator[int]:
        """The same for one prompt, token by token as they are written."""
        for tokens in self._columns(parameters, [prompt], [0], max_tokens, sampling, seed, 1, 1):
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
    ) -> Iterator[np.ndarray]:
        """Tokens `[n, R]` of a batch, until all rows have ended or have `max_tokens` or more."""
        lengths = np.zeros(batch_size, np.int32)
        lengths[: len(rows)] = [len(row) for row in rows]
        total = int(lengths.max()) + max_tokens
        if not 0 <= seed < 2**32:
            raise UserError(f"seed = {seed} must be at least 0 and below 2**32")
        if max_tokens < 1:
            raise UserError(f"max_tokens = {max_tokens} must be at least 1")
        if total > self.context_length:
            raise UserError(
                f"a prompt of {lengths.max()} tokens and max_tokens = {max_tokens} exceed the "
                f"{self.context_length} positions of the model; lower max_tokens or shorten the "
                "prompt"
            )
        padded = np.zeros((batch_size, row_length(int(lengths.max()))), np.int32)
        for row, ids in enumerate(rows):
            padded[row, : len(ids)] = ids
        numbers = np.zeros(batch_size, np.uint32)
        numbers[: len(places)] = places
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        slots = row_length(max(padded.shape[1], total))
        texts = self.read_prompts(
            parameters, self.frozen, padded, lengths, keys, sampling=sampling, slots=slots
        )
        yield np.asarray(texts.tokens)[None]
        for _ in range(1, max_tokens, count):
            if np.asarray(texts.done).all():
                return
            tokens, texts = self.write_tokens(
                parameters, self.frozen, texts, sampling=sampling, count=count
            )
            yield np.asarray(tokens)


def _decode(
    parameters: TaskParameters,
    frozen: Tree,
    tokens: jax.Array,
    positions: jax.Array,
    cache: KeyValueCache,
    query: jax.Array,
    context: StepContext,
) -> tuple[jax.Array, KeyValueCache]:
    method = context.method
    of_tokens = jnp.repeat(query, tokens.shape[1], axis=0)
    adapter = method.adapter(parameters, of_tokens)
    weights = method.llm_weights(frozen, parameters.shared)
    out: Any = context.decoder(training=False).apply(
        {"params": weights}, tokens, positions, cache, adapter, method="decode"
    )
    return out


def _append(
    parameters: TaskParameters,
    texts: Continuation,
    hidden: jax.Array,
    frozen: Tree,
    context: StepContext,
    end: int,
    sampling: Sampling,
) -> Continuation:
    """Chooses the token after each text's last one from that one's hidden state `[R, D]`."""
    logits = vocabulary_logits(parameters, hidden, frozen, context)
    positions = texts.positions + 1
    tokens = jnp.where(texts.done, end, choose(logits, texts.keys, positions, sampling))
    done = texts.done | (tokens == end)
    return dataclasses.replace(
        texts, tokens=tokens.astype(jnp.int32), positions=positions, done=done
    )


def _until(tokens: np.ndarray, end: int) -> np.ndarray:
    """The tokens before the first end."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if ends.size else tokens
