"""MoE-CL's adversarial part: a discriminator in each layer, and what it makes the shared expert do.

The discriminator Phi tells tasks apart by the shared expert's pooled output (eq. 5 and 6 of arXiv
2509.18133). In the paper's form it only ever sees examples of the task that is trained, so that it
is right as soon as it always names that one, and its gradient says nothing of what tasks have in
common. With `past="statistics"` it also sees features of earlier tasks: of each finished task k
and layer i the mean and the variance of its pooled features are kept, no text, and each example b
of a batch is set beside a feature drawn for it,

    f_ib ~ N(mean_ik, diag variance_ik),   k uniform among the n finished tasks

    L_D = 1/(n+1) CE(Phi mean(z_s), t) + n/(n+1) CE(Phi f, k)

so that each of the n + 1 tasks counts alike. The softmax is over these tasks alone. In the first
task there is nothing to tell apart, and all losses are 0.
"""

import dataclasses
from typing import ClassVar

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.methods.base import LossInputs, Penalty
from moecl_jax.methods.losses import cross_entropy, weighted_mean
from moecl_jax.methods.parameters import Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.settings import Section, setting

INIT_DEVIATION = 0.02  # of gate and discriminator, as in the original's code


@dataclasses.dataclass(frozen=True)
class Adversarial(Section):
    """The adversarial part.

    Attributes:
      objective: what the shared expert minimises: paper (minus L_GAN), original (as the released
        code has it, the softmax taken twice), confusion (cross-entropy with the uniform
        distribution) or off, the ablation without a discriminator.
      alpha: weight alpha of the adversarial losses in eq. 10.
      reduction: how the losses are reduced over the layers, mean or sum.
      past: what the discriminator sees of finished tasks: none, or statistics of their features.
    """

    KEY: ClassVar[str] = "adversarial"
    objective: str = setting("original", choices=("paper", "original", "confusion", "off"))
    alpha: float = setting(0.1, least=0, most=1e6, by_task=True)
    reduction: str = setting("mean", choices=("mean", "sum"), by_task=True)
    past: str = setting("none", choices=("none", "statistics"))

    @property
    def on(self) -> bool:
        """Whether there is a discriminator."""
        return self.objective != "off"

    @property
    def remembers(self) -> bool:
        """Whether statistics of finished tasks are kept."""
        return self.on and self.past == "statistics"


def discriminator_rows(key: jax.Array, sizes: DecoderConfig, task_count: int) -> jax.Array:
    """Rows `[L, T, D]` of T tasks, each drawn from its own index so that tasks can be added."""
    shape = (sizes.layers, sizes.width)

    def row(index: jax.Array) -> jax.Array:
        return INIT_DEVIATION * jax.random.normal(jax.random.fold_in(key, index), shape)

    return jax.vmap(row, out_axes=1)(jnp.arange(task_count))


@flax.struct.dataclass
class Drawn:
    """Features of finished tasks that stand beside a batch's examples.

    Attributes:
      features: `[L, B, D]` float32.
      tasks: `[B]`, the finished task each was drawn for.
      seen: `[T]` bool, the n finished tasks that statistics are kept of; without any, the features
        mean nothing.
    """

    features: jax.Array
    tasks: jax.Array
    seen: jax.Array

    @property
    def finished(self) -> jax.Array:
        """Scalar n."""
        return jnp.sum(self.seen)


def no_statistics(sizes: DecoderConfig, task_count: int) -> Tree:
    """Statistics of T tasks before the first is finished.

    `mean` and `deviation` are `[L, T, D]`; `seen` `[T]` says of which tasks they are.
    """
    zeros = jnp.zeros((sizes.layers, task_count, sizes.width))
    return {"mean": zeros, "deviation": zeros, "seen": jnp.zeros(task_count, bool)}


def with_statistics(statistics: Tree, pooled: np.ndarray, index: int) -> Tree:
    """The statistics with those of one more finished task.

    Args:
      statistics: those of the tasks before.
      pooled: `[n, L, D]`, the shared expert's pooled output for the task's n training examples.
      index: place of the task.
    """
    pooled = np.asarray(pooled, np.float64)
    return {
        "mean": jnp.asarray(statistics["mean"]).at[:, index].set(pooled.mean(axis=0)),
        "deviation": jnp.asarray(statistics["deviation"]).at[:, index].set(pooled.std(axis=0)),
        "seen": jnp.asarray(statistics["seen"]).at[index].set(True),
    }


def without_statistics(statistics: Tree, index: int) -> Tree:
    """The statistics less those of the task at a place."""
    none = {"mean": 0.0, "deviation": 0.0}
    kept = {name: jnp.asarray(statistics[name]).at[:, index].set(x) for name, x in none.items()}
    return {**kept, "seen": jnp.asarray(statistics["seen"]).at[index].set(False)}


def draw(statistics: Tree, key: jax.Array, places: jax.Array) -> Drawn:
    """A finished task and a feature of it for each example.

    Args:
      statistics: those of the finished tasks.
      key: PRNG key of the step.
      places: `[B]`, the examples' places in the whole batch, by which the draws differ.
    """
    seen = statistics["seen"]
    places_seen, finished = jnp.argsort(~seen, stable=True), jnp.sum(seen)

    def one(place: jax.Array) -> tuple[jax.Array, jax.Array]:
        task_key, noise_key = jax.random.split(jax.random.fold_in(key, place))
        task = places_seen[jax.random.randint(task_key, (), 0, jnp.maximum(finished, 1))]
        mean, deviation = statistics["mean"][:, task], statistics["deviation"][:, task]
        return mean + deviation * jax.random.normal(noise_key, mean.shape), task

    features, tasks = jax.vmap(one, out_axes=(1, 0))(places)
    return Drawn(features, tasks, seen)


def adversarial_losses(
    pooled: jax.Array,
    discriminator: jax.Array,
    task_index: jax.Array,
    weights: jax.Array,
    objective: str,
    reduction: str = "mean",
    drawn: Drawn | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the task discriminator and the shared expert each minimise (eq. 5, 6 and 10).

    With logits o_ib = Phi_i mean(z_s)_ib of layer i and example b, and CE averaged over both (or,
    by `reduction`, over examples only and summed over layers):

        discriminator, all objectives but `original`:  L_GAN = CE(o, t)
        shared expert
          `paper`       - L_GAN, unbounded below
          `confusion`   CE(o, uniform), the mean of -log softmax(o) over tasks; bounded below
        `original`      L_GAN = CE(softmax(o), t), the softmax taken twice, for both; so
                        the released code of the paper; bounded, with weak gradients

    Neither's gradient reaches the other: the discriminator sees a constant input, the shared
    expert a constant discriminator. For `paper` and `original` that is gradient reversal. With
    features of finished tasks, the discriminator minimises L_D of the module's docstring.

    Args:
      pooled: `[L, B, D]` float32, the shared expert's mean output over real tokens.
      discriminator: Phi, `[L, T, D]`.
      task_index: scalar t, index of the batch's task.
      weights: `[B]`, 1 for an example, 0 for a place that is filled up.
      objective: `paper`, `original` or `confusion`.
      reduction: how both losses are reduced over the layers, `mean` or `sum`.
      drawn: features of finished tasks, where there are any to show.

    Returns:
      The discriminator's loss, the shared expert's loss, and the discriminator's accuracy in each
      layer `[L]`, in which tasks count as in its loss.
    """
    chex.assert_rank([pooled, discriminator, task_index, weights], [3, 3, 0, 1])
    chex.assert_equal_shape_prefix([pooled, discriminator], 1)
    chex.assert_equal(pooled.shape[2], discriminator.shape[2])
    count = discriminator.shape[1]
    seen = jnp.ones(count, bool)
    if drawn is not None:
        seen = drawn.seen | (jnp.arange(count) == task_index)

    def among_seen(logits: jax.Array) -> jax.Array:
        return logits if drawn is None else jnp.where(seen, logits, -jnp.inf)

    def logits(features: jax.Array, phi: jax.Array) -> jax.Array:
        out = among_seen(jnp.einsum("lbd,ltd->lbt", features, phi))
        return among_seen(jax.nn.softmax(out, axis=-1)) if objective == "original" else out

    labels = jnp.broadcast_to(task_index, pooled.shape[:2])
    layer_weights = jnp.broadcast_to(weights[None, :], labels.shape)
    seen_by_discriminator = logits(jax.lax.stop_gradient(pooled), discriminator)
    seen_by_expert = logits(pooled, jax.lax.stop_gradient(discriminator))
    loss = weighted_mean(cross_entropy(seen_by_discriminator, labels), layer_weights)
    if objective == "confusion":
        minus_log = -jax.nn.log_softmax(seen_by_expert, axis=-1)
        if drawn is not None:
            minus_log = jnp.where(seen, minus_log, 0.0) * count / (drawn.finished + 1)
        expert_loss = weighted_mean(minus_log.mean(axis=-1), layer_weights)
    else:
        expert_loss = -weighted_mean(cross_entropy(seen_by_expert, labels), layer_weights)
    right = _share_right(seen_by_discriminator, labels, layer_weights)
    if drawn is not None:
        past_logits = logits(drawn.features, discriminator)
        past_labels = jnp.broadcast_to(drawn.tasks, labels.shape)
        past_loss = weighted_mean(cross_entropy(past_logits, past_labels), layer_weights)
        loss = _alike(loss, past_loss, drawn.finished)
        past_right = _share_right(past_logits, past_labels, layer_weights)
        right = _alike(right, past_right, drawn.finished)
    if reduction == "sum":
        loss, expert_loss = loss * len(pooled), expert_loss * len(pooled)
    return loss, expert_loss, right


def _share_right(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Share of the examples whose task has the largest logit, in each layer `[L]`."""
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.sum(right * weights, axis=1) / jnp.maximum(jnp.sum(weights[0]), 1.0)


def _alike(current: jax.Array, past: jax.Array, finished: jax.Array) -> jax.Array:
    """The mean over tasks: one that is trained, and n finished ones with the mean `past`."""
    return current + finished * (past - current) / (finished + 1)


def adversarial_penalty(
    section: Adversarial, discriminator: jax.Array, statistics: Tree, inputs: LossInputs
) -> Penalty:
    """Alpha times the discriminator's and the shared expert's adversarial losses.

    Args:
      section: the adversarial part's hyper-parameters.
      discriminator: Phi, `[L, T, D]`.
      statistics: those of finished tasks, where the section wants them.
      inputs: all else that the losses depend on.
    """
    batch, drawn = inputs.batch, None
    if section.remembers:
        places = jnp.arange(len(batch.weights)) if batch.members is None else batch.members
        drawn = draw(statistics, inputs.key, places)
    loss, expert_loss, accuracy = adversarial_losses(
        inputs.reports["shared_pooled"],
        discriminator,
        batch.task_index,
        batch.weights,
        section.objective,
        section.reduction,
        drawn,
    )
    return Penalty(
        term=section.alpha * (loss + expert_loss),
        reported=section.alpha * expert_loss,
        adversarial=loss,
        metrics={
            "discriminator_accuracy": accuracy.mean(),
            "discriminator_accuracy_by_layer": accuracy,
        },
    )
