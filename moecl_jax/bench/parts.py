"""Measures the parts: training steps, evaluation steps, generation and the data pipeline."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from moecl_jax.bench.flops import Work
from moecl_jax.bench.gauges import (
    WARM_UP_STEPS,
    CompiledFunction,
    Measurement,
    compile_shapes,
    measure_bandwidth,
    steady,
)
from moecl_jax.bench.inputs import OPTIMIZER, WRITTEN_TOKENS, Inputs, jit_train_step
from moecl_jax.data.batching import Batch
from moecl_jax.data.rows import row_length
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.serving.generation import Generator
from moecl_jax.serving.scoring import evaluation_step
from moecl_jax.training.steps import init_train_state

TOKENIZATION_RUNS = 5  # how often all texts are tokenised
NO_END_TOKEN = -1  # no token has this id, so every text is written to its full length
LEARNING_RATE = np.float32(2e-4)
_TOKEN_STEP_RUNS = 5  # the median counts


def measure_training(inputs: Inputs, layout: str) -> list[Measurement]:
    """Measures training steps and the making of their batches, as in training/trainer.py.

    Args:
      inputs: model and examples.
      layout: layout of rows: `packed`, `padded` or `padded_to_max`.

    Returns:
      A list of one measurement.
    """
    step = jit_train_step(inputs.context)
    key, start = inputs.starting.training_key(0), inputs.starting.task_start(0)
    state = init_train_state(inputs.context.method, OPTIMIZER, inputs.begin(), key, start)
    make = functools.partial(inputs.make_batch, layout=layout, training=True)
    batches = [make(examples) for examples in inputs.batches]
    compiled = compile_shapes(
        step, batches, lambda batch: (state, inputs.frozen, batch, LEARNING_RATE)
    )

    def run(examples: Sequence[TokenizedExample]) -> Any:
        nonlocal state
        batch = make(examples)
        call = compiled.calls[batch.shape]
        state, metrics = call(state, inputs.frozen, batch, LEARNING_RATE)
        return metrics

    seconds = steady(run, inputs.batches)
    return [_step_row(f"train, {layout}", seconds, inputs.formula.training, batches, compiled)]


def measure_evaluation(inputs: Inputs, layout: str, tasks: Sequence[int]) -> list[Measurement]:
    """Measures evaluation steps, which score every label's text, and the making of their batches.

    Steps of the different kinds of batches take turns, so that other work of the machine slows all
    kinds equally.

    Args:
      inputs: model and examples.
      layout: layout of rows: `packed` or `padded`.
      tasks: number of tasks that the examples of a batch belong to, for each kind of batch.

    Returns:
      A measurement of each kind of batch.
    """
    step = jax.jit(functools.partial(evaluation_step, context=inputs.context))
    kinds = [_evaluation(inputs, layout, step, count) for count in tasks]

    def run(turn: tuple[_Evaluation, Sequence[TokenizedExample]]) -> Any:
        kind, examples = turn
        batch = kind.make(examples)
        return kind.compiled.calls[batch.shape](kind.parameters, inputs.frozen, batch)

    turns = [(kind, examples) for examples in inputs.batches for kind in kinds]
    seconds = steady(run, turns)[-inputs.steps * len(kinds) :].reshape(inputs.steps, len(kinds))
    return [
        _step_row(kind.name, column, inputs.formula.forward, kind.batches, kind.compiled)
        for kind, column in zip(kinds, seconds.T, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """One kind of evaluation batch, with what is needed to evaluate it."""

    name: str
    parameters: TaskParameters
    make: Callable[[Sequence[TokenizedExample]], Batch]
    batches: Sequence[Batch]
    compiled: CompiledFunction


def _evaluation(inputs: Inputs, layout: str, step: Any, tasks: int) -> _Evaluation:
    make: Callable[[Sequence[TokenizedExample]], Batch]
    if tasks == 1:
        parameters, name = inputs.begin(), f"evaluate, {layout}"
        make = functools.partial(inputs.make_batch, layout=layout, training=False)
    else:
        parameters = inputs.begin_mixed(tasks)
        name = f"evaluate, {layout}, {tasks} tasks mixed"
        make = functools.partial(inputs.make_mixed_batch, layout=layout, tasks=tasks)
    batches = [make(examples) for examples in inputs.batches]
    compiled = compile_shapes(step, batches, lambda batch: (parameters, inputs.frozen, batch))
    return _Evaluation(name, parameters, make, batches, compiled)


def _step_row(
    name: str,
    seconds: np.ndarray,
    flops: Callable[[Work], int],
    batches: Sequence[Batch],
    compiled: CompiledFunction,
) -> Measurement:
    works = [Work.of_batch(batch) for batch in batches[WARM_UP_STEPS:]]
    slots = sum(batch.shape[2] for batch in batches[WARM_UP_STEPS:])
    return Measurement.of_steps(
        name,
        seconds,
        works,
        flops,
        real_share=sum(work.tokens for work in works) / slots,
        compile_seconds=compiled.seconds,
        compiled_shapes=len(compiled.calls),
        step_memory_bytes=compiled.memory_bytes,
    )


def measure_generation(inputs: Inputs) -> list[Measurement]:
    """Measures generation: reading a batch of prompts and writing greedily after each of them.

    `WRITTEN_TOKENS` tokens are written after each prompt. The time by which the first batch of each
    shape is slower than the median counts as compilation.

    Args:
      inputs: model and examples, whose prompts are read.

    Returns:
      A list of one measurement.
    """
    generator = Generator.of(inputs.context, inputs.frozen, NO_END_TOKEN)
    prompts = [[example.prompt for example in examples] for examples in inputs.batches]
    lengths = [[len(ids) for ids in rows] for rows in prompts]
    shapes = {
        (row_length(max(batch)), row_length(max(batch) + WRITTEN_TOKENS)): rows
        for batch, rows in zip(lengths, prompts, strict=True)
    }
    write = functools.partial(
        generator.write, inputs.begin(), max_tokens=WRITTEN_TOKENS, batch_size=inputs.batch_size
    )
    begun = time.perf_counter()
    for rows in shapes.values():
        write(rows)
    first_calls = time.perf_counter() - begun
    seconds = steady(write, prompts, dispatches=False)
    row = Measurement.of_steps(
        "generate",
        seconds,
        [Work.of_generation(batch, WRITTEN_TOKENS) for batch in lengths[WARM_UP_STEPS:]],
        inputs.formula.forward,
        compile_seconds=max(0.0, first_calls - len(shapes) * float(np.median(seconds))),
        compiled_shapes=len(shapes),
        token_step=_token_step(inputs, generator, prompts[WARM_UP_STEPS:], lengths[WARM_UP_STEPS:]),
    )
    return [row]


def _token_step(
    inputs: Inputs,
    generator: Generator,
    prompts: Sequence[Sequence[np.ndarray]],
    lengths: Sequence[Sequence[int]],
) -> dict[str, float]:
    """The cost of one more token of each text, as `Measurement.token_step` describes it."""
    seconds = []

    def timed(parameters: Any, frozen: Any, texts: Any, count: Any, **options: Any) -> Any:
        jax.block_until_ready(texts)
        begun = time.perf_counter()
        out = generator.write_tokens(parameters, frozen, texts, count, **options)
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - begun) / int(count))
        return out

    write = dataclasses.replace(generator, write_tokens=timed).write
    for rows in prompts[:_TOKEN_STEP_RUNS]:
        write(inputs.begin(), rows, max_tokens=WRITTEN_TOKENS, batch_size=inputs.batch_size)
    step = float(np.median(seconds))
    read, bandwidth = _bytes_of_token_step(inputs, lengths), measure_bandwidth()
    return {
        "seconds": step,
        "tokens_per_second": inputs.batch_size / step,
        "bytes": read,
        "memory_bytes_per_second": bandwidth,
        "share_of_bandwidth": read / step / bandwidth,
    }


def _bytes_of_token_step(inputs: Inputs, lengths: Sequence[Sequence[int]]) -> int:
    """Bytes that a step has to read: weights, trained parameters, and the texts' keys and values.

    Of an embedding that is not the output projection too, a step reads a few rows, not counted.
    """
    architecture = inputs.context.architecture
    sizes = architecture.sizes
    weights = {name: leaf for name, leaf in inputs.frozen.items() if name != "embedder"}
    if sizes.tied_embeddings:
        weights = inputs.frozen
    read = (weights, inputs.context.method.adapter(inputs.begin()))
    fixed = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
    token = 2 * sizes.layers * sizes.kv_heads * sizes.head_width * architecture.dtype.itemsize
    texts = float(np.mean([sum(batch) for batch in lengths]))
    return fixed + int((texts + inputs.batch_size * WRITTEN_TOKENS / 2) * token)


def measure_tokenization(inputs: Inputs) -> list[Measurement]:
    """Measures the tokenisation of all texts, which comes before the training of a task.

    Args:
      inputs: model with a tokenizer, and texts.

    Returns:
      A list of one measurement, in which a step is the tokenisation of all texts.
    """
    positions = [np.arange(len(example.prompt)) for example in inputs.examples]
    work = Work(np.concatenate(positions), 0, len(positions))
    seconds = steady(
        lambda _: inputs.tokenize(), range(WARM_UP_STEPS + TOKENIZATION_RUNS), dispatches=False
    )
    return [Measurement.of_steps("data, tokenise", seconds, [work] * TOKENIZATION_RUNS)]


def measure_batching(inputs: Inputs, layout: str) -> list[Measurement]:
    """Measures the making of training batches from tokenised examples.

    Args:
      inputs: tokenised examples.
      layout: layout of rows: `packed` or `padded`.

    Returns:
      A list of one measurement, in which a step makes one batch.
    """
    make = functools.partial(inputs.make_batch, layout=layout, training=True)
    works = [Work.of_batch(make(examples)) for examples in inputs.batches[WARM_UP_STEPS:]]
    return [
        Measurement.of_steps("data, batch", steady(make, inputs.batches, dispatches=False), works)
    ]
