"""`load_model`: what a run used to build by hand, from every kind of path."""

import functools
import shutil
from pathlib import Path

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moecl_jax.errors import UserError
from moecl_jax.kernels import QuantizedKernel, as_bits, quantize_layers
from moecl_jax.models.experts import frozen_layer
from moecl_jax.models.lora import no_term
from moecl_jax.models.model import Architecture
from moecl_jax.models.sharding import ONE_DEVICE
from moecl_jax.testing import VOCABULARY, write_model
from moecl_jax.weights.load import load_backbone, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_model_is_the_backbone_on_the_device(folder):
    model, backbone = load_model(folder), load_backbone(folder, jnp.bfloat16)
    assert_same(model.params, as_bits(backbone.params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    assert model.sizes == backbone.config
    assert (model.fingerprint, model.source) == (backbone.fingerprint, str(folder))
    assert model.tokenizer("w3 answer")["input_ids"] == [5, len(VOCABULARY) - 1]
    assert (model.dtype, model.quantization) == (jnp.bfloat16, "none")
    assert (model.remat, model.attention) == ("projections", "xla")
    assert model.placement == ONE_DEVICE
    assert load_model(str(folder)).fingerprint == model.fingerprint


def test_options_reach_the_model(folder):
    model = load_model(folder, dtype="float32", quantization="int8", remat="none")
    kernels = load_backbone(folder).params
    assert_same(model.params, quantize_layers(kernels, "int8"))
    kernel = model.params["layers"]["feed_forward"]["up_proj"]["kernel"]
    assert isinstance(kernel, QuantizedKernel)
    assert (model.dtype, model.quantization, model.remat) == (jnp.float32, "int8", "none")


def test_a_mesh_splits_the_parameters(folder):
    model = load_model(folder, dtype="float32", mesh={"fsdp": 2, "data": -1})
    assert dict(model.placement.mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    kernel = model.params["layers"]["feed_forward"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert model.remat == "full"
    assert_same(model.placement.host(model.params), load_backbone(folder).params)


def test_architectures_are_hashable_and_make_decoders(folder):
    model, again = (load_model(folder, dtype="float32") for _ in range(2))
    assert len({model.architecture, again.architecture}) == 1
    ids = jnp.array([[1, 2, 3]])
    inputs = (ids, jnp.arange(3)[None], jnp.ones_like(ids), jnp.zeros_like(ids), jnp.ones((1, 3)))
    training = model.decoder(frozen_layer, no_term, training=True)
    evaluation = model.decoder(frozen_layer, no_term, training=False)
    frozen = model.architecture.frozen_decoder()
    assert (training.remat, evaluation.remat, frozen.remat) == ("projections", "none", "none")
    states = [
        jax.jit(functools.partial(decoder.apply, {"params": model.params}))(*inputs)[0]
        for decoder in (training, evaluation, frozen)
    ]
    for other in states[1:]:
        np.testing.assert_array_equal(states[0], other)
    assert states[0].shape == (3, model.sizes.width)


def test_splash_attention_is_for_training_alone(folder):
    architecture = Architecture(load_backbone(folder).config, attention="splash")
    kernels = [
        architecture.decoder(frozen_layer, no_term, training=training).attention
        for training in (True, False)
    ]
    assert kernels == ["splash", "xla"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "dtype = 'float16' is not one of bfloat16, float32"),
        ({"quantization": "int2"}, "quantization = 'int2' is not one of none, "),
        ({"remat": "some"}, "remat = 'some' is not one of auto, none, "),
        ({"attention": "flash"}, "attention = 'flash' is not one of "),
        ({"mesh": {"model": 2}}, "axis of mesh = 'model' is not one of data, fsdp, tensor"),
        ({"mesh": {"data": 3}}, "must multiply to the 8 devices"),
        ({"attention": "cudnn"}, "attention 'cudnn' needs an NVIDIA GPU"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        load_model(folder, **arguments)


@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """A cache as `hf download tiny-org/tiny.model` leaves it; gives its snapshot."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--tiny-org--tiny.model"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    # The value of HF_HUB_CACHE, which the package read when it was imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_a_model_in_the_hub_cache_is_found_by_its_name(folder, cached):
    model = load_model("tiny-org/tiny.model")
    assert model.source == "tiny-org/tiny.model"
    assert model.fingerprint == load_backbone(folder).fingerprint
    assert model.tokenizer is not None
    assert load_backbone(Path("tiny-org/tiny.model")).fingerprint == model.fingerprint
    for name in ("tiny-org/other", "./tiny-org/tiny.model", "tiny-org//tiny.model", "a--b/c"):
        with pytest.raises(UserError, match=r"no such path.*hf download"):
            load_model(name)
    (cached / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{cached}: holds no \*\.safetensors"):
        load_model("tiny-org/tiny.model")


def test_a_folder_goes_before_the_hub_cache(cached):
    other = write_model(Path("tiny-org") / "tiny.model", seed=1)
    assert load_backbone("tiny-org/tiny.model").fingerprint == load_backbone(other).fingerprint
    assert load_backbone(cached).fingerprint != load_backbone(other).fingerprint
