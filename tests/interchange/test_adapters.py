"""PEFT adapters to and from workdirs: the trained expert, further training, and refusals."""

import json
import logging

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from peft_adapters import BLOG, random_adapter
from streams import assert_bit_equal, restored, tiny_config, tiny_settings

from moecl_jax.cli import main as cli
from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import (
    PeftAdapter,
    convert_peft,
    export_peft,
    read_adapter,
    write_adapter,
)
from moecl_jax.runs.workdir import load_settings, save_settings
from moecl_jax.training.trainer import train
from moecl_jax.weights.load import load_backbone
from moecl_jax.weights.safetensors_file import write_safetensors


@pytest.fixture(scope="module", params=["sequential_lora", "moe_cl"])
def blog_run(request, tmp_path_factory):
    """A stream of two tasks trained by the blog's recipe through the command line; its method."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(folder, tasks=("two", "five"), epochs=1)
    (folder / "tiny.json").write_text(config.to_json())
    argv = ["train", f"--config={folder / 'tiny.json'}", f"--workdir={folder / 'run'}"]
    assert cli.main([*argv, f"--config.method={request.param}", *BLOG]) == 0
    return folder, request.param


def stream_of(workdir):
    _, stream, _ = restored(workdir)
    return stream


def exported(workdir, output, expert=None):
    argv = ["export", f"--workdir={workdir}", "--format=peft", f"--output={output}"]
    assert cli.main([*argv, *([f"--expert={expert}"] if expert else [])]) == 0
    config = load_backbone(load_settings(workdir).model.path).config
    return read_adapter(output, config, "the base")


def test_the_blog_s_recipe_is_trained_and_exported(blog_run, tmp_path, capsys):
    folder, method = blog_run
    stream = stream_of(folder / "run")
    if method == "sequential_lora":
        adapters = {None: stream.shared["expert"]}
    else:
        adapters = {"shared": stream.shared["expert"]}
        adapters |= {task: done.expert["task"] for task, done in stream.finished.items()}
        assert list(adapters) == ["shared", "two", "five"]
    for name, expert in adapters.items():
        adapter = exported(folder / "run", tmp_path / str(name), name)
        assert adapter.base == str(folder / "model")
        assert (adapter.rank, adapter.lora_alpha, adapter.dropout) == (8, 32.0, 0.05)
        assert set(adapter.expert) == {"q_proj", "v_proj"}
        assert_bit_equal(adapter.expert, jax.tree.map(np.asarray, dict(expert)))
        assert all(np.any(factors["b"]) for factors in adapter.expert.values())
        note = capsys.readouterr().err
        assert (f"note: the expert '{name}' alone is not the model" in note) == (name is not None)


def test_a_mixture_is_not_exported_as_one_lora(blog_run, tmp_path):
    folder, method = blog_run
    if method == "sequential_lora":
        message = "--expert=shared: .* was trained with sequential_lora, which has one expert"
        with pytest.raises(UserError, match=message):
            export_peft(folder / "run", tmp_path / "out", expert="shared")
        return
    with pytest.raises(UserError) as caught:
        export_peft(folder / "run", tmp_path / "out")
    assert "cannot be merged or exported as one LoRA: its gate weighs" in str(caught.value)
    assert "by --expert, one of shared, two, five; alone it is not" in str(caught.value)
    with pytest.raises(UserError, match="--expert=six is not one of shared, two, five"):
        export_peft(folder / "run", tmp_path / "out", expert="six")
    assert not (tmp_path / "out").exists()


def test_a_workdir_without_a_finished_task_has_nothing_to_export(tmp_path):
    (tmp_path / "run").mkdir()
    save_settings(tiny_settings(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="holds no finished task yet; train it"):
        export_peft(tmp_path / "run", tmp_path / "out")


def test_classification_heads_are_left_out_and_that_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "moecl_jax")
    changes = {"method": "sequential_lora", "head": "classification", "tasks": ("two",)}
    train(tiny_settings(tmp_path, epochs=1, **changes), tmp_path / "run")
    export_peft(tmp_path / "run", tmp_path / "out")
    assert "note: the classification heads are left out" in caplog.text
    names = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * 3  # layers, factors, projections
    assert all("lora_" in name for name in names)


@pytest.fixture
def imported(tmp_path):
    """A workdir made of a random adapter, with the settings of the tiny tasks beside it."""
    settings = tiny_settings(tmp_path)
    base = tmp_path / "model"
    adapter = random_adapter(load_backbone(base).config, ("up_proj", "q_proj"), base=str(base))
    write_adapter(adapter, tmp_path / "adapter")
    argv = ["convert", "peft", f"--base={base}", f"--adapter={tmp_path / 'adapter'}"]
    assert cli.main([*argv, f"--workdir={tmp_path / 'run'}", "--task=chat"]) == 0
    return tmp_path, adapter, settings


def test_an_imported_adapter_is_a_finished_task_and_comes_back_unchanged(imported):
    folder, adapter, _ = imported
    settings = load_settings(folder / "run")
    assert (settings.method, settings.head, settings.tasks) == ("sequential_lora", "lm", ("chat",))
    assert settings.model.dtype == "float32"  # as the base is stored
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.dropout) == (4, 16.0, 0.05)
    stream = stream_of(folder / "run")
    assert list(stream.finished) == ["chat"]
    assert_bit_equal(jax.tree.map(np.asarray, stream.shared["expert"]), adapter.expert)
    export_peft(folder / "run", folder / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "again" / name).read_bytes() == (folder / "adapter" / name).read_bytes()


def test_dtype_and_length_are_those_of_the_base(imported):
    folder, _, _ = imported
    base = folder / "model"
    tensors = safetensors.numpy.load_file(base / "model.safetensors")
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    write_safetensors(base / "model.safetensors", narrow)
    content = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 48}
    (base / "config.json").write_text(json.dumps(content))
    convert_peft(base, folder / "adapter", folder / "other")
    settings = load_settings(folder / "other")
    assert settings.model.dtype == "bfloat16"
    assert (settings.data.max_length, settings.data.max_response) == (48, 24)


@pytest.mark.slow
def test_training_goes_on_from_an_imported_adapter(imported):
    folder, adapter, tiny = imported
    settings = load_settings(folder / "run")
    changes = {
        "definitions": {**settings.definitions, "two": tiny.definitions["two"]},
        "tasks": ("chat", "two"),
        "batch": {"row_length": 64},
        "epochs": 1,
        "optimizer": {"learning_rate": 1e-2},
    }
    results = train(settings.changed(changes), folder / "run")
    assert results["tasks"] == ["chat", "two"]
    assert [row[0] for row in results["accuracy_matrix"]] == [None, None]
    assert None not in [row[1] for row in results["accuracy_matrix"]]
    after = stream_of(folder / "run").shared["expert"]
    assert set(after) == {"up_proj", "q_proj"}
    # One epoch at 1e-2 moves no number far: training began at the adapter, not anew.
    moved = np.abs(np.asarray(after["q_proj"]["a"]) - adapter.expert["q_proj"]["a"])
    assert 0 < moved.max() < 0.1


def test_what_the_adapter_fixes_cannot_be_overridden(imported):
    folder, _, _ = imported
    settings = load_settings(folder / "run").changed({"lora": {"rank": 8}})
    with pytest.raises(UserError, match=r"lora.rank = 4, and now it is 8"):
        train(settings, folder / "run")


def test_a_workdir_in_use_is_not_overwritten(imported):
    folder, _, _ = imported
    before = json.loads((folder / "run" / "config.json").read_text())
    with pytest.raises(UserError, match="exists already and is not empty; name another --workdir"):
        convert_peft(folder / "model", folder / "adapter", folder / "run")
    assert json.loads((folder / "run" / "config.json").read_text()) == before


def test_a_failed_conversion_leaves_nothing_behind(imported):
    folder, _, _ = imported
    with pytest.raises(UserError, match="a task is named 'a/b'"):
        convert_peft(folder / "model", folder / "adapter", folder / "other", task="a/b")
    assert not [path for path in folder.iterdir() if "other" in path.name]


def test_an_adapter_of_a_base_with_another_name_is_told(imported, caplog):
    caplog.set_level(logging.INFO, "moecl_jax")
    folder, adapter, _ = imported
    convert_peft(folder / "model", folder / "adapter", folder / "same")
    assert "note:" not in caplog.text
    renamed = PeftAdapter("some/other-model", *list(vars(adapter).values())[1:])
    write_adapter(renamed, folder / "adapter")
    convert_peft(folder / "model", folder / "adapter", folder / "other")
    assert "note: the adapter was trained in 'some/other-model'" in caplog.text
    assert load_settings(folder / "other").tasks == ("adapter",)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["convert", "peft", "--tasks=a"],
            "--tasks and --continue are of 'moecl convert official'",
        ),
        (["convert", "peft", "--continue=a"], "--tasks and --continue are of 'moecl convert"),
        (["convert", "official", "--task=a"], "--task is of 'moecl convert peft'; official"),
        (
            ["export", "--format=official", "--expert=a"],
            "--expert is of --format=peft and huggingface; official",
        ),
    ],
)
def test_options_of_another_format_are_named(argv, message, capsys):
    files = ["--output=o"] if argv[0] == "export" else ["--base=b", "--adapter=a"]
    assert cli.main([*argv, *files, "--workdir=w"]) == 1
    assert message in capsys.readouterr().err
