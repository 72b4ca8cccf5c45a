"""What tests of the methods' formulas share: methods, random trees, losses and float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny import CONFIG, LORA, OPTIMIZER, TASK_INDEX, TASKS, frozen_params, randomised, starting_of

from moecl_jax.methods import LossInputs, Method, TaskParameters
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.stream import Head
from moecl_jax.models.model import Architecture
from moecl_jax.training.steps import init_train_state, loss, train_step

LENGTHS = [3, 9, 1, 6]
SCALE = LORA.scale
compiled_step = jax.jit(train_step, static_argnames=("context", "optimizer"))


def method_with(kind: type[Method], **options: Any) -> Method:
    """A method with tiny experts and these options."""
    return kind(LORA, **options)


def context_with(method: Method, head: Head = "lm") -> StepContext:
    """Static parts of steps in float32 with the tiny decoder."""
    return StepContext(Architecture(CONFIG, jnp.float32), method, head)


def random_trees(context: StepContext, **memory: Any) -> TaskParameters:
    """All trees random, the memory's too but for what is given; no B is zero."""
    starting = starting_of(context)

    def begin() -> TaskParameters:
        start = starting.stream(TASKS)
        return starting.begin(start.shared, TASK_INDEX, memory=start.memory)

    parameters = randomised(jax.eval_shape(begin), 0.3)
    return parameters.replace(memory={**parameters.memory, **memory})


def loss_of(context: StepContext, parameters: TaskParameters, batch: Any) -> Any:
    """L and metrics as functions of what is trained, without a task's beginning."""
    state = init_train_state(context.method, OPTIMIZER, parameters, jax.random.key(0))
    return lambda trained: loss(trained, state, frozen_params(), batch, context)


def inputs_of(**parts: Any) -> LossInputs:
    """Inputs of a penalty that needs these alone."""
    names = [field.name for field in dataclasses.fields(LossInputs)]
    return LossInputs(**{**dict.fromkeys(names), **parts})


def trees(shared: Any, memory: Any = None, expert: Any = None) -> TaskParameters:
    """Parameters of a task without a classification head."""
    return TaskParameters(shared, expert or {}, {}, memory or {})


def wide(tree: Any) -> Any:
    """A tree in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
