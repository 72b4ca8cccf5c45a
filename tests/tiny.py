"""A tiny random decoder, methods and examples for tests of the model and the step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.batching import Batch, BatchLayout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods import Method, TaskParameters
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.moe_cl import Adversarial, MoeCl
from moecl_jax.methods.stream import Head, StartingValues
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.lora import FFN_TARGETS
from moecl_jax.models.model import Architecture
from moecl_jax.models.settings import Lora
from moecl_jax.serving.generation import Generator
from moecl_jax.training.steps import make_optimizer

CONFIG = DecoderConfig(
    vocabulary_size=23, width=16, ffn_width=24, layers=2, heads=4, kv_heads=2, head_width=4
)

LORA = Lora(rank=2, alpha=4.0, dropout=0.0, targets=FFN_TARGETS)
OPTIMIZER = make_optimizer(weight_decay=0.0, clip_norm=0.0)

# Ids of three labels' texts, of one to three tokens, and 2 for the end.
ANSWERS = tuple(np.array(ids, np.int32) for ids in ([8, 2], [9, 4, 2], [9, 5, 6, 2]))

TASKS, TASK_INDEX = 3, 1


@functools.cache
def frozen_params(config: DecoderConfig = CONFIG, dtype: Any = jnp.float32) -> Any:
    """Random parameters in the shapes of `Decoder.init`, large enough for every term to matter."""
    ids, membership = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))
    init = functools.partial(Decoder(config, dtype).init, jax.random.key(0))
    shapes = jax.eval_shape(init, ids, ids, ids, ids, membership)
    return randomised(shapes["params"], 0.3)


def method_of(method: type[Method] = MoeCl, *, options: Any = None, **values: Any) -> Method:
    """A method with tiny experts; MoE-CL has the paper's objective as a default.

    Args:
      method: its class.
      options: its options; the defaults if none are given.
      **values: fields of `Lora`, and of `Adversarial` in MoE-CL.
    """
    adversarial = {key: values.pop(key) for key in ("objective", "reduction") if key in values}
    if "adversarial_alpha" in values:
        adversarial["alpha"] = values.pop("adversarial_alpha")
    if options is None and issubclass(method, MoeCl):
        options = method.Options(adversarial=Adversarial(**{"objective": "paper", **adversarial}))
    return method(dataclasses.replace(LORA, **values), options)


def context_of(
    head: Head = "lm", method: type[Method] = MoeCl, *, options: Any = None, **values: Any
) -> StepContext:
    """Static parts of steps in float32 with the tiny decoder; arguments as for `method_of`."""
    chosen = method_of(method, options=options, **values)
    return StepContext(Architecture(CONFIG, jnp.float32), chosen, head)


def with_architecture(context: StepContext, **changes: Any) -> StepContext:
    """The context with changes to its architecture, such as `remat="full"`."""
    architecture = dataclasses.replace(context.architecture, **changes)
    return dataclasses.replace(context, architecture=architecture)


def starting_of(context: StepContext, **values: Any) -> StartingValues:
    """Starting values for `ANSWERS`' task."""
    sizes = context.architecture.sizes
    return StartingValues(context.method, sizes, 0, context.head, len(ANSWERS), **values)


def random_parameters(context: StepContext, deviation: float = 0.3) -> TaskParameters:
    """What is trained, all of it random: no B is zero."""
    starting = starting_of(context)
    shapes = jax.eval_shape(lambda: starting.begin(starting.shared(TASKS), TASK_INDEX))
    return randomised(shapes, deviation)


def generator_of(
    context: StepContext, frozen: Any, end: int = -1, context_length: int = 64
) -> Generator:
    """Compiles what writes text; by default no token ends one."""
    generator = Generator.of(context, frozen, end)
    return dataclasses.replace(generator, context_length=context_length)


def randomised(shapes: Any, deviation: float) -> Any:
    """Normal numbers in a tree's shapes and dtypes; NumPy's, which compile nothing."""
    generator = np.random.default_rng(1)

    def draw(leaf: Any) -> jax.Array:
        numbers = deviation * generator.standard_normal(leaf.shape)
        return jnp.asarray(numbers.astype(leaf.dtype))

    return jax.tree.map(draw, shapes)


def random_examples(lengths: Sequence[int], seed: int = 0) -> list[TokenizedExample]:
    """Random prompts of these lengths with labels 0, 1, 2, 0, ..."""
    generator = np.random.default_rng(seed)
    return [
        TokenizedExample(
            generator.integers(0, CONFIG.vocabulary_size, length).astype(np.int32),
            index % len(ANSWERS),
        )
        for index, length in enumerate(lengths)
    ]


def batch_of(
    examples: Sequence[TokenizedExample],
    head: Head,
    *,
    training: bool,
    packed: bool = True,
    batch_size: int | None = None,
) -> Batch:
    """A batch of `ANSWERS`' task, its rows of 32 slots where packed."""
    longest = max(len(answer) for answer in ANSWERS)
    layout = BatchLayout(batch_size or len(examples), packed, 32, len(ANSWERS), longest)
    return make_batch(
        examples,
        ANSWERS if head == "lm" else (),
        layout,
        task_index=TASK_INDEX,
        class_count=len(ANSWERS),
        training=training,
    )
