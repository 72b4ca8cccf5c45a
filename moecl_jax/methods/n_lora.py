"""N-LoRA: sparse updates, which seldom meet those of earlier tasks (arXiv 2410.10179).

    W x + c sum_{k <= t} B_k A_k x                      earlier LoRAs are frozen, and added
    L = L_SFT + lambda sum_{modules} ||B_t A_t||_1

An entry of W that few tasks change is one on which few tasks collide. The norm is the sum of the
absolute values of all entries, without the factor c. The released code multiplies the factors in
the other order, A_t B_t, which gives `[r, r]` where input and output are equally wide; its lambda
of 0.4 is for that far smaller sum.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.added_loras import AddedLoras
from moecl_jax.methods.base import LossInputs, Penalty
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.models.lora import Expert
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of N-LoRA.

    Attributes:
      weight: lambda, coefficient of the sparsity. The sum grows with the model: the default suits
        one of 135M parameters.
    """

    KEY: ClassVar[str] = "n_lora"
    weight: float = setting(1e-5, least=0, most=1e9, by_task=True)


class NLora(AddedLoras):
    """A LoRA a task, each with a sparse product, all of them added."""

    name: ClassVar[str] = "n_lora"
    Options: ClassVar[type[Any]] = Options

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """Lambda times the sum of the absolute values of the current LoRA's products."""
        del inputs
        found = size_of_products(parameters.shared["expert"])
        return Penalty(self.options.weight * found, metrics={"size_of_update": found})


def size_of_products(expert: Expert) -> jax.Array:
    """Sum over modules and layers of ||B A||_1, a scalar.

    One layer's product is made at a time, in the backward pass too.
    """

    @jax.checkpoint
    def add(total: jax.Array, factors: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        return total + jnp.abs(factors["a"] @ factors["b"]).sum(), None

    total = jnp.zeros(())
    for factors in expert.values():
        total, _ = jax.lax.scan(add, total, dict(factors))
    return total
