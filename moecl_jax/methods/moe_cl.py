"""MoE-CL: adversarial mixture of LoRA experts (arXiv 2509.18133).

In each layer a shared expert s and the task's expert t are mixed by a token-wise gate, and a
discriminator Phi tries to tell the task from the shared expert's pooled output:

    out   = beta_s z_s + beta_t z_t,  beta = softmax(G x)                      eq. 7, 8
    L_GAN = mean over layers and examples of CE(Phi mean(z_s), t)              eq. 5, 6
    L     = L_SFT - alpha L_GAN for experts, gate and head;  Phi minimises L_GAN      eq. 10

Defaults of the paper: r 8, lora_alpha 16, alpha 0.1. `objective=off` is its ablation. In the paper
shared expert and gate move on while later tasks are trained, and finished tasks forget by them.
What keeps them from it is in `shared_expert`, the adversarial part in `adversarial`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from moecl_jax.data.rehearsal import ExamplePolicy
from moecl_jax.methods.adversarial import (
    INIT_DEVIATION,
    Adversarial,
    adversarial_penalty,
    discriminator_rows,
    no_statistics,
    with_statistics,
    without_statistics,
)
from moecl_jax.methods.base import LossInputs, Method, Penalty, TaskEnd, TaskStart, Traits
from moecl_jax.methods.meta import Meta
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.shared_expert import WAYS, unpacked
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import FeedForward, moe_layer
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of MoE-CL beside those of its experts.

    Attributes:
      shared: what becomes of the shared expert when a task is finished: snapshot, moving (the
        paper's), frozen, merged or projected.
      snapshot_dtype: how a finished task's copy of the shared expert is stored, float32 or int8.
      frozen_after: number of tasks that train the shared expert where `shared` is frozen.
      directions: number of directions of a projection's inputs that are held where `shared` is
        projected.
      adversarial: the adversarial part.
      meta: how a new task's expert starts.
    """

    KEY: ClassVar[str] = "moe_cl"
    shared: str = setting("snapshot", choices=tuple(WAYS))
    snapshot_dtype: str = setting("float32", choices=("float32", "int8"), by_task=True)
    frozen_after: int = setting(1, least=1, most=1_000_000)
    directions: int = setting(64, least=0, most=65_536)
    adversarial: Adversarial = Adversarial()
    meta: Meta = Meta()


class MoeCl(Method):
    """A shared LoRA expert and one a task, mixed by a token-wise gate and trained adversarially.

    A finished task's own tree is its expert. Where it keeps more than that (all ways but `moving`)
    it is `{"task": expert, "gate": [L, 2, D]}`, and `shared` if it has a copy of the shared expert.
    """

    name: ClassVar[str] = "moe_cl"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(
        expert_per_task=True,
        experts=("shared", "task"),
        no_single_lora="its gate weighs the shared and the task's expert anew for each token, so "
        "that together they are no linear map",
    )

    def __init__(self, *arguments: Any, **values: Any):
        """As any method."""
        super().__init__(*arguments, **values)
        self.shared_expert = WAYS[self.options.shared](self.options)
        self.traits = dataclasses.replace(
            self.traits,
            settled=self.shared_expert.settled,
            reads_moments=self.shared_expert.reads_moments,
        )

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """Shared expert, gate `[L, 2, D]` and discriminator `[L, T, D]`."""
        expert_key, gate_key, discriminator_key = jax.random.split(key, 3)
        gate_shape = (sizes.layers, 2, sizes.width)
        shared = {
            "expert": self.new_expert(expert_key, sizes),
            "gate": INIT_DEVIATION * jax.random.normal(gate_key, gate_shape),
        }
        if self.options.adversarial.on:
            shared["discriminator"] = discriminator_rows(discriminator_key, sizes, task_count)
        return shared

    def init_expert(self, key: jax.Array, sizes: DecoderConfig) -> Tree:
        """The task's expert."""
        return self.new_expert(key, sizes, attention=self.lora.task_attention)

    @property
    def examples(self) -> ExamplePolicy:
        """The task's own; some are kept where experts' starting value is learned."""
        return self.options.meta.examples

    def start_expert(self, expert: Tree, memory: Tree) -> Tree:
        """The fresh expert, or the value that was learned."""
        return self.options.meta.start(expert, memory)

    def trainable(self, expert: Tree) -> Tree:
        """The task's expert alone: it is trained with the newest shared expert and gate."""
        return expert.get("task", expert)

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """What the shared expert's way keeps, and statistics of the discriminator's input.

        Beside them the experts' starting value, where it is learned.
        """
        shapes = jax.eval_shape(lambda: self.new_expert(jax.random.key(0), sizes))
        own = jax.eval_shape(lambda: self.init_expert(jax.random.key(0), sizes))
        memory = {**self.shared_expert.init_memory(shapes), **self.options.meta.memory(own)}
        if self.options.adversarial.remembers:
            memory = {**memory, "statistics": no_statistics(sizes, task_count)}
        return memory

    def feed_forward(self, training: bool) -> FeedForward:
        """The FFN with two experts; the discriminator's input is computed in training only."""
        return functools.partial(
            moe_layer,
            scale=self.lora.scale,
            dropout_rate=self.lora.dropout if training else 0.0,
            adversarial=training and self.options.adversarial.on,
        )

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """Both experts and the gate."""
        del query
        return self.adapters(parameters, [parameters.expert])[0]

    def adapters(self, parameters: TaskParameters, experts: Sequence[Tree]) -> list[Tree]:
        """The same of several tasks; those without a copy of the shared expert have one object."""
        shared = parameters.shared
        owns = [expert if "task" in expert else {"task": expert} for expert in experts]
        acting: Tree = {}
        if not all("shared" in own for own in owns):
            acting = self.shared_expert.acting(shared["expert"], parameters.memory)
        return [
            {
                "shared": unpacked(own["shared"]) if "shared" in own else acting,
                "gate": own["gate"] if "gate" in own else shared["gate"],
                "task": own["task"],
            }
            for own in owns
        ]

    def answering(self, parameters: TaskParameters) -> TaskParameters:
        """Both experts and the gate as the task's own."""
        return parameters.replace(shared={}, expert=self.adapter(parameters))

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """The memory as the shared expert's way has it in training."""
        del start
        return {**parameters.memory, **self.shared_expert.begin(parameters.memory)}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Carries the shared trees on; the task keeps what it is answered with for ever."""
        way, shared, memory = self.shared_expert, parameters.shared, parameters.memory
        acting, expert = way.acting(shared["expert"], memory), parameters.expert
        if way.own_gate:
            kept = way.kept(acting, end.index)
            expert = {"task": expert, "gate": shared["gate"]}
            expert |= {} if kept is None else {"shared": kept}
        carried, kept_memory = way.carried_on(acting, memory, end)
        fresh = self.init_expert(end.key, end.sizes)
        memory = {**memory, **kept_memory, **self.options.meta.learned(fresh, memory, end)}
        if self.options.adversarial.remembers:
            pooled = end.reports("adversarial")["shared_pooled"]
            memory["statistics"] = with_statistics(memory["statistics"], pooled, end.index)
        return parameters.replace(
            shared={**shared, "expert": carried}, expert=expert, memory=memory
        )

    def continue_task(self, parameters: TaskParameters) -> TaskParameters:
        """The task's expert, and as the shared ones the gate and shared expert that answer for it.

        Tasks after it go on from these.
        """
        own, shared = parameters.expert, parameters.shared
        if "gate" not in own:
            return parameters
        self.shared_expert.check_continued(own, parameters.memory)
        acting = self.adapter(parameters)
        return parameters.replace(
            shared={**shared, "expert": acting["shared"], "gate": acting["gate"]},
            expert=acting["task"],
        )

    def without_task(self, memory: Tree, index: int) -> Tree:
        """The statistics of the task's features go, and the experts' starting value.

        In the shared expert it cannot be told.
        """
        memory = self.options.meta.forgotten(memory)
        if not self.options.adversarial.remembers:
            return memory
        return {**memory, "statistics": without_statistics(memory["statistics"], index)}

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """Alpha times the discriminator's and the shared expert's adversarial losses."""
        section = self.options.adversarial
        if not section.on:
            return super().penalty(parameters, inputs)
        discriminator = parameters.shared["discriminator"]
        return adversarial_penalty(
            section, discriminator, parameters.memory.get("statistics"), inputs
        )
