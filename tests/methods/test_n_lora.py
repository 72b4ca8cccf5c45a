"""N-LoRA: the sparsity in values and gradients, and what it reduces to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import context_with, inputs_of, loss_of, method_with, random_trees, trees, wide
from tiny import CONFIG, batch_of, random_examples

from moecl_jax.methods.n_lora import NLora, size_of_products
from moecl_jax.methods.o_lora import OLora


def test_size_of_products_by_hand():
    # (1, -2)^T (3, 0, 1) has the entries 3, 0, 1, -6, 0, -2; the second layer's product is -4.
    expert = {
        "up_proj": {
            "a": jnp.array([[[1.0], [-2.0]], [[2.0], [0.0]]]),
            "b": jnp.array([[[3.0, 0.0, 1.0]], [[-2.0, 0.0, 0.0]]]),
        }
    }
    penalty = method_with(NLora, weight=0.5).penalty(trees({"expert": expert}), inputs_of())
    assert float(penalty.term) == 0.5 * (12.0 + 4.0)
    assert float(penalty.metrics["size_of_update"]) == 16.0
    assert penalty.reported is None  # the term itself


def test_size_of_products_and_its_gradient_of_all_modules_and_layers():
    expert = random_trees(context_with(method_with(NLora))).shared["expert"]
    value, gradients = jax.jit(jax.value_and_grad(size_of_products))(expert)
    expected = 0.0
    for name, factors in wide(expert).items():
        products = np.einsum("lir,lro->lio", factors["a"], factors["b"])
        expected += np.abs(products).sum()
        slope = np.sign(products)
        of_a = np.einsum("lio,lro->lir", slope, factors["b"])
        of_b = np.einsum("lir,lio->lro", factors["a"], slope)
        np.testing.assert_allclose(gradients[name]["a"], of_a, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradients[name]["b"], of_b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_no_more_than_one_layer_s_product_is_there_at_a_time():
    expert = random_trees(context_with(method_with(NLora))).shared["expert"]
    program = str(jax.make_jaxpr(jax.grad(size_of_products))(expert))
    one = f"f32[{CONFIG.width},{CONFIG.ffn_width}]"
    assert one in program
    assert f"f32[{CONFIG.layers},{CONFIG.width},{CONFIG.ffn_width}]" not in program


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_with_weight_0_it_is_o_lora_with_weight_0(weight):
    ours, theirs = (
        context_with(method_with(NLora, weight=weight)),
        context_with(method_with(OLora, weight=0.0)),
    )
    parameters = random_trees(ours)
    batch = batch_of(random_examples([3, 9, 1, 6]), "lm", training=True)
    active = parameters.replace(memory={})
    found = [
        jax.value_and_grad(loss_of(context, parameters, batch), has_aux=True)(active)
        for context in (ours, theirs)
    ]
    ((total, metrics), slopes), ((plain, _), others) = found
    size = float(metrics["size_of_update"])
    assert size > 1.0
    assert float(total) == pytest.approx(float(plain) + weight * size, rel=1e-6)
    sizes = jax.grad(size_of_products)(parameters.shared["expert"])
    for mine, other, added in zip(
        *map(jax.tree.leaves, (slopes.shared["expert"], others.shared["expert"], sizes)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, other + weight * added, rtol=1e-4, atol=1e-5)
