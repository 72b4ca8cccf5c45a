"""The original's format: names, settings, and files that are refused."""

import json
import os
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from official_files import random_tensors, settings_of, write_adapter, write_base

from moecl_jax.errors import UserError
from moecl_jax.interchange import official_format, torch_file
from moecl_jax.interchange.official import convert_official
from moecl_jax.weights.safetensors_file import open_safetensors, write_safetensors

LAYER = "seq_module_.layer{layer}.wrapper_module_."


def test_names_of_a_task_with_one_adapted_projection():
    expert = LAYER + "mlp_.mlp_.w2_.loras_.expert"
    assert official_format.tensor_names(["down_proj"], ["news"], shared_head=False) == {
        ("shared", "expert", "down_proj", "a"): expert + "0.lora_a_.weight",
        ("shared", "expert", "down_proj", "b"): expert + "0.lora_b_.weight",
        ("experts", "news", "down_proj", "a"): expert + "1.lora_a_.weight",
        ("experts", "news", "down_proj", "b"): expert + "1.lora_b_.weight",
        ("shared", "discriminator"): LAYER + "mlp_.moes_.task_classifier_.weight",
        ("shared", "gate"): LAYER + "mlp_.moes_.gate_.weight",
        ("heads", "news"): "seq_module_.output.wrapper_module_.layers_.news_score_.weight",
    }


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("gate_proj", "mlp_.mlp_.w1_"),
        ("up_proj", "mlp_.mlp_.w3_"),
        ("q_proj", "self_attn_.wq_"),
        ("o_proj", "self_attn_.wo_"),
    ],
)
def test_each_projection_s_name_and_who_has_it(target, name):
    names = official_format.tensor_names([target], ["x", "y"], shared_head=True)
    assert (
        names[("shared", "expert", target, "b")] == LAYER + name + ".loras_.expert0.lora_b_.weight"
    )
    own = ("experts", "y", target, "a")
    if name.startswith("self_attn_"):
        assert own not in names
    else:
        assert names[own] == LAYER + name + ".loras_.expert2.lora_a_.weight"
    assert names[("head",)] == "seq_module_.output.wrapper_module_.layers_.score_.weight"


def test_trees_are_stacked_and_transposed_and_back(tmp_path):
    tensors = random_tensors({"x": 2, "y": 5}, attention="qv")
    targets = ("gate_proj", "up_proj", "down_proj", "q_proj", "v_proj")
    names = official_format.tensor_names(targets, ["x", "y"], shared_head=False)
    trees = official_format.to_trees(tensors, names, 2, tmp_path / "a.bin")
    a = tensors["seq_module_.layer1.wrapper_module_.mlp_.mlp_.w1_.loras_.expert2.lora_a_.weight"]
    np.testing.assert_array_equal(trees["experts"]["y"]["gate_proj"]["a"][1], a.T)
    gate = tensors["seq_module_.layer0.wrapper_module_.mlp_.moes_.gate_.weight"]
    np.testing.assert_array_equal(trees["shared"]["gate"][0], gate)
    assert trees["heads"]["y"].shape == (24, 5)
    back = official_format.to_tensors(trees, names, 2)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_a_number_that_is_not_finite_is_named(tmp_path):
    tensors = random_tensors({"": 2}, tasks=1)
    name = "seq_module_.layer1.wrapper_module_.mlp_.moes_.gate_.weight"
    tensors[name][0, 0] = np.nan
    names = official_format.tensor_names(["gate_proj"], ["t"], shared_head=True)
    with pytest.raises(UserError, match=f"a.bin: tensor '{name}' holds numbers that are not"):
        official_format.to_trees(tensors, names, 2, tmp_path / "a.bin")


def test_a_head_named_too_long_for_a_folder_is_no_head(tmp_path):
    tensors = random_tensors({"x" * 100: 2, "y" * 101: 3})
    assert official_format.head_classes(tensors, tmp_path / "a.bin") == {"x" * 100: 2}


def test_more_experts_than_tensors_are_named(tmp_path):
    write_base(tmp_path / "base")
    tensors = random_tensors({"": 2}, tasks=2)
    prefix = write_adapter(tmp_path / "a", tensors, num_experts=10**12)
    message = (
        f"a.json: num_experts is 1000000000000, and a.safetensors holds {len(tensors)} tensors"
    )
    with pytest.raises(UserError, match=message):
        convert_official(tmp_path / "base", prefix, tmp_path / "run")


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_what_stands_for_a_file_is_named(tmp_path, name):
    write_base(tmp_path / "base")
    prefix = write_adapter(tmp_path / "a", random_tensors({"x": 2}))
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=f"{name}: holds a Git LFS pointer"):
        convert_official(tmp_path / "base", prefix, tmp_path / "run")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(Too many levels of symbolic"):
        convert_official(tmp_path / "base", prefix, tmp_path / "run")


@pytest.mark.parametrize(
    ("tasks", "order"),
    [
        (["yahoo", "agnews", "dbpedia", "amazon"], ["agnews", "amazon", "dbpedia", "yahoo"]),
        (["yahoo", "amazon"], ["amazon", "yahoo"]),
        (["yahoo", "spam"], ["yahoo", "spam"]),
    ],
)
def test_order_of_the_experts(tasks, order):
    assert official_format.expert_order(tasks) == order


def test_target_modules_are_a_list_or_truth_values(tmp_path):
    settings = settings_of(random_tensors({"x": 2}))
    chosen = {"q_proj": False, "w3_proj": True, "v_proj": True, "w1_proj": False}
    for modules in (["v_proj", "w3_proj"], chosen):
        (tmp_path / "a.json").write_text(json.dumps({**settings, "target_modules": modules}))
        read = official_format.read_settings(tmp_path / "a.json")
        assert read.targets == ("up_proj", "v_proj")
        assert (read.rank, read.lora_alpha, read.dropout, read.task_count) == (3, 6.0, 0.05, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": None}, "r is None; expected an integer of at least 1"),
        ({"r": 0}, "r is 0; expected an integer of at least 1"),
        ({"r": True}, "r is True"),
        ({"num_experts": 1}, "num_experts is 1; expected an integer of at least 2"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number of at least 0"),
        ({"lora_alpha": float("inf")}, "lora_alpha is None; expected a number of at least 0"),
        ({"lora_alpha": 10**90}, "lora_alpha is 1000+[.]*; expected a number of at least 0"),
        ({"lora_alpha": 10**400}, r"not valid JSON \(a number has 401 digits"),
        (
            {"r": 10**9, "target_modules": ["w" * 10**6]},
            "target_modules names 'www+'[.]*; expected",
        ),
        (
            {"target_modules": [["w1_proj"]]},
            r"target_modules is \[\['w1_proj'\]\]; expected a list",
        ),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; expected at least 0 and below 1"),
        ({"target_modules": []}, r"target_modules is \[\]; expected a list of projections"),
        ({"target_modules": {"w1_proj": 1}}, "target_modules is {'w1_proj': 1}; expected a list"),
        ({"target_modules": ["lm_head"]}, "target_modules names 'lm_head'; expected w1_proj"),
        ({"use_dora": True}, "use_dora is True, which is not supported; expected False"),
        ({"bias": "all"}, "bias is 'all', which is not supported; expected 'none'"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, change, message):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(settings_of(random_tensors({"x": 2}), **change)))
    with pytest.raises(UserError, match=f"{file}: {message}"):
        official_format.read_settings(file)


def test_a_setting_that_is_no_json_and_means_nothing_here_becomes_null(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(settings_of(random_tensors({"x": 2}), best_acc=float("nan"))))
    assert official_format.read_settings(file).content["best_acc"] is None


@pytest.mark.parametrize("key", ["r", "lora_alpha", "lora_dropout", "num_experts"])
def test_a_missing_setting_is_named(tmp_path, key):
    settings = settings_of(random_tensors({"x": 2}))
    del settings[key]
    (tmp_path / "a.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"a.json: {key} is missing; expected"):
        official_format.read_settings(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file. A checkpoint"), ("{", "not valid JSON"), ("[]", "expected a JSON obj")],
)
def test_broken_settings_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=f"a.json: {message}"):
        official_format.read_settings(tmp_path / "a.json")


def test_safetensors_keep_order_and_dtypes(tmp_path):
    tensors = {
        "b": np.arange(3, dtype=np.float16),
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "c": np.arange(2).astype(ml_dtypes.bfloat16),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    ours = open_safetensors(tmp_path / "x.safetensors")
    assert list(ours) == ["b", "a", "c"]
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(ours[name].decode(), tensor)
        np.testing.assert_array_equal(theirs[name], tensor)
        assert theirs[name].dtype == ours[name].decode().dtype == tensor.dtype


@pytest.mark.oracle
class TestTorchFiles:
    """Reading and writing PREFIX.bin."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.mark.parametrize("form", ["torch", "torch legacy", "protocol 2", "protocol 4"])
    def test_code_is_refused_and_not_executed(self, tmp_path, torch, form):
        trace = tmp_path / "executed"

        class Code:
            def __reduce__(self):
                return os.system, (f"touch {trace}",)

        state, file = {"weight": torch.ones(2), "code": Code()}, tmp_path / "a.bin"
        if form.startswith("torch"):
            torch.save(state, file, _use_new_zipfile_serialization=form == "torch")
        else:
            file.write_bytes(pickle.dumps({"code": Code()}, int(form[-1])))
        message = rf"{file}: refused, because it .*; nothing of it was executed"
        with pytest.raises(UserError, match=message):
            torch_file.read_state(file)
        assert not trace.exists()

    @pytest.mark.parametrize("keep", [0, 5, 300, -200, -1])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_truncated_file_is_named(self, tmp_path, torch, keep, zipped):
        file = tmp_path / "a.bin"
        state = {"weight": torch.arange(100.0)}
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(UserError, match=f"{file}: (truncated, damaged|refused)"):
            torch_file.read_state(file)

    @pytest.mark.parametrize(
        ("place", "damage"),
        [(6, b"\xff\xff"), (46, b"\xff\xff")],
        ids=["a later version", "a name that is not UTF-8"],
    )
    def test_an_archive_that_cannot_be_listed_is_not_given_to_torch(
        self, tmp_path, torch, monkeypatch, place, damage
    ):
        file = tmp_path / "a.bin"
        torch.save({"weight": torch.ones(2)}, file)
        content = bytearray(file.read_bytes())
        entry = content.index(b"PK\x01\x02")
        content[entry + 9] |= 8  # names are UTF-8
        content[entry + place : entry + place + 2] = damage
        file.write_bytes(content)
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was read"))
        with pytest.raises(UserError, match=f"{file}: truncated, damaged or not in torch's"):
            torch_file.read_state(file)

    @pytest.mark.usefixtures("torch")
    def test_text_and_absence_are_named(self, tmp_path):
        (tmp_path / "a.bin").write_text("<!DOCTYPE html>")
        with pytest.raises(UserError, match=r"a.bin: (truncated, damaged or not|refused)"):
            torch_file.read_state(tmp_path / "a.bin")
        (tmp_path / "a.bin").write_text("version https://git-lfs.github.com/spec/v1")
        with pytest.raises(UserError, match=r"a.bin: holds a Git LFS pointer and not the file"):
            torch_file.read_state(tmp_path / "a.bin")
        with pytest.raises(UserError, match=r"b.bin: no such file"):
            torch_file.read_state(tmp_path / "b.bin")

    def test_what_is_no_dictionary_of_tensors_is_named(self, tmp_path, torch):
        cases = [
            ([torch.ones(1)], "holds a list; expected a dictionary of tensors"),
            ({"a": {"b": torch.ones(1)}}, "'a' is a dict; expected a dense tensor"),
            ({"a": torch.ones(1, dtype=torch.int64)}, "'a' is a torch.int64 tensor; expected"),
            ({"a": torch.eye(2).to_sparse()}, "'a' is a Tensor; expected a dense tensor"),
            ({3: torch.ones(1)}, "holds an entry named 3; expected names of tensors"),
        ]
        for content, message in cases:
            torch.save(content, tmp_path / "a.bin")
            with pytest.raises(UserError, match=message):
                torch_file.read_state(tmp_path / "a.bin")

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_shape_without_its_numbers_is_named(self, tmp_path, torch, dtype):
        """A view of one row as 10**12 of them, which would fill the memory when it is copied."""
        row = torch.ones(24, dtype=getattr(torch, dtype))
        torch.save({"head": row.expand(10**12, 24)}, tmp_path / "a.bin")
        message = r"a.bin: 'head' has the shape \[1000000000000, 24\], for which the file does not"
        with pytest.raises(UserError, match=message):
            torch_file.read_state(tmp_path / "a.bin")

    def test_views_of_numbers_that_are_there_are_read(self, tmp_path, torch):
        torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "a.bin")
        read = torch_file.read_state(tmp_path / "a.bin")["a"]
        np.testing.assert_array_equal(read, np.arange(6.0).reshape(2, 3).T)

    def test_a_compressed_file_is_refused_before_it_is_unpacked(self, tmp_path, torch):
        torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.bin")
        with (
            zipfile.ZipFile(tmp_path / "a.bin") as whole,
            zipfile.ZipFile(tmp_path / "b.bin", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in whole.namelist():
                packed.writestr(name, whole.read(name))
        with pytest.raises(UserError, match=r"b.bin: would unpack to 40\d+ bytes, and has \d+: it"):
            torch_file.read_state(tmp_path / "b.bin")

    def test_what_is_written_is_read_by_torch_and_by_us(self, tmp_path, torch):
        tensors = random_tensors({"x": 2}, narrow=True)
        torch_file.write_state(tmp_path / "a.bin", tensors)
        theirs = torch.load(tmp_path / "a.bin", weights_only=True)
        ours = torch_file.read_state(tmp_path / "a.bin")
        assert list(theirs) == list(ours) == list(tensors)
        for name, tensor in tensors.items():
            assert str(theirs[name].dtype) == f"torch.{tensor.dtype}"
            wide = theirs[name].to(torch.float32).numpy()
            np.testing.assert_array_equal(wide, tensor.astype(np.float32))
            assert ours[name].dtype == tensor.dtype
            np.testing.assert_array_equal(ours[name], tensor)

    def test_parameters_are_read_as_tensors(self, tmp_path, torch):
        torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.bin")
        np.testing.assert_array_equal(torch_file.read_state(tmp_path / "a.bin")["a"], np.ones(2))


def test_without_torch_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for use in (torch_file.read_state, lambda file: torch_file.write_state(file, {})):
        with pytest.raises(UserError, match=r"a.bin .* torch is not installed. .* pip install '"):
            use(tmp_path / "a.bin")


def test_torch_is_imported_by_one_module_only(repository):
    sources = {path.name: path.read_text() for path in (repository / "moecl_jax").rglob("*.py")}
    importers = {name for name, text in sources.items() if "import torch" in text}
    assert importers == {"torch_file.py"}
