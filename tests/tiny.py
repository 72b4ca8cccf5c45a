"""A tiny random decoder, learners and examples for tests of the model and the step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from moecl_jax.methods.state import Initializer

from moecl_jax.data.batching import Batch, BatchLayout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods import Method, MethodSettings, MoeCl
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.lora import FFN_TARGETS
from moecl_jax.serving.generation import Writer, read_prompts, write_tokens
from moecl_jax.training.steps import Active, Head, Learner

CONFIG = DecoderConfig(
    vocabulary_size=23, width=16, ffn_width=24, layers=2, heads=4, kv_heads=2, head_width=4
)

SETTINGS = MethodSettings(
    rank=2,
    lora_alpha=4.0,
    dropout=0.0,
    targets=FFN_TARGETS,
    objective="paper",
    adversarial_alpha=0.1,
)

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


def learner(head: Head = "lm", method: type[Method] = MoeCl, **settings: Any) -> Learner:
    """A learner in float32 of the tiny decoder, without weight decay and clipping."""
    chosen = method(dataclasses.replace(SETTINGS, **settings), CONFIG)
    return Learner(chosen, head, jnp.float32, remat="none", weight_decay=0.0, clip_norm=0.0)


def random_active(learner: Learner, deviation: float = 0.3) -> Active:
    """What is trained, all of it random: no B is zero."""
    initializer = Initializer(learner.method, 0, learner.head, len(ANSWERS))
    shapes = jax.eval_shape(lambda: initializer.begin(initializer.shared(TASKS), TASK_INDEX))
    return randomised(shapes, deviation)


def writer(learner: Learner, frozen: Any, end: int = -1, context_length: int = 64) -> Writer:
    """Compiles what writes text; by default no token ends one."""
    static: dict[str, Any] = {"learner": learner, "end": end}
    return Writer(
        jax.jit(functools.partial(read_prompts, **static), static_argnames=("sampling", "slots")),
        jax.jit(functools.partial(write_tokens, **static), static_argnames=("sampling", "count")),
        frozen,
        end,
        context_length,
    )


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
