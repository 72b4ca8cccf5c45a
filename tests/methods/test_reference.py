"""Parity with the original PyTorch implementation (see oracles/make_reference_fixture.py)."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods import TaskParameters
from moecl_jax.methods.forward import StepContext, forward
from moecl_jax.methods.moe_cl import Adversarial, MoeCl
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.heads import class_logits
from moecl_jax.models.lora import FFN_TARGETS
from moecl_jax.models.model import Architecture
from moecl_jax.models.settings import Lora
from moecl_jax.training.steps import init_train_state, loss, make_optimizer, train_step

CONFIG = DecoderConfig(97, 32, 64, 3, 4, 2, 8, rope_theta=10000.0, norm_epsilon=1e-5)
METHOD = MoeCl(Lora(4, 8.0, 0.0, FFN_TARGETS), adversarial=Adversarial("original", 0.3))
CONTEXT = StepContext(Architecture(CONFIG, jnp.float32), METHOD, "classification")
OPTIMIZER = make_optimizer(weight_decay=0.01, clip_norm=0.0)
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
LAYER = "seq_module_.layer{}.wrapper_module_.mlp_."
SHARED, TASK, TASK_INDEX = 0, 2, 1


@pytest.fixture(scope="module")
def dump():
    return dict(np.load(Path(__file__).parents[1] / "fixtures" / "moe_cl_tiny.npz"))


def stack(dump, name):
    """Stacks a tensor over the layers, transposed to [in, out]."""
    return np.stack([dump[name.format(layer)].T for layer in range(CONFIG.layers)])


def frozen_from(dump):
    layer = "base.model.layers.{}."
    attention = {
        name: {"kernel": stack(dump, layer + f"self_attn.{name}.weight")}
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    feed_forward = {
        name: {"kernel": stack(dump, layer + f"mlp.{name}.weight")}
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    return {
        "embedder": {"embedding": dump["base.model.embed_tokens.weight"]},
        "layers": {
            "input_norm": {"scale": stack(dump, layer + "input_layernorm.weight")},
            "attention": attention,
            "post_attention_norm": {
                "scale": stack(dump, layer + "post_attention_layernorm.weight")
            },
            "feed_forward": feed_forward,
        },
        "final_norm": {"scale": dump["base.model.norm.weight"]},
        "lm_head": {"kernel": dump["base.lm_head.weight"].T},
    }


def active_from(dump, prefix):
    def expert(index):
        name = prefix + LAYER + "mlp_.{}_.loras_.expert{}.lora_{}_.weight"
        return {
            ours: {f: stack(dump, name.format("{}", theirs, index, f)) for f in "ab"}
            for theirs, ours in PROJECTIONS.items()
        }

    gate = stack(dump, prefix + LAYER + "moes_.gate_.weight").swapaxes(1, 2)
    phi = stack(dump, prefix + LAYER + "moes_.task_classifier_.weight").swapaxes(1, 2)
    head = dump[prefix + "seq_module_.output.wrapper_module_.layers_.amazon_score_.weight"].T
    shared = {"expert": expert(SHARED), "gate": gate, "discriminator": phi}
    return TaskParameters(shared, expert(TASK), head)


def batch_from(dump, packed):
    lengths = dump["mask"].sum(axis=1).astype(int)
    examples = [
        TokenizedExample(tokens[:length].astype(np.int32), int(label))
        for tokens, length, label in zip(dump["tokens"], lengths, dump["labels"][:, 0], strict=True)
    ]
    layout = BatchLayout(len(examples), packed, 32, 1, 1)
    return make_batch(examples, (), layout, task_index=TASK_INDEX, class_count=5, training=True)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_forward_matches_the_original(dump, packed):
    active, batch = active_from(dump, "adapter0."), batch_from(dump, packed)
    hidden, reports = forward(
        active, frozen_from(dump), batch, CONTEXT, seeds=jnp.zeros(3, jnp.uint32)
    )
    logits = class_logits(hidden, batch.last_token, active.head, batch.class_count)
    np.testing.assert_allclose(logits, dump["out.pooled_logits"], atol=1e-5, rtol=0)
    discriminator = active.shared["discriminator"]
    seen = jnp.einsum("lbd,ltd->lbt", reports["shared_pooled"], discriminator)
    probabilities = jax.nn.softmax(seen, axis=-1)
    np.testing.assert_allclose(probabilities, dump["out.disc_probs"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_every_gradient_matches_the_original(dump, packed):
    state = init_train_state(METHOD, OPTIMIZER, active_from(dump, "adapter0."), jax.random.key(0))
    batch, frozen = batch_from(dump, packed), frozen_from(dump)
    gradients, _ = jax.grad(loss, has_aux=True)(state.active, state, frozen, batch, CONTEXT)
    expected = active_from(dump, "grad.")
    chex.assert_trees_all_equal_structs(gradients, expected)

    def relative(ours, theirs):
        return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))

    differences = jax.tree.map(relative, gradients, expected)
    for path, difference in jax.tree.leaves_with_path(differences):
        assert difference < 1e-5, (jax.tree_util.keystr(path), difference)


def test_three_training_steps_match_the_original(dump):
    state = init_train_state(METHOD, OPTIMIZER, active_from(dump, "adapter0."), jax.random.key(0))
    batch, frozen = batch_from(dump, packed=False), frozen_from(dump)
    step = jax.jit(functools.partial(train_step, context=CONTEXT, optimizer=OPTIMIZER))
    trajectory = []
    for _ in range(3):
        state, metrics = step(state, frozen, batch, 2e-4)
        trajectory.append([metrics["loss_instruction"], metrics["loss_adversarial"]])
    np.testing.assert_allclose(trajectory, dump["traj"], atol=1e-5, rtol=0)
    chex.assert_trees_all_close(state.active, active_from(dump, "adapter3."), atol=1e-6, rtol=0)
