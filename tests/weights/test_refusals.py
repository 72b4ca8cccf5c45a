"""Files of models that are damaged, hostile or of different models: each is refused in one line."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from backbone_files import (
    LFS_POINTER,
    Q_PROJ,
    edit_json,
    message_of,
    random_state,
    write_folder,
    write_gguf,
)
from gguf import GGMLQuantizationType

from moecl_jax.testing import write_model
from moecl_jax.weights import all_finite
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.load import load_backbone

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)]


@pytest.fixture(name="state")
def fixture_state() -> dict[str, np.ndarray]:
    return random_state()


@pytest.fixture(name="tiny")
def fixture_tiny(tmp_path) -> Path:
    """A model with a tokenizer, whose embedding has as many rows as that has tokens."""
    return write_model(tmp_path / "tiny")


# Numbers that are not finite.


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits_is_finite_or_not(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(every)
    assert all_finite(every[finite])
    assert not any(all_finite(number) for number in every[~finite].reshape(-1, 1))
    assert all_finite(every[:0])


def test_numbers_of_32_bits_are_finite_or_not():
    bits = np.random.default_rng(0).integers(0, 2**32, 10**5, dtype=np.uint32)
    edges = np.array([0x7F7FFFFF, 0xFF7FFFFF, 0, 0x80000000, 1, 0x80000001], np.uint32)
    numbers = np.concatenate([bits, edges]).view(np.float32)
    assert all_finite(numbers[np.isfinite(numbers)])
    for number in (np.nan, -np.nan, np.inf, -np.inf):
        assert not all_finite(np.array([1.0, number, -2.0], np.float32))


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", Q_PROJ])
def test_a_number_that_is_not_finite_is_named(tmp_path, state, stored, number, name):
    state[name].flat[-1] = number
    stored_state = {key: value.astype(stored) for key, value in state.items()}
    message = message_of(write_folder(tmp_path / "m", stored_state))
    expected = f"{tmp_path / 'm' / 'model.safetensors'}: tensor {name!r} holds numbers that are not"
    assert message.startswith(expected)


def test_the_shard_with_a_number_that_is_not_finite_is_named(tmp_path, state):
    state[Q_PROJ][3, 4] = np.nan
    folder = write_folder(tmp_path / "m", state, shards=3)
    shard = json.loads((folder / INDEX).read_text())["weight_map"][Q_PROJ]
    assert message_of(folder).startswith(f"{folder / shard}: tensor {Q_PROJ!r} holds numbers")


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0"])
def test_a_number_of_a_gguf_file_that_is_not_finite_is_named(tmp_path, state, encoding):
    file = write_gguf(tmp_path / "m.gguf", state, GGMLQuantizationType[encoding])
    stored = read_gguf(file)[1]["blk.1.ffn_up.weight"].stored.tobytes()
    content = file.read_bytes()
    # All bits set are a NaN, in Q8_0 the scale of the first block.
    changed = content.replace(stored, b"\xff\xff\xff\xff" + stored[4:])
    assert changed != content
    file.write_bytes(changed)
    assert message_of(file).startswith(f"{file}: tensor 'blk.1.ffn_up.weight' holds numbers that")


# Files that stand for others, or are none.


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_git_lfs_pointer_is_named(tiny, name):
    (tiny / name).write_text(LFS_POINTER)
    expected = f"{tiny / name}: holds a Git LFS pointer and not the file itself. Run 'git lfs pull'"
    assert message_of(tiny).startswith(expected)


def test_a_git_lfs_pointer_in_place_of_a_shard_or_a_gguf_file_is_named(tmp_path, state):
    folder = write_folder(tmp_path / "m", state, shards=3)
    for file in (folder / SHARDS[1], folder / INDEX, tmp_path / "m.gguf"):
        file.write_text(LFS_POINTER)
        message = message_of(file if file.suffix == ".gguf" else folder)
        assert message.startswith(f"{file}: holds a Git LFS pointer")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", INDEX])
def test_what_is_no_file_is_named(tiny, name):
    file = tiny / name
    file.unlink(missing_ok=True)
    file.mkdir()
    assert message_of(tiny).startswith(f"{file}: is a folder; expected a file")
    file.rmdir()
    file.symlink_to(file)
    assert message_of(tiny).startswith(
        f"{file}: cannot be read (Too many levels of symbolic links)"
    )
    file.unlink()
    file.symlink_to(tiny / "absent")
    assert message_of(tiny).startswith(f"{file}: no such file: it is a link to a file that is not")
    file.unlink()
    os.mkfifo(file)
    assert message_of(tiny).startswith(f"{file}: is a device or a pipe; expected a file")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "a\0b",
            "'a\\x00b': cannot be opened (embedded null byte). Expected a Hugging Face folder",
        ),
        ("x" * 5000, "...: cannot be opened (File name too long)"),
        ("a\nb", "'a\\nb': no such path"),
        ("~nobody-of-this-name/model", "cannot be opened (Could not determine home directory"),
    ],
)
def test_paths_that_no_file_can_have(path, words):
    message = message_of(path)
    assert words in message
    assert len(message) < 1000


def test_a_path_that_leads_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "a: cannot be opened (Too many levels of symbolic links)" in message_of(tmp_path / "a")


# config.json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "not valid JSON (lists and objects are nested more than 100 deep)"),
        ('{"hidden_size": ' + "9" * 10_000 + "}", "not valid JSON (a number has 10000 digits"),
        ('{"rope_theta": NaN}', "not valid JSON (NaN is no JSON)"),
        ('{"rope_theta": 1e999}', "not valid JSON (1e999 is larger than any number"),
        ("\x00\x01", "not valid JSON"),
        ("3", "expected a JSON object"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, state, text, words):
    folder = write_folder(tmp_path / "m", state)
    (folder / "config.json").write_text(text)
    assert message_of(folder).startswith(f"{folder / 'config.json'}: {words}")
    assert len(message_of(folder)) < 300


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_hidden_layers": 10_000_000},
            "num_hidden_layers is 10000000; expected a positive integer, at most 10000",
        ),
        (
            {"num_hidden_layers": 10**18, "model_type": "gemma3_text"},
            "num_hidden_layers is 1000000000000000000; expected a positive integer, at most 10000",
        ),
        ({"hidden_size": 10**18}, "hidden_size is 1000000000000000000; expected a positive"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648; expected a positive integer, at most"),
        ({"max_position_embeddings": 10**99}, "max_position_embeddings is 1000"),
        (
            {"rope_theta": 1e-300},
            "rope_theta is 1e-300; expected a positive number from 1 to 1e+30",
        ),
        ({"rope_theta": 0.5}, "rope_theta is 0.5; expected a positive number from 1 to 1e+30"),
        ({"rope_theta": 1e300}, "rope_theta is 1e+300; expected a positive number from 1 to 1e+30"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300; expected a positive number from 1e-30"),
        ({"rms_norm_eps": 2.0}, "rms_norm_eps is 2.0; expected a positive number from 1e-30 to 1."),
        (
            {"rope_scaling": {"type": "linear", "factor": 1e-9}},
            "rope_scaling.factor is 1e-09; expected a positive number from 1 to 1e+30",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 1.0,
                    "original_max_position_embeddings": 3,
                }
            },
            "expected low_freq_factor < high_freq_factor",
        ),
        (
            {
                "model_type": "hunyuan_v1_dense",
                "rope_scaling": {"type": "dynamic", "alpha": 1e-20},
            },
            "the scaling by alpha makes the rotary base ",
        ),
        ({"hidden_act": ["silu"]}, "hidden_act is ['silu'], which is not supported yet"),
        ({"hidden_act": {}}, "hidden_act is {}, which is not supported yet"),
        ({"hidden_size": "9" * 10**6}, "hidden_size is '99999"),
        (
            {
                "model_type": "gemma3_text",
                "rope_theta": None,
                "rope_parameters": {"full_attention": [1]},
            },
            "rope_parameters.full_attention is [1]; expected an object or null",
        ),
        ({"model_type": "x" * 10**6}, "model_type is 'xxx"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, state, changes, words):
    folder = write_folder(tmp_path / "m", state, **changes)
    message = message_of(folder)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert words in message
    assert len(message) < 600


@pytest.mark.parametrize("layers", [1, 2, 4, 9_999])
def test_the_number_of_layers_is_compared_with_the_weights(tmp_path, state, layers):
    message = message_of(write_folder(tmp_path / "m", state, num_hidden_layers=layers))
    assert f"model of {layers} layers" in message


# safetensors


def header_of(file):
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_safetensors_with(file, header, data):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_a_header_of_absurd_size_is_named(tmp_path, state):
    file = write_folder(tmp_path / "m", state) / "model.safetensors"
    file.write_bytes(b"<!DOCTYPE html>" + file.read_bytes())
    assert "not a safetensors file, or damaged: by its first 8 bytes" in message_of(file.parent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": ["F32"]}, "is malformed: dtype is ['F32']; expected a text"),
        ({"dtype": "F" * 10**5}, "is stored as FFFFF"),
        ({"shape": [1] * 100}, "; expected at most 8 sizes"),
        ({"shape": [True, 32]}, "shape is [True, 32]; expected at most 8 sizes"),
        ({"shape": [-32, -32]}, "shape is [-32, -32]; expected at most 8 sizes"),
        ({"shape": [10**90, 0]}, "has 4096 bytes, expected 0 for shape [1000"),
        ({"shape": "ab"}, "shape is 'ab'; expected at most 8 sizes"),
        ({"data_offsets": [0]}, "data_offsets is [0]; expected two offsets"),
        ({"data_offsets": {"a": 1, "b": 2}}, "data_offsets is {'a': 1, 'b': 2}; expected two"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path, state, change, words):
    file = write_folder(tmp_path / "m", state) / "model.safetensors"
    header, data = header_of(file)
    header[Q_PROJ] |= change
    write_safetensors_with(file, header, data)
    message = message_of(file.parent)
    assert message.startswith(f"{file}: ")
    assert repr(Q_PROJ) in message and words in message
    assert len(message) < 800


@pytest.mark.parametrize("entry", [None, 3, "F32", [], {"dtype": "F32", "shape": [1]}])
def test_what_is_no_entry_is_named(tmp_path, state, entry):
    file = write_folder(tmp_path / "m", state) / "model.safetensors"
    header, data = header_of(file)
    write_safetensors_with(file, header | {Q_PROJ: entry}, data)
    assert message_of(file.parent).startswith(
        f"{file}: the header entry of tensor {Q_PROJ!r} is malformed: it is {entry!r}; expected an "
        "object with dtype, shape and data_offsets."
    )


def overlapping(header):
    names = [name for name in header if name.endswith("q_proj.weight")]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


def with_a_hole(header):
    last = max((e["data_offsets"], name) for name, e in header.items())[1]
    header[last]["data_offsets"] = [offset + 4 for offset in header[last]["data_offsets"]]


@pytest.mark.parametrize("edit", [overlapping, with_a_hole])
def test_what_the_safetensors_package_refuses_is_refused(tmp_path, state, edit):
    file = write_folder(tmp_path / "m", state) / "model.safetensors"
    header, data = header_of(file)
    header.pop("__metadata__", None)
    edit(header)
    write_safetensors_with(file, header, data + bytes(4))
    expected = f"{file}: damaged: the safetensors package refuses it ("
    assert message_of(file.parent).startswith(expected)


def test_names_that_are_there_twice_are_refused(tmp_path, state):
    file = write_folder(tmp_path / "m", state) / "model.safetensors"
    header, data = header_of(file)
    entry = json.dumps(header.pop(Q_PROJ))
    twice = entry.replace("{", '{"dtype": "F16", ', 1)
    encoded = json.dumps(header)[:-1] + f', "{Q_PROJ}": {twice}}}'
    write_safetensors_with(file, encoded.encode(), data)
    assert "the safetensors package refuses it" in message_of(file.parent)


def test_a_deep_header_is_named(tmp_path, state):
    file = write_folder(tmp_path / "m", state) / "model.safetensors"
    write_safetensors_with(file, b'{"a":' + b"[" * 10**5, b"")
    assert "the header is not a JSON object (lists and objects are" in message_of(file.parent)


# The index


def test_two_sets_of_weights_are_refused(tmp_path, state):
    folder = write_folder(tmp_path / "m", state, shards=3)
    single = write_folder(tmp_path / "other", state) / "model.safetensors"
    single.rename(folder / "model.safetensors")
    expected = (
        f"{folder}: holds two sets of weights: model.safetensors, and {SHARDS[0]} (and 2 more). "
        "Delete the one"
    )
    assert message_of(folder).startswith(expected)
    (folder / INDEX).unlink()
    assert message_of(folder).startswith(expected)


def test_an_index_that_was_left_behind_is_no_set_of_weights(tmp_path, state):
    folder = write_folder(tmp_path / "m", state)
    fingerprint = load_backbone(folder).fingerprint
    for weight_map in (
        dict.fromkeys(state, SHARDS[0]),
        dict.fromkeys(state, "model.safetensors"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert load_backbone(folder).fingerprint == fingerprint


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ([1], "the key weight_map is [1]; expected the name of each tensor's file"),
        ({"a": 3}, "the file of tensor 'a': 3 is not the name of a file"),
        ({"a": ["b"]}, "the file of tensor 'a': ['b'] is not the name of a file"),
        ({"a": "../b.safetensors"}, "'../b.safetensors' leads out of the folder"),
        ({"a": "/etc/passwd"}, "'/etc/passwd' leads out of the folder"),
        ({"a": "x\0.safetensors"}, "'x\\x00.safetensors' is not the name of a file"),
        ({"a": "x" * 5000}, "xxx'... is not the name of a file"),
        ({"a": "b\nc"}, "'b\\nc' is not the name of a file"),
    ],
)
def test_an_index_that_names_no_files_of_its_folder_is_named(tmp_path, state, weight_map, words):
    folder = write_folder(tmp_path / "m", state, shards=3)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    message = message_of(folder)
    assert message.startswith(f"{folder / INDEX}: ")
    assert words in message


def test_an_index_of_other_weights_is_named(tmp_path, state):
    folder = write_folder(tmp_path / "m", state, shards=3)
    file = folder / INDEX
    whole = file.read_text()
    first = next(iter(state))
    edit_json(file, lambda index: index["weight_map"].update({"more": SHARDS[0]}))
    assert message_of(folder).startswith(
        f"{file}: says that tensor 'more' is in {SHARDS[0]}, where it is not: the index belongs to "
        "other weights. Download both again"
    )
    file.write_text(whole)
    edit_json(file, lambda index: index["weight_map"].update({first: SHARDS[1]}))
    assert f"says that tensor {first!r} is in {SHARDS[1]}, where it is not" in message_of(folder)
    file.write_text(whole)
    (folder / SHARDS[1]).rename(folder / "weights.safetensors")
    assert message_of(folder).startswith(
        f"{folder / SHARDS[1]}: no such file, but {INDEX} names it, and not weights.safetensors, "
        "which is there: the index belongs to other weights."
    )
    (folder / "weights.safetensors").unlink()
    expected = f"{folder / SHARDS[1]}: no such file, but {INDEX} names it. Download it."
    assert message_of(folder) == expected
    (folder / SHARDS[2]).unlink()
    assert message_of(folder).endswith("names it. Download it and 1 more.")
