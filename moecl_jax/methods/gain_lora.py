"""GainLoRA: gates keep a new task's LoRA out of earlier tasks' answers (arXiv 2505.15424).

    W x + c sum_{k <= t} a_k B_k A_k x                  a_k in [0, 1), one for each text
    a_k = |2 sigmoid(4 cos(g_k, p_k)) - 1|,   p_k = silu(G_k q)
    L = L_SFT + lambda_1 sum_{modules} sum_{k < t} sum_{ij} |A_k A_t^T|_ij

q is the mean frozen word embedding of the prompt. Gate (G_t, g_t) and LoRA of the current task are
trained, those of finished tasks are frozen. So that a_t is 0 for earlier tasks' texts, G_t begins
as G_{t-1}, g_t begins orthogonal to the p of earlier tasks' texts, and neither moves where these
texts would notice: what is trained is the change, of which F takes what is left beside the
subspaces of their q and of their p, which hold epsilon_t of the energy (`subspace`).

    G_t = G_{t-1} + F_q dG,   g_t = F_p (g_0 + dg)          epsilon_t from `threshold` to 1 over T

The branches are O-LoRA's, as in the paper's GainLoRA (O-LoRA); weight 0 makes them plain. As in the
released code the cosine is taken, times 4. The paper's gates have two hidden layers, these have
one. g_0 is random; the code takes the leading direction of the new task's p.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.methods.added_loras import AddedLoras, side_by_side, weighed
from moecl_jax.methods.base import LossInputs, Penalty, TaskEnd, TaskStart, Traits
from moecl_jax.methods.o_lora import overlap
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.subspace import without
from moecl_jax.models.config import DecoderConfig
from moecl_jax.settings import Section, setting

SHARPNESS = 4.0  # factor of the cosine in a gate


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of GainLoRA.

    Attributes:
      weight: lambda_1, coefficient of O-LoRA's orthogonality; 0 for plain LoRAs.
      hidden: width of a gate's hidden layer.
      threshold: epsilon, share of the energy of the first task's queries and hidden layers that
        later gates are kept away from; it grows to 1 over the stream.
    """

    KEY: ClassVar[str] = "gain_lora"
    weight: float = setting(0.5, least=0, most=1e9, by_task=True)
    hidden: int = setting(100, least=1, most=2**16)
    threshold: float = setting(0.995, least=0, most=1, by_task=True)


class GainLora(AddedLoras):
    """A LoRA and a gate a task; the gates weigh all LoRAs anew for each text.

    The shared tree is the current LoRA and the change of its gate. Beside the finished LoRAs the
    memory has their gates, G `[T, D, H]` and g `[T, H]`, where the current gate began, and the
    projections F_q `[D, D]` and F_p `[H, H]`. A gate that does not exist is zero, and so is its
    weight.
    """

    name: ClassVar[str] = "gain_lora"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(
        reads_query=True,
        no_single_lora="its gates weigh its experts anew for each text, by the words in it, so "
        "that together they are no linear map",
    )

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """The first task's LoRA, and no change of its gate."""
        return {
            **super().init_shared(key, sizes, task_count),
            "change": self._blank_gates(sizes.width),
        }

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """No gate yet, and nothing is projected out."""
        return {
            **super().init_memory(sizes, task_count),
            "gates": self._blank_gates(sizes.width, task_count),
            "start": self._blank_gates(sizes.width),
            "free": {"layer": jnp.eye(sizes.width), "key": jnp.eye(self.options.hidden)},
        }

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """The gate begins where the last one ended, but for g."""
        memory = parameters.memory
        layer_key, vector_key = jax.random.split(start.key)
        width, hidden = memory["start"]["layer"].shape
        bound = width**-0.5
        layer = (
            jnp.asarray(memory["gates"]["layer"])[start.index - 1]
            if start.index
            else jax.random.uniform(layer_key, (width, hidden), minval=-bound, maxval=bound)
        )
        vector = memory["free"]["key"] @ jax.random.normal(vector_key, (hidden,))
        return {**memory, "start": {"layer": layer, "key": vector}}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Puts LoRA and gate into the memory, and the task's texts out of later gates' reach."""
        memory, gate = parameters.memory, jax.tree.map(np.asarray, current_gate(parameters))
        threshold, count = self.options.threshold, self.task_count(memory)
        share = threshold + (1.0 - threshold) * end.index / count
        queries = end.queries()
        rows = {
            "layer": queries,
            "key": np.asarray(hidden_layer(jnp.asarray(queries), gate["layer"])),
        }
        free = {
            name: without(memory["free"][name], _moment(each), share) for name, each in rows.items()
        }
        gates = {
            name: jnp.asarray(memory["gates"][name]).at[end.index].set(gate[name]) for name in gate
        }
        finished = super().finish_task(parameters, end)
        nothing = jax.tree.map(jnp.zeros_like, gate)
        return finished.replace(
            shared={**finished.shared, "change": nothing},
            memory={**finished.memory, "gates": gates, "start": nothing, "free": free},
        )

    def weights(self, parameters: TaskParameters, query: jax.Array) -> jax.Array:
        """Weights `[N, 1 + T]` of queries `[N, D]`: the current LoRA's, then the finished ones'."""
        own, finished = current_gate(parameters), parameters.memory["gates"]
        gates = jax.tree.map(lambda one, all: jnp.concatenate([one[None], all]), own, finished)
        return jax.vmap(gate_weight, in_axes=(None, 0), out_axes=1)(query, gates)

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """All LoRAs as one, the middle of which is weighed for each token."""
        if query is None:
            raise ValueError("GainLoRA weighs its experts by a query, and none was given")
        joined = side_by_side(parameters.shared["expert"], parameters.memory["expert"])
        return {"expert": weighed(joined, self.weights(parameters, query), self.lora.rank)}

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """Lambda_1 times the overlap of the task's subspaces with the earlier ones."""
        found = overlap(parameters.shared["expert"], parameters.memory["expert"])
        gates, real = gate_weight(inputs.query, current_gate(parameters)), inputs.batch.weights
        mean = jnp.sum(gates * real) / jnp.maximum(real.sum(), 1.0)
        return Penalty(self.options.weight * found, metrics={"overlap": found, "gate": mean})

    def _blank_gates(self, width: int, *count: int) -> Tree:
        hidden = self.options.hidden
        return {"layer": jnp.zeros((*count, width, hidden)), "key": jnp.zeros((*count, hidden))}


def current_gate(parameters: TaskParameters) -> Tree:
    """The gate of the current task: G `[D, H]` as `layer` and g `[H]` as `key`."""
    start, free = parameters.memory["start"], parameters.memory["free"]
    change = parameters.shared["change"]
    return {name: start[name] + free[name] @ change[name] for name in change}


def hidden_layer(query: jax.Array, layer: jax.Array) -> jax.Array:
    """The gate's hidden layer p `[N, H]` of queries `[N, D]` and G `[D, H]`."""
    return jax.nn.silu(query @ layer)


def gate_weight(query: jax.Array, gate: Tree) -> jax.Array:
    """The gate's weight a `[N]` of queries `[N, D]`; 0 where the gate is 0."""
    hidden, key = hidden_layer(query, gate["layer"]), gate["key"]
    squares = jnp.sum(hidden**2, axis=-1) * jnp.sum(key**2)
    cosine = (hidden @ key) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
    return jnp.abs(2.0 * jax.nn.sigmoid(SHARPNESS * cosine) - 1.0)


def _moment(rows: np.ndarray) -> np.ndarray:
    """Mean of x x^T of rows `[n, W]`, `[W, W]`; 0 of no row."""
    wide = rows.astype(np.float64)
    moment: np.ndarray = wide.T @ wide / max(len(rows), 1)
    return moment
