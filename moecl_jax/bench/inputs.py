"""Model, texts and batches of a benchmark."""

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
from moecl_jax.bench.gauges import WARM_UP
from moecl_jax.config.default import get_config
from moecl_jax.data.batching import (
    ROW_LENGTHS,
    Batch,
    Layout,
    chunks,
    epoch_order,
    make_batch,
    make_mixed_batch,
)
from moecl_jax.data.catalog import MTL5_LABELS
from moecl_jax.data.definition import TaskDefinition
from moecl_jax.data.sources.reading import read_split
from moecl_jax.data.tasks import Example, Task
from moecl_jax.data.tokenize import TokenizedExample, tokenize_answers, tokenize_task
from moecl_jax.errors import UserError
from moecl_jax.kernels import as_bits, one_by_one, quantize_layers
from moecl_jax.methods import METHODS, MethodSettings
from moecl_jax.methods.base import Tree
from moecl_jax.methods.state import Initializer
from moecl_jax.models.attention import check_attention
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.sharding import ONE_DEVICE
from moecl_jax.training.steps import Active, Learner, together
from moecl_jax.weights.load import load_backbone

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
# Texts of AG News in SmolLM2's tokens: half of them have 58 or fewer, the logarithm of the length
# has this deviation, the longest of the training texts makes rows of 304.
MEDIAN, DEVIATION, SHORTEST, LONGEST = 58.0, 0.28, 16, 304
WRITTEN = 33  # tokens after each prompt: one with the prompt and two calls of the writer
TASKS = 4  # rows of the discriminator

# Ids that stand for the labels' texts and their ends where there is no tokenizer.
RANDOM_ANSWERS = tuple(np.array(ids, np.int32) for ids in ([5, 2], [6, 2], [7, 2], [8, 9, 10, 2]))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that is measured, ready to run.

    Attributes:
      learner: static parts of the steps.
      frozen: parameters of the decoder, on the device.
      initializer: of what is trained.
      examples: tokenised, as many as all batches need.
      answers: ids of the labels' texts.
      batch_size: examples a batch.
      steps: measured batches of each part, after `WARM_UP` more.
      padded_length: of rows in the layout padded_to_max.
      texts: whether the examples were texts, not random ids.
      tokenize: makes `examples` again.
    """

    learner: Learner
    frozen: Tree
    initializer: Initializer
    examples: Sequence[TokenizedExample]
    answers: tuple[np.ndarray, ...]
    batch_size: int
    steps: int
    padded_length: int
    texts: bool
    tokenize: Callable[[], Sequence[TokenizedExample]]

    @functools.cached_property
    def batches(self) -> list[list[TokenizedExample]]:
        """The examples of each batch, in an epoch's order, repeated where they are too few."""
        order = epoch_order(0, 0, 0, len(self.examples))
        needed = np.resize(order, (WARM_UP + self.steps) * self.batch_size)
        return [[self.examples[i] for i in chunk] for chunk in chunks(needed, self.batch_size)]

    def begin(self) -> Active:
        """What is trained, as the first of several tasks begins."""
        return self.initializer.begin(self.initializer.shared(TASKS), 0)

    @functools.cached_property
    def formula(self) -> Formula:
        """Useful FLOPs."""
        method = self.learner.method
        active = jax.eval_shape(self.begin)
        return Formula.of(
            method.config,
            method.adapter(active.shared, active.expert, active.memory),
            active.shared,
        )

    def begin_mixed(self, tasks: int) -> Active:
        """What answers for several tasks at once."""
        shared = self.initializer.shared(TASKS)
        return together([self.initializer.begin(shared, task) for task in range(tasks)])

    def make_batch(
        self, examples: Sequence[TokenizedExample], layout: str, *, training: bool
    ) -> Batch:
        """One batch, as training and evaluation make it."""
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
        """One evaluation batch of several tasks' examples, given to them in turn."""
        return make_mixed_batch(
            examples,
            [index % tasks for index in range(len(examples))],
            [self.answers] * tasks,
            self._layout(layout),
            class_counts=[len(self.answers)] * tasks,
        )

    def _layout(self, layout: str) -> Layout:
        config = get_config()
        return Layout(
            self.batch_size,
            packed=layout == "packed",
            row_length=config.batch.row_length,
            continuations=len(self.answers),
            answer_length=max(map(len, self.answers)),
            compact=ONE_DEVICE.one_cpu,
            padded_length=self.padded_length if layout == "padded_to_max" else 0,
        )


def build(arguments: argparse.Namespace) -> Inputs:
    """Loads or draws the model and the texts.

    Raises:
      UserError: a value is out of range, or what loading raises.
    """
    _check(arguments)
    definition = _definition(arguments.texts)
    texts = _read_texts(definition) if arguments.texts else []
    dtype = jnp.dtype(arguments.dtype)
    backbone = load_backbone(arguments.model, dtype) if arguments.model else None
    config = backbone.config if backbone else _shape(arguments)
    tokenizer = backbone.tokenizer if backbone else None
    if texts and tokenizer is None:
        raise UserError(
            f"--texts={arguments.texts} needs a tokenizer: give a --model that has one, or leave "
            "--texts out for random token ids"
        )
    answers = tokenize_answers(definition, tokenizer) if tokenizer else RANDOM_ANSWERS
    fed = sum(len(ids) - 1 for ids in answers)
    limit = min(config.context_length - WRITTEN, ROW_LENGTHS[-1] - WRITTEN)
    if not fed < (arguments.length or LONGEST) <= limit:
        raise UserError(
            f"--length={arguments.length or LONGEST} must be above {fed}, the tokens of all "
            f"labels, and at most {limit}, what the model and the longest row hold with {WRITTEN} "
            "written tokens"
        )
    if not texts:
        count = (WARM_UP + arguments.steps) * arguments.batch
        texts = random_texts(count, config.vocabulary_size, arguments.length, fed)
    tokenize = functools.partial(
        _tokenize, definition, texts, answers, tokenizer, arguments.length or LONGEST
    )
    examples = tokenize()
    longest = max(len(example.prompt) for example in examples) + max(map(len, answers)) - 1
    check_attention(arguments.attention, config, arguments.dtype, devices=1)
    learner = learner_of(
        arguments.method,
        config,
        dropout=arguments.dropout,
        dtype=arguments.dtype,
        remat=arguments.remat,
        attention=arguments.attention,
    )
    return Inputs(
        learner=learner,
        frozen=_on_device(quantize_layers(backbone.params, arguments.quantization, one_by_one))
        if backbone
        else random_frozen(config, dtype, arguments.quantization),
        initializer=Initializer(learner.method, 0, "lm", len(answers)),
        examples=examples,
        answers=answers,
        batch_size=arguments.batch,
        steps=arguments.steps,
        padded_length=longest if arguments.texts or arguments.length else LONGEST,
        texts=bool(arguments.texts),
        tokenize=tokenize,
    )


def random_frozen(config: DecoderConfig, dtype: Any, quantization: str) -> Tree:
    """Random parameters, drawn where they stay: no copy of them is ever in the host's memory."""
    draw = functools.partial(draw_frozen, config, dtype, quantization)
    return jax.jit(draw)(jax.random.key(0))


def draw_frozen(config: DecoderConfig, dtype: Any, quantization: str, key: jax.Array) -> Tree:
    """Random parameters as they are kept; to be compiled, or asked for shapes."""
    ids, membership = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))
    params = Decoder(config, dtype).init(key, ids, ids, ids, ids, membership)["params"]
    return _as_kept(quantize_layers(params, quantization))


def _on_device(params: Tree) -> Tree:
    return jax.device_put(_as_kept(params))


def _as_kept(params: Tree) -> Tree:
    """As `experiment.build` keeps frozen weights: on CPU as bits."""
    return as_bits(params) if jax.default_backend() == "cpu" else params


def random_texts(count: int, vocabulary_size: int, length: int, fed: int) -> list[Example]:
    """Prompts of random ids, as long as AG News's texts, or all of one length.

    Args:
      count: how many.
      vocabulary_size: V.
      length: tokens of each with those of all labels; 0 draws lengths from a log-normal
        distribution with a median of 58 tokens (mean 60), cut to 16 and to 304 with all labels'.
      fed: tokens of all labels that are fed after a prompt.
    """
    generator = np.random.default_rng(0)
    drawn = np.rint(generator.lognormal(np.log(MEDIAN), DEVIATION, count)).astype(int)
    lengths = np.clip(drawn, SHORTEST, LONGEST - fed)
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


def _definition(texts: Path | None) -> TaskDefinition:
    """AG News's labels after the bare text."""
    return TaskDefinition(
        name="bench",
        source="json" if texts else "none",
        path=str(texts.parent) if texts else "",
        train=texts.name if texts else "",
        text_fields=("sentence",),
        labels=MTL5_LABELS["agnews"],
    )


def _read_texts(definition: TaskDefinition) -> list[Example]:
    """The file's sentences, the labels being given to them in turn."""
    examples = []
    for index, record in enumerate(read_split(definition, "train")):
        text = record.fields.get("sentence")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{record.where}: expected a text in "sentence", found {text!r}')
        examples.append(Example(text, index % len(definition.labels), record.where))
    if not examples:
        raise UserError(f"{Path(definition.path) / definition.train}: the list is empty")
    return examples


def _tokenize(
    definition: TaskDefinition,
    texts: Sequence[Example],
    answers: Sequence[np.ndarray],
    tokenizer: Any,
    max_length: int,
) -> Sequence[TokenizedExample]:
    task = Task(definition, train=tuple(texts), validation=(), test=())
    tokenized = tokenize_task(
        task, answers, tokenizer, max_length=max_length, max_response=1, over_long="truncate"
    )
    return tokenized.splits["train"]


def _shape(arguments: argparse.Namespace) -> DecoderConfig:
    """Sizes of a random model."""
    config = SHAPES[arguments.shape]
    return dataclasses.replace(config, layers=arguments.layers or config.layers)


def learner_of(
    method: str,
    config: DecoderConfig,
    *,
    dropout: float,
    dtype: str,
    remat: str,
    attention: str = "xla",
) -> Learner:
    """With the default config's settings where no argument says otherwise."""
    defaults = get_config()
    settings = MethodSettings(
        rank=defaults.lora.rank,
        lora_alpha=defaults.lora.alpha,
        dropout=dropout,
        targets=tuple(defaults.lora.targets),
        objective=defaults.adversarial.objective,
        adversarial_alpha=defaults.adversarial.alpha,
    )
    return Learner(
        method=METHODS[method](settings, config),
        head="lm",
        dtype=jnp.dtype(dtype),
        remat=remat,
        weight_decay=defaults.optimizer.weight_decay,
        clip_norm=defaults.optimizer.clip_norm,
        attention=attention,
    )
