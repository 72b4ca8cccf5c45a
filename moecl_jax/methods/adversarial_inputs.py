"""Adversarial training on the input: a text is also trained as the embeddings that mislead most.

    min over what is trained of  max over |d_b| <= epsilon |x_b|  of  L(x + d)

x_b are the word embeddings of all tokens of example b's prompt, d_b what is added to them, and |.|
the Euclidean norm over tokens and channels together. The papers' epsilon is absolute, for
embeddings that are normalised; here it is a part of |x_b|, so that one value serves any LLM. Each
pass computes the gradient g_b of L with respect to x_b + d_b, and moves d_b uphill:

    d_b <- P(d_b + step_size epsilon |x_b| g_b / |g_b|),  P the projection on the ball

    fgm      one step to the ball's surface     (L(x) + L(x + d)) / 2        arXiv 1605.07725
    pgd      n steps, from d = 0                (L(x) + L(x + d_n)) / 2      arXiv 1706.06083
    freelb   n steps, from a random d_0         sum over k < n of L(x + d_k) / n   arXiv 1909.11764

L is the whole loss of the method, its penalty included. fgm and pgd take the mean of the two losses
where their papers take the sum, so that learning rate and clipping mean the same with an attack and
without. Answers are never changed, and the passes of a step share its dropout.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import chex
import flax.struct
import jax
import jax.numpy as jnp

from moecl_jax.settings import Section, setting

_LEAST_NORM = 1e-12  # of a gradient that has a direction

Gradients = Any  # a tree of what is trained
Metrics = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class AdversarialInputs(Section):
    """Adversarial training on the input, with any method.

    Attributes:
      attack: how the embeddings that mislead most are looked for: off, fgm, pgd or freelb. fgm
        takes twice the time of off, pgd steps + 1 times, freelb steps times.
      epsilon: how far a prompt's word embeddings are moved at most, as a part of their norm; 0 is
        training without an attack.
      steps: number of steps of pgd and freelb.
      step_size: length of a step of pgd and freelb, as a part of the farthest move.
    """

    KEY: ClassVar[str] = "adversarial_inputs"
    attack: str = setting("off", choices=("off", "fgm", "pgd", "freelb"), by_task=True)
    epsilon: float = setting(0.1, least=0, most=100, by_task=True)
    steps: int = setting(3, least=1, most=1000, by_task=True)
    step_size: float = setting(0.5, least=0, most=100, by_task=True)

    @property
    def on(self) -> bool:
        """Whether anything is moved."""
        return self.attack != "off" and self.epsilon > 0

    @property
    def weights(self) -> tuple[float, ...]:
        """How much the loss of each pass counts; 1 in all."""
        if self.attack == "freelb":
            return (1.0 / self.steps,) * self.steps
        between = 0 if self.attack == "fgm" else self.steps - 1
        return (0.5, *(0.0,) * between, 0.5)

    @property
    def move(self) -> float:
        """Length of a step, as a part of the farthest move."""
        return 1.0 if self.attack == "fgm" else self.step_size


@flax.struct.dataclass
class Prompts:
    """The prompts of a batch, as an attack sees them.

    Attributes:
      embedded: `[N, D]`, word embeddings of all computed tokens.
      members: `[B, N]` float32, 1 where a token is one of an example's prompt.
      places: `[N]` uint32, a number for each token that does not depend on how examples are packed.
    """

    embedded: jax.Array
    members: jax.Array
    places: jax.Array

    def norms(self, values: jax.Array) -> jax.Array:
        """Norm `[B]` over each example's prompt of `[N, D]`."""
        squares = jnp.sum(values.astype(jnp.float32) ** 2, axis=1)
        return jnp.sqrt(self.members @ squares)

    def scaled(self, values: jax.Array, factors: jax.Array) -> jax.Array:
        """`[N, D]` times the factor `[B]` of the token's example; 0 outside the prompts."""
        return (self.members.T @ factors)[:, None] * values.astype(jnp.float32)


def attacked_gradient(
    loss: Callable[[Any, jax.Array], tuple[jax.Array, Metrics]],
    active: Any,
    section: AdversarialInputs,
    prompts: Prompts,
    key: jax.Array,
) -> tuple[Gradients, Metrics]:
    """Gradient and metrics of the attacked loss; one pass after the other, in one loop.

    Args:
      loss: scalar loss and metrics, given what is trained and what is added to the word embeddings
        `[N, D]`.
      active: what is trained.
      section: the attack, which is on.
      prompts: what may be moved.
      key: PRNG key of the step, for freelb's beginning.

    Returns:
      The gradient, in the structure of `active`, and the metrics: means over the passes with their
      weights, and `loss_attacked`, the instruction loss of the last pass.
    """
    chex.assert_rank([prompts.embedded, prompts.members, prompts.places], [2, 2, 1])
    radius = section.epsilon * prompts.norms(prompts.embedded)
    weights = jnp.array(section.weights)

    def one_pass(
        carry: tuple[jax.Array, Gradients], weight: jax.Array
    ) -> tuple[tuple[jax.Array, Gradients], Metrics]:
        shift, total = carry
        differentiate: Any = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (gradient, uphill), metrics = differentiate(active, shift)
        total = jax.tree.map(lambda sum_, new: sum_ + weight * new, total, gradient)
        length = section.move * radius / jnp.maximum(prompts.norms(uphill), _LEAST_NORM)
        shift = projected(shift + prompts.scaled(uphill, length), radius, prompts)
        return (shift, total), metrics

    shift = jnp.zeros(prompts.embedded.shape)
    if section.attack == "freelb":
        shift = beginning(radius, prompts, key)
    start = shift, jax.tree.map(jnp.zeros_like, active)
    (_, gradient), passes = jax.lax.scan(one_pass, start, weights)
    metrics = {
        name: jnp.sum(jax.vmap(jnp.multiply)(weights, values), axis=0)
        for name, values in passes.items()
    }
    return gradient, {**metrics, "loss_attacked": passes["loss_instruction"][-1]}


def projected(shift: jax.Array, radius: jax.Array, prompts: Prompts) -> jax.Array:
    """`[N, D]`, scaled down to the radius `[B]` of each example where it is longer."""
    norms = prompts.norms(shift)
    return prompts.scaled(shift, jnp.minimum(1.0, radius / jnp.maximum(norms, _LEAST_NORM)))


def beginning(radius: jax.Array, prompts: Prompts, key: jax.Array) -> jax.Array:
    """FreeLB's d_0 `[N, D]`: radius U(-1, 1) / sqrt(n D) for a prompt of n tokens.

    It depends on the key and the tokens' places alone.
    """
    width = prompts.embedded.shape[1]

    def draw(place: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, place), (width,), minval=-1.0)

    numbers = jnp.maximum(prompts.members.sum(axis=1), 1.0) * width
    return prompts.scaled(jax.vmap(draw)(prompts.places), radius / jnp.sqrt(numbers))
