"""Array functions with mathematical names, and how frozen weights lie in memory.

Everything that is done for a processor's sake belongs here: optimization barriers, custom
derivatives, bits in place of bfloat16, quantised weights, layouts, fused attention, rounded
gradients, names for checkpoint policies, hashed dropout masks. What a layer or a method computes
does not: equations, parameters and configs are for the rooms above, which call these functions and
know no processor. Each function marked `@kernel` has a twin of the same name in `reference`, which
is its definition in plain `jnp`; tests prove that both give the same values and gradients, and
`use("reference")` runs the twins in place of the fast functions.
"""

from moecl_jax.kernels.attention import ATTENTIONS, MADE_FOR, attention
from moecl_jax.kernels.dispatch import KERNELS, Kernel, use
from moecl_jax.kernels.dropout import dropout
from moecl_jax.kernels.gated import gated_activation, weighted_sum
from moecl_jax.kernels.linear import (
    Factors,
    affine,
    dense,
    dot,
    embedding,
    from_rank,
    low_rank,
    mean_over_tokens,
    to_rank,
    vocabulary_logits,
)
from moecl_jax.kernels.reference import hash_bits
from moecl_jax.kernels.rows import rearranged
from moecl_jax.kernels.saved import SAVED, save_for_backward
from moecl_jax.kernels.storage import (
    QUANTIZATIONS,
    QuantizedKernel,
    as_bits,
    from_bits,
    one_by_one,
    quantize,
    quantize_layers,
)

__all__ = [
    "ATTENTIONS",
    "KERNELS",
    "MADE_FOR",
    "QUANTIZATIONS",
    "SAVED",
    "Factors",
    "Kernel",
    "QuantizedKernel",
    "affine",
    "as_bits",
    "attention",
    "dense",
    "dot",
    "dropout",
    "embedding",
    "from_bits",
    "from_rank",
    "gated_activation",
    "hash_bits",
    "low_rank",
    "mean_over_tokens",
    "one_by_one",
    "quantize",
    "quantize_layers",
    "rearranged",
    "save_for_backward",
    "to_rank",
    "use",
    "vocabulary_logits",
    "weighted_sum",
]
