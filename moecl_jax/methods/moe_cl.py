"""MoE-CL: adversarial mixture of LoRA experts (arXiv 2509.18133).

In each layer a shared expert s and the task's expert t are mixed by a token-wise gate, and a
discriminator Phi tries to tell the task from the shared expert's pooled output:

    out   = beta_s z_s + beta_t z_t,  beta = softmax(G x)                      eq. 7, 8
    L_GAN = mean over layers and examples of CE(Phi mean(z_s), t)              eq. 5, 6
    L     = L_SFT - alpha L_GAN for experts, gate and head;  Phi minimises L_GAN      eq. 10

Defaults of the paper: r 8, lora_alpha 16, alpha 0.1. `objective=off` is its ablation. Shared expert
and gate drift as later tasks are trained, and finished tasks with them; `snapshot` ends that.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from moecl_jax.methods.base import LossInputs, Method, Penalty, TaskEnd, Traits
from moecl_jax.methods.losses import cross_entropy, weighted_mean
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import FeedForward, moe_layer
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
    """

    KEY: ClassVar[str] = "adversarial"
    objective: str = setting("original", choices=("paper", "original", "confusion", "off"))
    alpha: float = setting(0.1, least=0, most=1e6)
    reduction: str = setting("mean", choices=("mean", "sum"))


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of MoE-CL beside those of its experts.

    Attributes:
      snapshot: whether a finished task keeps the shared expert and gate as they were when it was
        finished, and is answered for by those. The paper answers with those of the moment, which
        later tasks have changed.
      adversarial: the adversarial part.
    """

    KEY: ClassVar[str] = "moe_cl"
    snapshot: bool = False
    adversarial: Adversarial = Adversarial()


class MoeCl(Method):
    """A shared LoRA expert and one a task, mixed by a token-wise gate and trained adversarially."""

    name: ClassVar[str] = "moe_cl"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(
        expert_per_task=True,
        experts=("shared", "task"),
        no_single_lora="its gate weighs the shared and the task's expert anew for each token, so "
        "that together they are no linear map",
    )

    @property
    def has_discriminator(self) -> bool:
        """Whether the adversarial part is on."""
        return self.options.adversarial.objective != "off"

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """Shared expert, gate `[L, 2, D]` and discriminator `[L, T, D]`."""
        expert_key, gate_key, discriminator_key = jax.random.split(key, 3)
        gate_shape = (sizes.layers, 2, sizes.width)
        shared = {
            "expert": self.new_expert(expert_key, sizes),
            "gate": INIT_DEVIATION * jax.random.normal(gate_key, gate_shape),
        }
        if self.has_discriminator:
            shared["discriminator"] = discriminator_rows(discriminator_key, sizes, task_count)
        return shared

    def init_expert(self, key: jax.Array, sizes: DecoderConfig) -> Tree:
        """The task's expert."""
        return self.new_expert(key, sizes, attention=self.lora.task_attention)

    def feed_forward(self, training: bool) -> FeedForward:
        """The FFN with two experts; the discriminator's input is computed in training only."""
        return functools.partial(
            moe_layer,
            scale=self.lora.scale,
            dropout_rate=self.lora.dropout if training else 0.0,
            adversarial=training and self.has_discriminator,
        )

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """Both experts and the gate."""
        del query
        shared, expert = parameters.shared, parameters.expert
        if "snapshot" in expert:
            return {**expert["snapshot"], "task": expert["task"]}
        return {"shared": shared["expert"], "gate": shared["gate"], "task": expert}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Carries the shared trees on; the task keeps its expert, or a snapshot with it."""
        del end
        if not self.options.snapshot:
            return parameters
        shared = parameters.shared
        snapshot = {"shared": shared["expert"], "gate": shared["gate"]}
        return parameters.replace(expert={"task": parameters.expert, "snapshot": snapshot})

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """Alpha times the discriminator's and the shared expert's adversarial losses."""
        if not self.has_discriminator:
            return super().penalty(parameters, inputs)
        adversarial = self.options.adversarial
        loss, expert_loss, accuracy = adversarial_losses(
            inputs.reports["shared_pooled"],
            parameters.shared["discriminator"],
            inputs.batch.task_index,
            inputs.batch.weights,
            adversarial.objective,
            adversarial.reduction,
        )
        return Penalty(
            term=adversarial.alpha * (loss + expert_loss),
            reported=adversarial.alpha * expert_loss,
            adversarial=loss,
            metrics={
                "discriminator_accuracy": accuracy.mean(),
                "discriminator_accuracy_by_layer": accuracy,
            },
        )


def discriminator_rows(key: jax.Array, sizes: DecoderConfig, task_count: int) -> jax.Array:
    """Rows `[L, T, D]` of T tasks, each drawn from its own index so that tasks can be added."""
    shape = (sizes.layers, sizes.width)

    def row(index: jax.Array) -> jax.Array:
        return INIT_DEVIATION * jax.random.normal(jax.random.fold_in(key, index), shape)

    return jax.vmap(row, out_axes=1)(jnp.arange(task_count))


def adversarial_losses(
    pooled: jax.Array,
    discriminator: jax.Array,
    task_index: jax.Array,
    weights: jax.Array,
    objective: str,
    reduction: str = "mean",
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
    expert a constant discriminator. For `paper` and `original` that is gradient reversal.

    Args:
      pooled: `[L, B, D]` float32, the shared expert's mean output over real tokens.
      discriminator: Phi, `[L, T, D]`.
      task_index: scalar t, index of the batch's task.
      weights: `[B]`, 1 for an example, 0 for a place that is filled up.
      objective: `paper`, `original` or `confusion`.
      reduction: how both losses are reduced over the layers, `mean` or `sum`.

    Returns:
      The discriminator's loss, the shared expert's loss, and the discriminator's accuracy in each
      layer `[L]`.
    """
    chex.assert_rank([pooled, discriminator, task_index, weights], [3, 3, 0, 1])
    chex.assert_equal_shape_prefix([pooled, discriminator], 1)
    chex.assert_equal(pooled.shape[2], discriminator.shape[2])

    def logits(features: jax.Array, phi: jax.Array) -> jax.Array:
        out = jnp.einsum("lbd,ltd->lbt", features, phi)
        return jax.nn.softmax(out, axis=-1) if objective == "original" else out

    labels = jnp.broadcast_to(task_index, pooled.shape[:2])
    layer_weights = jnp.broadcast_to(weights[None, :], labels.shape)
    seen_by_discriminator = logits(jax.lax.stop_gradient(pooled), discriminator)
    seen_by_expert = logits(pooled, jax.lax.stop_gradient(discriminator))
    loss = weighted_mean(cross_entropy(seen_by_discriminator, labels), layer_weights)
    if objective == "confusion":
        to_uniform = -jax.nn.log_softmax(seen_by_expert, axis=-1).mean(axis=-1)
        expert_loss = weighted_mean(to_uniform, layer_weights)
    else:
        expert_loss = -weighted_mean(cross_entropy(seen_by_expert, labels), layer_weights)
    if reduction == "sum":
        loss, expert_loss = loss * len(pooled), expert_loss * len(pooled)
    right = (jnp.argmax(seen_by_discriminator, axis=-1) == labels).astype(jnp.float32)
    accuracy = jnp.sum(right * layer_weights, axis=1) / jnp.maximum(jnp.sum(weights), 1.0)
    return loss, expert_loss, accuracy
