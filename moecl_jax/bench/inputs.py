"""Prepares the model, the texts and the batches of a benchmark."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.bench.flops import Formula
from moecl_jax.bench.gauges import WARM_UP_STEPS
from moecl_jax.data.batching import (
    Batch,
    BatchLayout,
    chunks,
    epoch_order,
    make_batch,
    make_mixed_batch,
)
from moecl_jax.data.catalog import MTL5_LABELS
from moecl_jax.data.examples import Example, TaskExamples
from moecl_jax.data.rows import ROW_LENGTHS
from moecl_jax.data.settings import BatchSettings
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TokenizedExample, tokenize_answers, tokenize_task
from moecl_jax.errors import UserError
from moecl_jax.kernels import as_bits, quantize_layers
from moecl_jax.methods import METHODS
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.mixed import together
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.stream import StartingValues
from moecl_jax.models.attention import check_attention
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.model import Architecture
from moecl_jax.models.settings import Lora
from moecl_jax.models.sharding import ONE_DEVICE
from moecl_jax.runs.settings import Settings
from moecl_jax.training.steps import train_step
from moecl_jax.training.trainer import optimizer_of
from moecl_jax.weights.load import load_model

SHAPES = {
    "smollm2-135m": DecoderConfig(
        vocabulary_size=49152,
        width=576,
        ffn_width=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_width=64,
        rope_theta=100000.0,
        tied_embeddings=True,
        context_length=8192,
    ),
    "llama-2-7b": DecoderConfig(
        vocabulary_size=32000,
        width=4096,
        ffn_width=11008,
        layers=32,
        heads=32,
        kv_heads=32,
        head_width=128,
        context_length=4096,
    ),
    "llama-2-70b": DecoderConfig(
        vocabulary_size=32000,
        width=8192,
        ffn_width=28672,
        layers=80,
        heads=64,
        kv_heads=8,
        head_width=128,
        context_length=4096,
    ),
    "tiny": DecoderConfig(
        vocabulary_size=64,
        width=32,
        ffn_width=48,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=8,
        tied_embeddings=True,
    ),
}
# Lengths of the texts of AG News in SmolLM2's tokens. Half of the texts have 58 tokens or fewer,
# and the logarithm of the length has this standard deviation. The longest text for training needs a
# row of 304 slots.
MEDIAN_LENGTH, LOG_LENGTH_DEVIATION, SHORTEST_TEXT, LONGEST_TEXT = 58.0, 0.28, 16, 304
# Tokens written after each prompt: one by reading the prompt, and two calls of the loop.
WRITTEN_TOKENS = 33
STREAM_TASKS = 4  # tasks of the stream, and so classes of the discriminator

# Of the training step, as a run with the default settings has it.
OPTIMIZER = optimizer_of(Settings())

# Token ids in place of the labels' texts and their end tokens, for a model without a tokenizer.
RANDOM_ANSWERS = tuple(np.array(ids, np.int32) for ids in ([5, 2], [6, 2], [7, 2], [8, 9, 10, 2]))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The model, the examples and the settings of a benchmark.

    Attributes:
      context: static parts of the training and evaluation steps.
      frozen: parameters of the frozen decoder, on the device.
      starting: makes the trainable parameters.
      examples: tokenised examples, as many as all batches need.
      answers: token ids of each label's text.
      batch_size: number of examples in a batch.
      steps: number of measured batches of each part, after `WARM_UP_STEPS` more.
      padded_length: length of a row in the layout padded_to_max.
      texts: whether the examples were made from texts; if not, from random token ids.
      tokenize: makes `examples` again, to be measured.
    """

    context: StepContext
    frozen: Tree
    starting: StartingValues
    examples: Sequence[TokenizedExample]
    answers: tuple[np.ndarray, ...]
    batch_size: int
    steps: int
    padded_length: int
    texts: bool
    tokenize: Callable[[], Sequence[TokenizedExample]]

    @functools.cached_property
    def batches(self) -> list[list[TokenizedExample]]:
        """The examples of each batch, in an epoch's order, repeated if there are too few."""
        order = epoch_order(0, 0, 0, len(self.examples))
        needed = np.resize(order, (WARM_UP_STEPS + self.steps) * self.batch_size)
        return [[self.examples[i] for i in chunk] for chunk in chunks(needed, self.batch_size)]

    def begin(self) -> TaskParameters:
        """Makes the trainable parameters for the first task of the stream."""
        return self.starting.begin(self.starting.shared(STREAM_TASKS), 0)

    @functools.cached_property
    def formula(self) -> Formula:
        """The formula that counts the useful FLOPs of a step."""
        return formula_of(self.context, jax.eval_shape(self.begin))

    def begin_mixed(self, tasks: int) -> TaskParameters:
        """Stacks the trainable parameters of several tasks, to evaluate them in one batch.

        Args:
          tasks: number of tasks.
        """
        shared = self.starting.shared(STREAM_TASKS)
        return together([self.starting.begin(shared, task) for task in range(tasks)])

    def make_batch(
        self, examples: Sequence[TokenizedExample], layout: str, *, training: bool
    ) -> Batch:
        """Makes a batch of one task, as training and evaluation do.

        Args:
          examples: examples of the batch.
          layout: `packed`, `padded` or `padded_to_max`.
          training: whether the batch is for training; if not, it scores all labels.
        """
        return make_batch(
            examples,
            self.answers,
            self._layout(layout),
            task_index=0,
            class_count=len(self.answers),
            training=training,
        )

    def make_mixed_batch(
        self, examples: Sequence[TokenizedExample], layout: str, *, tasks: int
    ) -> Batch:
        """Makes an evaluation batch of several tasks; the examples belong to them in turn.

        Args:
          examples: examples of the batch.
          layout: `packed`, `padded` or `padded_to_max`.
          tasks: number of tasks.
        """
        return make_mixed_batch(
            examples,
            [index % tasks for index in range(len(examples))],
            [self.answers] * tasks,
            self._layout(layout),
            class_counts=[len(self.answers)] * tasks,
        )

    def _layout(self, layout: str) -> BatchLayout:
        return BatchLayout(
            self.batch_size,
            packed=layout == "packed",
            row_length=BatchSettings().row_length,
            continuations=len(self.answers),
            answer_length=max(map(len, self.answers)),
            compact=ONE_DEVICE.one_cpu,
            padded_length=self.padded_length if layout == "padded_to_max" else 0,
        )


def build(arguments: argparse.Namespace) -> Inputs:
    """Loads the model and the texts, or draws them at random.

    Args:
      arguments: arguments of the command `bench` or `bench.tasks`.

    Raises:
      UserError: if a value is out of range, or the model or the texts cannot be read.
    """
    _check(arguments)
    task = _task(arguments.texts)
    texts = _read_texts(task) if arguments.texts else []
    architecture, params, tokenizer = _model(arguments)
    sizes = architecture.sizes
    if texts and tokenizer is None:
        raise UserError(
            f"--texts={arguments.texts} needs a tokenizer: give a --model that has one, or leave "
            "--texts out for random token ids"
        )
    answers = tokenize_answers(task, tokenizer) if tokenizer else RANDOM_ANSWERS
    fed = sum(len(ids) - 1 for ids in answers)
    limit = min(sizes.context_length, ROW_LENGTHS[-1]) - WRITTEN_TOKENS
    if not fed < (arguments.length or LONGEST_TEXT) <= limit:
        raise UserError(
            f"--length={arguments.length or LONGEST_TEXT} must be above {fed}, the tokens of all "
            f"labels, and at most {limit}, what the model and the longest row hold with "
            f"{WRITTEN_TOKENS} written tokens"
        )
    if not texts:
        count = (WARM_UP_STEPS + arguments.steps) * arguments.batch
        texts = random_texts(count, sizes.vocabulary_size, arguments.length, fed)
    tokenize = functools.partial(
        _tokenize, task, texts, answers, tokenizer, arguments.length or LONGEST_TEXT
    )
    examples = tokenize()
    longest = max(len(example.prompt) for example in examples) + max(map(len, answers)) - 1
    context = make_context(arguments.method, architecture, arguments.dropout)
    if params is None:
        params = random_frozen(sizes, architecture.dtype, arguments.quantization)
    return Inputs(
        context=context,
        frozen=params,
        starting=make_starting(context, len(answers)),
        examples=examples,
        answers=answers,
        batch_size=arguments.batch,
        steps=arguments.steps,
        padded_length=longest if arguments.texts or arguments.length else LONGEST_TEXT,
        texts=bool(arguments.texts),
        tokenize=tokenize,
    )


def _model(arguments: argparse.Namespace) -> tuple[Architecture, Tree | None, Any]:
    """Loads the model that was named, with its tokenizer; a shape has no parameters yet."""
    if arguments.model:
        model = load_model(
            arguments.model,
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            remat=arguments.remat,
            attention=arguments.attention,
        )
        return model.architecture, model.params, model.tokenizer
    sizes = SHAPES[arguments.shape]
    sizes = dataclasses.replace(sizes, layers=arguments.layers or sizes.layers)
    check_attention(arguments.attention, sizes, arguments.dtype, devices=1)
    dtype = jnp.dtype(arguments.dtype)
    return Architecture(sizes, dtype, arguments.remat, arguments.attention), None, None


def random_frozen(sizes: DecoderConfig, dtype: Any, quantization: str) -> Tree:
    """Makes random parameters of a decoder on the device, without a copy in host memory.

    Args:
      sizes: sizes of the decoder.
      dtype: dtype of the parameters.
      quantization: `none`, or the name of a quantisation of the layers.
    """
    draw = functools.partial(draw_frozen, sizes, dtype, quantization)
    return jax.jit(draw)(jax.random.key(0))


def draw_frozen(sizes: DecoderConfig, dtype: Any, quantization: str, key: jax.Array) -> Tree:
    """Makes random parameters of a decoder in the form in which a run keeps them.

    Use it inside `jax.jit`, or `jax.eval_shape` for shapes alone.

    Args:
      sizes: sizes of the decoder.
      dtype: dtype of the parameters.
      quantization: `none`, or the name of a quantisation of the layers.
      key: key of the random numbers.
    """
    ids, membership = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))
    params = Decoder(sizes, dtype).init(key, ids, ids, ids, ids, membership)["params"]
    params = quantize_layers(params, quantization)
    return as_bits(params) if jax.default_backend() == "cpu" else params


def random_texts(count: int, vocabulary_size: int, length: int, fed: int) -> list[Example]:
    """Makes prompts of random token ids, as long as the texts of AG News or all of one length.

    Args:
      count: number of prompts.
      vocabulary_size: V, the number of different token ids.
      length: tokens of a prompt together with those of all labels; 0 draws the lengths of prompts
        from a log-normal distribution with a median of 58 tokens (mean 60), at least 16, and at
        most 304 together with all labels.
      fed: number of tokens of all labels that are fed after a prompt.
    """
    generator = np.random.default_rng(0)
    drawn = np.rint(generator.lognormal(np.log(MEDIAN_LENGTH), LOG_LENGTH_DEVIATION, count)).astype(
        int
    )
    lengths = np.clip(drawn, SHORTEST_TEXT, LONGEST_TEXT - fed)
    if length:
        lengths = np.full(count, length - fed)
    return [
        Example(
            "",
            index % len(MTL5_LABELS["agnews"]),
            f"random text {index}",
            input_ids=tuple(generator.integers(0, vocabulary_size, size).tolist()),
        )
        for index, size in enumerate(lengths)
    ]


def _check(arguments: argparse.Namespace) -> None:
    for name, least in (("batch", 1), ("steps", 1), ("length", 0), ("layers", 0)):
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"--{name}={value} must be at least {least}")
    if arguments.model and arguments.layers:
        raise UserError(f"--layers={arguments.layers} is for a --shape; --model has its own")
    if not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout={arguments.dropout} must be at least 0 and below 1")


def _task(texts: Path | None) -> Task:
    """A task with the labels of AG News and no template around the text."""
    return Task(
        name="bench",
        source="json" if texts else "none",
        path=str(texts.parent) if texts else "",
        train=texts.name if texts else "",
        text_fields=("sentence",),
        labels=MTL5_LABELS["agnews"],
    )


def _read_texts(task: Task) -> list[Example]:
    """Reads the sentences of the file and gives them the labels in turn."""
    examples = []
    for index, record in enumerate(task.records("train")):
        text = record.fields.get("sentence")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{record.where}: expected a text in "sentence", found {text!r}')
        examples.append(Example(text, index % len(task.labels), record.where))
    if not examples:
        raise UserError(f"{task.reader.location(task, 'train')}: the list is empty")
    return examples


def _tokenize(
    task: Task,
    texts: Sequence[Example],
    answers: Sequence[np.ndarray],
    tokenizer: Any,
    max_length: int,
) -> Sequence[TokenizedExample]:
    examples = TaskExamples(task, train=tuple(texts), validation=(), test=())
    tokenized = tokenize_task(
        examples, answers, tokenizer, max_length=max_length, max_response=1, over_long="truncate"
    )
    return tokenized.splits["train"]


def make_context(method: str, architecture: Architecture, dropout: float) -> StepContext:
    """Makes the static parts of the steps; all else is as a run with the default settings has it.

    Args:
      method: name of the method.
      architecture: sizes and dtype of the frozen decoder, and how it is computed.
      dropout: dropout rate of the experts, from 0 to below 1.
    """
    return StepContext(architecture, METHODS[method](Lora(dropout=dropout)), "lm")


def make_starting(context: StepContext, classes: int) -> StartingValues:
    """Makes what gives the trainable parameters of a stream.

    Args:
      context: static parts of the steps.
      classes: number of labels of a task.
    """
    return StartingValues(context.method, context.architecture.sizes, 0, context.head, classes)


def formula_of(context: StepContext, parameters: TaskParameters) -> Formula:
    """Makes the formula that counts the useful FLOPs of a step.

    Args:
      context: static parts of the steps.
      parameters: trainable parameters of a task with the method's memory, or their shapes.
    """
    adapter = context.method.adapter(parameters)
    return Formula.of(context.architecture.sizes, adapter, parameters.shared)


def jit_train_step(context: StepContext) -> Any:
    """Jits the training step as a training does; it may overwrite the state that it is given."""
    step = functools.partial(train_step, context=context, optimizer=OPTIMIZER)
    return jax.jit(step, donate_argnums=0)
