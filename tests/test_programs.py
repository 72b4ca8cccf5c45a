"""Compiled programs on disk: whatever happens to the disk, no wrong program and no error."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moecl_jax import programs
from moecl_jax.cli.main import main
from moecl_jax.programs import ProgramStore

CODE = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax import monitoring
from moecl_jax import programs
programs.keep()
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event))
x = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
out = jax.jit(lambda x: jnp.tanh(x @ x.T).sum(axis=1))(x)
print(np.asarray(out).tobytes().hex()[:400], sum("cache_hits" in event for event in events))
"""


@pytest.fixture
def store(tmp_path):
    return ProgramStore(tmp_path, most_bytes=1000)


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def run_code(folder):
    """The bits of a compiled function's results, and how many programs were found."""
    environment = {**os.environ, "MOECL_CACHE": str(folder), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = ""
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    assert "Error" not in done.stderr
    bits, hits = done.stdout.split()
    return bits, int(hits)


def test_what_was_put_is_got(store):
    assert store.get("a") is None
    store.put("a", b"program")
    assert store.get("a") == b"program"
    assert store.get("b") is None
    store.put("a", b"other")
    assert store.get("a") == b"other"


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_program_is_deleted_and_not_used(store, damage):
    store.put("a", b"program" * 20)
    [file] = files(store.folder)
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(bytes(content) if damage is None else damage)
    assert store.get("a") is None
    assert not files(store.folder)
    store.put("a", b"program")
    assert store.get("a") == b"program"


def test_the_programs_used_longest_ago_make_room(store):
    for age, key in ((300, "old"), (200, "used"), (100, "new")):
        store.put(key, bytes(300 - 32))
        os.utime(store._file(key), (time.time() - age,) * 2)
    assert store.get("used") is not None  # is the newest now
    store.put("more", bytes(300 - 32))
    assert [store.get(key) is not None for key in ("old", "used", "new", "more")] == [
        False,
        True,
        True,
        True,
    ]
    store.put("huge", bytes(2000))
    assert store.get("huge") is None
    assert store.get("more") is not None


def test_what_killed_processes_left_goes_when_it_is_old(store):
    old, fresh = store.folder / "tmpold", store.folder / "tmpfresh"
    for path, age in ((old, 7200), (fresh, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    store.put("a", b"program")
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.parametrize("operation", ["mkstemp", "replace", "write"])
def test_a_disk_that_refuses_leaves_nothing_and_raises_nothing(store, monkeypatch, operation):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if operation == "mkstemp":
        monkeypatch.setattr(programs.tempfile, "mkstemp", refuse)
    elif operation == "replace":
        monkeypatch.setattr(programs.os, "replace", refuse)
    else:
        original = os.fdopen

        def opened(handle, mode):
            file = original(handle, mode)
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(programs.os, "fdopen", opened)
    store.put("a", b"program")
    assert store.get("a") is None
    assert not files(store.folder)


def test_a_program_from_disk_gives_the_same_bits(tmp_path):
    first, hits = run_code(tmp_path)
    assert hits == 0
    again, hits = run_code(tmp_path)
    assert hits > 0
    assert again == first
    for file in files(tmp_path):  # as a kill or a failing disk leaves them
        file.write_bytes(file.read_bytes()[:-7])
    assert run_code(tmp_path) == (first, 0)


@pytest.mark.slow
def test_two_processes_may_fill_a_folder_at_once(tmp_path):
    environment = {**os.environ, "MOECL_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = ""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    results = {process.communicate()[0].split()[0] for process in started}
    assert len(results) == 1
    assert run_code(tmp_path)[0] in results


def test_a_folder_that_cannot_be_used_is_left_out(tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run_code(blocked)[1] == 0
    monkeypatch.setenv("MOECL_CACHE", str(blocked))
    assert main(["cache"]) == 0
    assert f"programs are not kept: {blocked}" in capsys.readouterr().out
    monkeypatch.setenv("MOECL_CACHE", "off")
    assert main(["cache"]) == 0
    assert "programs are not kept: MOECL_CACHE is 'off'" in capsys.readouterr().out
    assert main(["cache", "--empty"]) == 0


def test_other_versions_are_kept_apart_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOECL_CACHE", str(tmp_path))
    own, _ = programs.writable_folder()
    ProgramStore(own).put("a", b"x" * 500_000)
    monkeypatch.setattr(programs.metadata, "version", lambda _: "9.9.9")
    other, _ = programs.writable_folder()
    assert other != own
    assert ProgramStore(other).get("a") is None
    (tmp_path / "notes.txt").write_text("not ours")
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "for this machine and these versions: 0 programs, 0.0 MB" in shown
    assert "for others: 1 programs, 0.5 MB" in shown
    assert main(["cache", "--empty"]) == 0
    assert "deleted 1 compiled programs" in capsys.readouterr().out
    assert [path.name for path in files(tmp_path)] == ["notes.txt"]
