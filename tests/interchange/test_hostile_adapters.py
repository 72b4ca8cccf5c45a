"""Thousands of damaged adapters: each is read, or refused in one line, and never anything else.

The number of cases is `hostile.CASES`.
"""

import json

import numpy as np
import pytest
from hostile import damaged_bytes, damaged_json, read_with, share
from hypothesis import given
from hypothesis import strategies as st
from official_files import random_tensors, write_adapter, write_base
from peft_adapters import random_adapter
from streams import assert_bit_equal

from moecl_jax.interchange import official, torch_file
from moecl_jax.interchange.peft import read_adapter
from moecl_jax.interchange.peft import write_adapter as write_peft
from moecl_jax.testing import write_model
from moecl_jax.weights.load import load_backbone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_backbone(write_model(tmp_path_factory.mktemp("base") / "model")).config


@pytest.fixture(scope="module")
def adapter(config, tmp_path_factory):
    """An adapter in PEFT's format."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    write_peft(random_adapter(config, ("gate_proj", "q_proj")), folder)
    return folder


@pytest.fixture(scope="module", params=["heads", "one head"])
def checkpoint(request, tmp_path_factory):
    """A base and a checkpoint in the original's format, with a head a task or one for all."""
    folder = tmp_path_factory.mktemp("official")
    write_base(folder / "base")
    one = request.param == "one head"
    tensors = random_tensors({"": 2}, tasks=2) if one else random_tensors({"x": 2, "y": 3})
    return folder / "base", write_adapter(folder / "adapter", tensors)


@pytest.fixture(scope="module")
def torch_s_file(tmp_path_factory):
    pytest.importorskip("torch")
    file = tmp_path_factory.mktemp("torch") / "a.bin"
    torch_file.write_state(file, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    return file


def all_finite(tree):
    return (
        np.isfinite(tree).all()
        if not isinstance(tree, dict)
        else all(map(all_finite, tree.values()))
    )


@share(0.06)
@given(st.data())
def test_settings_of_peft(adapter, config, data):
    file = adapter / "adapter_config.json"
    content = data.draw(damaged_json(json.loads(file.read_text())))
    read_with(file, content, lambda: read_adapter(adapter, config, "base"))


@share(0.06)
@given(st.data())
def test_tensors_of_peft(adapter, config, data):
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans()):
        content = data.draw(damaged_bytes(whole, end))
    else:
        header = data.draw(damaged_json(json.loads(whole[8:end]))).encode("utf-8", "ignore")
        content = len(header).to_bytes(8, "little") + header + whole[end:]

    def read():
        assert all_finite(dict(read_adapter(adapter, config, "base").expert))

    read_with(file, content, read)


@share(0.04)
@given(st.data())
def test_settings_of_the_original(checkpoint, data):
    base, prefix = checkpoint
    file = prefix.with_suffix(".json")
    content = data.draw(damaged_json(json.loads(file.read_text())))
    read_with(file, content, lambda: official._read(base, prefix, ()))


@share(0.03)
@given(st.data())
def test_tensors_of_the_original(checkpoint, data):
    base, prefix = checkpoint
    file = prefix.with_suffix(".safetensors")
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = data.draw(damaged_json(json.loads(whole[8:end]))).encode("utf-8", "ignore")
    content = len(header).to_bytes(8, "little") + header + whole[end:]

    def read():
        assert all_finite(official._read(base, prefix, ()).trees)

    read_with(file, content, read)


@pytest.mark.oracle
@share(0.04)
@given(st.data())
def test_torch_files(torch_s_file, data):
    file = torch_s_file
    content = data.draw(damaged_bytes(file.read_bytes(), 600))
    read_with(file, content, lambda: torch_file.read_state(file))


def test_the_undamaged_adapters_are_read(adapter, config, checkpoint):
    """After all the damage, which must have been undone."""
    expert = read_adapter(adapter, config, "base").expert
    assert_bit_equal(expert, random_adapter(config, ("gate_proj", "q_proj")).expert)
    assert official._read(*checkpoint, ()).settings.rank == 3
