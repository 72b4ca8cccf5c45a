"""Live comparisons with torch, which the shipped fixtures are made by."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SMOLLM2, logits_of, run
from streams import ROOT
from tiny import CONFIG, LORA, generator_of, randomised

from moecl_jax.methods import TaskParameters
from moecl_jax.methods.adversarial import adversarial_losses
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.experts import FrozenFfn, moe_layer
from moecl_jax.models.lora import LayerContext, init_expert
from moecl_jax.models.model import Architecture
from moecl_jax.weights.load import load_backbone
from moecl_jax.weights.packaged import packaged_file

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def oracle():
    """The script that makes the fixtures, as a module."""
    path = ROOT / "tests" / "oracles" / "make_backbone_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_backbone_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(oracle):
    """SmolLM2 in transformers, and here, both in float32."""
    return oracle.load_gguf(packaged_file("smollm2-135m")), load_backbone("smollm2-135m")


@pytest.mark.parametrize(
    "text",
    [
        "Spam calls cost me 2,450 dollars in 2019; never again!",
        "def area(r):\n    return 3.14159 * r ** 2\n",
        "Der Zug fährt um 7:45 Uhr nach Köln.",
    ],
)
def test_smollm2_logits_of_every_token_and_position(oracle, both, text):
    model, backbone = both
    ids = np.array([backbone.tokenizer(text)["input_ids"]], np.int32)
    where = np.arange(ids.size, dtype=np.int32)[None]
    hidden = run(
        SMOLLM2, backbone.params, ids, where, np.ones_like(ids), np.zeros_like(ids), jnp.float32
    )
    ours = np.asarray(logits_of(SMOLLM2, backbone.params, hidden))[0]
    difference = np.abs(ours - oracle.text_logits(model, ids[0])).max()
    assert difference < 1e-3, difference


def test_the_shipped_tiny_llamas_are_what_torch_gives_now(oracle):
    shipped = np.load(ROOT / "tests" / "fixtures" / "tiny_llamas.npz")
    made = oracle.tiny_llamas()
    assert set(shipped.files) == set(made)
    for name, values in made.items():
        np.testing.assert_allclose(shipped[name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("stops", [False, True])
def test_generated_tokens_are_those_of_transformers(oracle, tmp_path, stops):
    import torch

    model = oracle.tiny_llama(tied=False)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), np.dtype(np.float32))
    method = SequentialLora(dataclasses.replace(LORA, targets=()))
    plain = StepContext(Architecture(backbone.config, jnp.float32), method, "lm")
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 61, length).astype(np.int32) for length in (3, 11, 7)]

    def by_transformers(prompt, end):
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].numpy()

    expected = [by_transformers(prompt, None) for prompt in prompts]
    end = -1
    if stops:
        end = int(expected[1][6])
        rows = [by_transformers(prompt, end) for prompt in prompts]
        expected = [row[:-1] if row[-1] == end else row for row in rows]
        assert len(expected[1]) <= 6
    active = TaskParameters({"expert": {}}, {}, {})
    written = generator_of(plain, backbone.params, end).write(active, prompts, max_tokens=20)
    for got, wanted in zip(written, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("objective", ["paper", "original", "confusion"])
def test_a_layer_and_its_adversarial_gradients_against_torch_autograd(objective):
    """The equations as written, without the two identities, differentiated by torch."""
    import torch

    rng = np.random.default_rng(0)
    tokens, width, ffn, tasks, task = 7, CONFIG.width, CONFIG.ffn_width, 3, 1
    scale = LORA.scale
    expert = {
        name: {factor: array[0] for factor, array in factors.items()}
        for name, factors in init_expert(
            jax.random.key(0), dataclasses.replace(CONFIG, layers=1), 2, LORA.targets
        ).items()
    }
    adapter = {
        "shared": randomised(expert, 0.5),
        "task": jax.tree.map(lambda leaf: leaf[::-1], randomised(expert, 0.5)),
        "gate": rng.normal(size=(2, width)).astype(np.float32),
    }
    phi = 0.05 * rng.normal(size=(1, tasks, width)).astype(np.float32)  # no softmax saturates
    x = rng.normal(size=(tokens, width)).astype(np.float32)
    kernels = [rng.normal(size=s).astype(np.float32) * 0.3 for s in [(width, ffn)] * 2]
    kernels.append(rng.normal(size=(ffn, width)).astype(np.float32) * 0.3)
    cotangent = rng.normal(size=(tokens, width)).astype(np.float32)
    membership = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]], np.float32)

    def ours(adapter, phi):
        frozen = FrozenFfn(*(lambda v, _, kernel=kernel: v @ kernel for kernel in kernels))
        context = LayerContext(jnp.asarray(membership), jnp.zeros((), jnp.uint32))
        out, report = moe_layer(
            frozen, x, adapter, context, scale=scale, dropout_rate=0.0, adversarial=True
        )
        loss, expert_loss, _ = adversarial_losses(
            report["shared_pooled"][None], phi, jnp.int32(task), jnp.ones(2), objective
        )
        return jnp.sum(out * cotangent) + loss + expert_loss

    gradients = jax.grad(ours, argnums=(0, 1))(adapter, phi)

    def leaf(array):
        return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)

    theirs, their_phi = jax.tree.map(leaf, adapter), leaf(phi)
    gate_kernel, up_kernel, down_kernel = (torch.tensor(k, dtype=torch.float64) for k in kernels)
    states = torch.tensor(x, dtype=torch.float64)

    def lora(v, factors):
        return scale * v @ factors["a"] @ factors["b"]

    def output(e):
        gate = states @ gate_kernel + lora(states, e["gate_proj"])
        activation = torch.nn.functional.silu(gate)
        activation = activation * (states @ up_kernel + lora(states, e["up_proj"]))
        return activation @ down_kernel + lora(activation, e["down_proj"])

    beta = torch.softmax(states @ theirs["gate"].T, dim=-1)
    shared_out = output(theirs["shared"])
    mixed = beta[:, :1] * shared_out + beta[:, 1:] * output(theirs["task"])
    members = torch.tensor(membership, dtype=torch.float64)
    pooled = members @ shared_out / members.sum(dim=1, keepdim=True)
    labels = torch.full((2,), task)

    def seen(features, discriminator):
        logits = features @ discriminator[0].T
        return torch.softmax(logits, dim=-1) if objective == "original" else logits

    loss = torch.nn.functional.cross_entropy(seen(pooled.detach(), their_phi), labels)
    logits = seen(pooled, their_phi.detach())
    if objective == "confusion":
        expert_loss = -torch.log_softmax(logits, dim=-1).mean()
    else:
        expert_loss = -torch.nn.functional.cross_entropy(logits, labels)
    projected = (mixed * torch.tensor(cotangent, dtype=torch.float64)).sum()
    (projected + loss + expert_loss).backward()

    expected = jax.tree.map(lambda t: t.grad.numpy(), (theirs, their_phi))
    for (path, got), wanted in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        relative = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert relative < 1e-5, (jax.tree_util.keystr(path), relative)
