"""Merged models: what transformers' torch model computes of them is what the run computes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_models import CASES, write_folder
from peft_adapters import random_adapter
from test_export_methods import TASKS, logits, state_of, workdir_of
from test_peft_oracle import our_logits, torch_logits

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.interchange.merged import export_merged, merged
from moecl_jax.weights import gguf
from moecl_jax.weights.folder import write_folder as write_model_folder
from moecl_jax.weights.load import load_backbone
from moecl_jax.weights.packaged import packaged_file

TOLERANCE = 3e-5  # as for adapters in PEFT: logits reach 5


def read_torch(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("method", "expert"),
    [
        ("per_task", "two"),
        ("per_task", "five"),
        ("sequential_lora", None),
        ("joint", None),
        ("o_lora", None),
        ("slao", None),
        ("sequential_full", None),
    ],
)
def test_torch_computes_of_the_folder_what_the_run_computes(tmp_path, method, expert):
    import torch

    workdir, evaluator = workdir_of(tmp_path, method, lora__alpha=12.0)
    arguments = [f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--format=huggingface"]
    assert main(["export", *arguments, *([f"--expert={expert}"] if expert else [])]) == 0
    stream, task = state_of(workdir), expert or "five"
    parameters = evaluator.starting.task(stream, task, TASKS.index(task))
    ours = logits(evaluator, parameters, evaluator.context)[:, 0]
    ids = np.random.default_rng(0).integers(2, 60, (4, 9))
    with torch.no_grad():
        theirs = read_torch(tmp_path / "out")(torch.from_numpy(ids)).logits.numpy()[:, 4:8]
        base = read_torch(tmp_path / "model")(torch.from_numpy(ids)).logits.numpy()[:, 4:8]
    np.testing.assert_allclose(theirs, ours, atol=5e-6 * np.abs(ours).max(), rtol=0)
    assert np.abs(base - ours).max() > 0.1


@pytest.mark.oracle
@pytest.mark.parametrize(
    "case", ["Llama 3.1", "Llama 3.2, tied", "Mistral", "Qwen2", "Qwen3", "Gemma 3", "HunYuan"]
)
def test_a_merged_model_of_each_family(tmp_path, case):
    folder = write_folder(tmp_path / "model", CASES[case])
    backbone = load_backbone(folder)
    adapter = random_adapter(backbone.config)
    ours = our_logits(backbone, adapter)
    scale = adapter.lora_alpha / adapter.rank
    weights = merged(backbone.params, adapter.expert, scale)
    write_model_folder(tmp_path / "out", weights, str(folder), np.dtype(np.float32))
    theirs = torch_logits(read_torch(tmp_path / "out"))
    np.testing.assert_allclose(theirs, ours, atol=TOLERANCE, rtol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32" and len(config["architectures"]) == 1


def test_a_model_without_changes_is_the_model(tmp_path):
    """Also norms whose stored scale is another than the one that the decoder takes."""
    for number, case in enumerate(("Gemma 3", "Qwen2, tied, window from layer 1")):
        folder = write_folder(tmp_path / f"model{number}", CASES[case])
        backbone = load_backbone(folder)
        written = tmp_path / f"out{number}"
        write_model_folder(written, backbone.params, str(folder), np.dtype(np.float32))
        again = load_backbone(written)
        assert again.config == backbone.config
        jax.tree.map(np.testing.assert_array_equal, again.params, backbone.params)


def test_quantised_weights_are_written_as_the_numbers_that_they_stand_for(tmp_path):
    workdir, evaluator = workdir_of(tmp_path, "per_task", model__quantization="int8")
    export_merged(workdir, tmp_path / "out", expert="two")
    from moecl_jax.weights.load import load_model

    model = load_model(tmp_path / "out", dtype="float32")
    parameters = evaluator.starting.task(state_of(workdir), "two", 0)
    ours = logits(evaluator, parameters, evaluator.context)
    evaluator.model = model
    untrained = jax.tree.map(jnp.zeros_like, parameters)
    np.testing.assert_allclose(
        logits(evaluator, untrained, evaluator.context), ours, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("moe_cl", "its gate weighs the shared and the task's expert anew for each token"),
        ("mocl", "it weighs its experts anew for each text"),
        ("gain_lora", "its gates weigh its experts anew for each text"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(tmp_path, method, reason):
    workdir, _ = workdir_of(tmp_path, method, finished=1)
    with pytest.raises(UserError, match=f"cannot be merged or exported as one LoRA: {reason}"):
        export_merged(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    workdir, _ = workdir_of(tmp_path, "sequential_lora", finished=1)
    with pytest.raises(UserError, match="exists and is no empty folder"):
        export_merged(workdir, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.oracle
def test_a_model_of_a_gguf_file_becomes_a_folder_that_torch_reads(tmp_path):
    import torch

    backbone = load_backbone("smollm2-135m")
    files = write_model_folder(
        tmp_path / "out", backbone.params, "smollm2-135m", np.dtype(np.float32)
    )
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    family, raw = gguf.describe(packaged_file("smollm2-135m"))
    assert family.parse_config(raw, tmp_path) == backbone.config
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The capital of France is"
    ids = tokenizer(text)["input_ids"]
    assert backbone.tokenizer is not None and ids == backbone.tokenizer(text)["input_ids"]
    with torch.no_grad():
        theirs = read_torch(tmp_path / "out")(torch.tensor([ids])).logits[0, -1]
    assert tokenizer.decode([int(theirs.argmax())]) == " Paris"
