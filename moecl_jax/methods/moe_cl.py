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
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import Method, TaskEnd, Tree, View
from moecl_jax.methods.losses import adversarial_losses
from moecl_jax.models.experts import FeedForward
from moecl_jax.models.experts import moe_layer as moe_ffn


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters beyond the paper's, which are in `MethodSettings`.

    Attributes:
      snapshot: whether a finished task keeps the shared expert and gate as they were when it was
        finished, and is answered for by those, rather than by those of the moment.
    """

    snapshot: bool = False


INIT_DEVIATION = 0.02  # of gate and discriminator, as the original's code


class MoeCl(Method):
    """Shared expert, gate and discriminator for all tasks; an expert a task."""

    name: ClassVar[str] = "moe_cl"
    experts: ClassVar[tuple[str, ...]] = ("shared", "task")
    Options: ClassVar[type] = Options
    no_single_lora: ClassVar[str] = (
        "its gate weighs the shared and the task's expert anew for each token, so that together "
        "they are no linear map"
    )

    @property
    def separate(self) -> bool:
        """Yes: each task has its own expert beside the shared one."""
        return True

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return self.settings.objective != "off"

    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """Shared expert, gate `[L, 2, D]` and discriminator `[L, T, D]`."""
        expert_key, gate_key, discriminator_key = jax.random.split(key, 3)
        gate_shape = (self.config.layers, 2, self.config.width)
        shared = {
            "expert": self.new_expert(expert_key),
            "gate": INIT_DEVIATION * jax.random.normal(gate_key, gate_shape),
        }
        if self.adversarial:
            rows = jnp.arange(task_count)
            shared["discriminator"] = self._discriminator_rows(discriminator_key, rows)
        return shared

    def init_task_expert(self, key: jax.Array) -> Tree:
        """The task's expert."""
        return self.new_expert(key, attention=self.settings.task_attention)

    def extend_shared(self, saved: Tree, key: jax.Array, task_count: int) -> Tree:
        """Adds the discriminator's rows of new tasks; what was learned stays."""
        if not self.adversarial or saved["discriminator"].shape[1] == task_count:
            return saved
        fresh = self.init_shared(key, task_count)["discriminator"]
        learned = saved["discriminator"]
        rows = jnp.concatenate([learned, fresh[:, learned.shape[1] :]], axis=1)
        return {**saved, "discriminator": rows}

    def feed_forward(self, training: bool) -> FeedForward:
        """The FFN with two experts; the discriminator's input is computed in training only."""
        return functools.partial(
            moe_ffn,
            scale=self.settings.scale,
            dropout_rate=self.settings.dropout if training else 0.0,
            adversarial=training and self.adversarial,
        )

    def adapter(
        self, shared: Tree, expert: Tree, memory: Tree, query: jax.Array | None = None
    ) -> Tree:
        """Both experts and the gate."""
        del memory, query
        if "snapshot" in expert:
            return {**expert["snapshot"], "task": expert["task"]}
        return {"shared": shared["expert"], "gate": shared["gate"], "task": expert}

    def finish_task(
        self, shared: Tree, expert: Tree, memory: Tree, end: TaskEnd
    ) -> tuple[Tree, Tree, Tree]:
        """Carries the shared trees on; the task keeps its expert, or a snapshot with it."""
        del end
        if self.options.snapshot:
            snapshot = {"shared": shared["expert"], "gate": shared["gate"]}
            expert = {"task": expert, "snapshot": snapshot}
        return shared, expert, memory

    def penalty(self, shared: Tree, view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Alpha times the discriminator's and the shared expert's adversarial losses.

        The reported `loss_adversarial` is L_GAN.
        """
        if not self.adversarial:
            return super().penalty(shared, view)
        loss, expert_loss, accuracy = adversarial_losses(
            view.reports["shared_pooled"],
            shared["discriminator"],
            view.batch.task_index,
            view.batch.weights,
            self.settings.objective,
            self.settings.adversarial_reduction,
        )
        alpha = self.settings.adversarial_alpha
        metrics = {
            "loss_adversarial": loss,
            "penalty": alpha * expert_loss,
            "discriminator_accuracy": accuracy.mean(),
            "discriminator_accuracy_by_layer": accuracy,
        }
        return alpha * (loss + expert_loss), metrics

    def _discriminator_rows(self, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Rows `[L, rows, D]`, each drawn from its own index so that tasks can be added."""
        shape = (self.config.layers, self.config.width)

        def row(index: jax.Array) -> jax.Array:
            return INIT_DEVIATION * jax.random.normal(jax.random.fold_in(key, index), shape)

        return jax.vmap(row, out_axes=1)(rows)
