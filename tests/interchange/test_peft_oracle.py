"""Adapters in PEFT itself, on transformers' torch model, give the logits that they give here."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from decoders import logits_of
from family_models import CASES, write_folder
from peft_adapters import BLOG, random_adapter
from streams import restored, tiny_config

from moecl_jax.cli import main as cli
from moecl_jax.interchange.peft import read_adapter, write_adapter
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.lora import ATTENTION_TARGETS, FFN_TARGETS, TARGETS
from moecl_jax.models.model import Architecture
from moecl_jax.models.settings import Lora
from moecl_jax.weights.load import load_backbone

pytestmark = [
    pytest.mark.oracle,
    # peft calls what transformers has renamed
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 11)).astype(np.int32)
TOLERANCE = 2e-5  # logits reach 5, and 20 after training; the largest difference seen is 7.3e-6
on_targets = pytest.mark.parametrize(
    "targets",
    [FFN_TARGETS, ATTENTION_TARGETS, TARGETS, ("q_proj", "v_proj")],
    ids=["ffn", "attention", "both", "blog recipe"],
)


@pytest.fixture(scope="module", params=["Llama 2", "Llama 3.2, tied"])
def base(request, tmp_path_factory):
    """The folder of a tiny model; the model here; its logits in torch."""
    folder = write_folder(tmp_path_factory.mktemp("base") / "model", CASES[request.param])
    return folder, load_backbone(folder), torch_logits(read_torch(folder))


def read_torch(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def torch_logits(model):
    """Logits `[2, 11, 61]` at all positions of `TOKENS`."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()


def our_logits(backbone, adapter):
    """The same of the base with an adapter in it."""
    lora = Lora(adapter.rank, adapter.lora_alpha, adapter.dropout, tuple(adapter.expert))
    context = StepContext(Architecture(backbone.config), SequentialLora(lora), "lm")
    return context_logits(context, backbone.params, adapter.expert)


def context_logits(context, params, expert):
    """The same of a sequential LoRA."""
    positions = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.int32), TOKENS.shape)
    hidden, _ = context.decoder(training=False).apply(
        {"params": params},
        TOKENS,
        positions,
        np.ones_like(TOKENS),
        np.zeros_like(TOKENS),
        jnp.ones((1, TOKENS.size)),
        context.method.adapter(TaskParameters({"expert": expert}, {}, {})),
        None,
    )
    hidden = hidden.reshape(*TOKENS.shape, -1)
    return np.asarray(logits_of(context.architecture.sizes, params, hidden))


def assert_equal_logits(ours, theirs, plain):
    difference, effect = np.abs(ours - theirs).max(), np.abs(theirs - plain).max()
    print(f"largest difference {difference:.1e}, effect of the adapter {effect:.1f}")
    assert difference < TOLERANCE
    assert effect > 0.1


@on_targets
def test_an_exported_adapter_gives_the_same_logits_in_peft(base, tmp_path, targets):
    from peft import PeftModel

    folder, backbone, plain = base
    adapter = random_adapter(backbone.config, targets, base=str(folder), rank=8, lora_alpha=32.0)
    write_adapter(adapter, tmp_path / "adapter")
    model = PeftModel.from_pretrained(read_torch(folder), tmp_path / "adapter").eval()
    assert_equal_logits(our_logits(backbone, adapter), torch_logits(model), plain)
    merged = model.merge_and_unload()
    assert_equal_logits(our_logits(backbone, adapter), torch_logits(merged), plain)


@pytest.mark.parametrize("family", CASES)
def test_an_exported_adapter_on_all_projections_of_each_family(tmp_path, family):
    from peft import PeftModel

    folder = write_folder(tmp_path / "base", CASES[family])
    backbone = load_backbone(folder)
    adapter = random_adapter(backbone.config, base=str(folder))
    write_adapter(adapter, tmp_path / "adapter")
    plain = torch_logits(read_torch(folder))
    model = PeftModel.from_pretrained(read_torch(folder), tmp_path / "adapter").eval()
    assert_equal_logits(our_logits(backbone, adapter), torch_logits(model), plain)


@on_targets
def test_an_adapter_of_peft_gives_the_same_logits_here_and_comes_back_unchanged(
    base, tmp_path, targets
):
    from peft import LoraConfig

    folder, backbone, plain = base
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=list(targets),
    )
    theirs = save_random(read_torch(folder), config, tmp_path / "theirs")
    adapter = read_adapter(tmp_path / "theirs", backbone.config, str(folder))
    assert_equal_logits(our_logits(backbone, adapter), theirs, plain)

    write_adapter(adapter, tmp_path / "ours")
    first, second = (
        safetensors.numpy.load_file(tmp_path / side / "adapter_model.safetensors")
        for side in ("theirs", "ours")
    )
    assert set(first) == set(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    before, after = (
        json.loads((tmp_path / side / "adapter_config.json").read_text())
        for side in ("theirs", "ours")
    )
    assert set(before["target_modules"]) == set(after["target_modules"])
    for content in (before, after):
        del content["target_modules"]
    assert before | after == before
    read_again = LoraConfig.from_pretrained(tmp_path / "ours")
    assert read_again.target_modules == config.target_modules


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q_proj|up_proj)"])
def test_a_rank_stabilised_lora_and_other_ways_to_name_targets(base, tmp_path, targets):
    from peft import LoraConfig

    folder, backbone, plain = base
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=3, target_modules=targets, use_rslora=True
    )
    theirs = save_random(read_torch(folder), config, tmp_path)
    adapter = read_adapter(tmp_path, backbone.config, str(folder))
    assert list(adapter.expert) == [t for t in TARGETS if targets == "all-linear" or t in targets]
    assert_equal_logits(our_logits(backbone, adapter), theirs, plain)
    scaled = dataclasses.replace(adapter, lora_alpha=3.0)
    assert np.abs(our_logits(backbone, scaled) - theirs).max() > 0.1


def test_what_was_trained_by_the_blog_s_recipe_gives_the_same_logits_in_peft(tmp_path):
    from peft import PeftModel

    config = tiny_config(tmp_path, tasks=("two",), epochs=1, method="sequential_lora")
    (tmp_path / "tiny.json").write_text(config.to_json())
    run, output = tmp_path / "run", tmp_path / "adapter"
    assert cli.main(["train", f"--config={tmp_path / 'tiny.json'}", f"--workdir={run}", *BLOG]) == 0
    assert cli.main(["export", f"--workdir={run}", "--format=peft", f"--output={output}"]) == 0

    evaluator, stream, _ = restored(run)
    ours = context_logits(evaluator.context, evaluator.model.params, stream.shared["expert"])
    base = read_torch(tmp_path / "model")
    plain = torch_logits(base)
    theirs = torch_logits(PeftModel.from_pretrained(base, output).eval())
    assert_equal_logits(ours, theirs, plain)


def save_random(model, config, folder):
    """Saves an adapter of PEFT whose B is not zero, and returns its logits."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(model, config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return torch_logits(model)
