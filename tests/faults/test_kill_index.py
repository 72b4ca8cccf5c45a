"""SIGKILL inside `moecl index` leaves the index as it was, or as it is to be."""

import shutil
import signal

import pytest
from processes import operations, run, write_config

from moecl_jax.retrieval import Index

pytest.importorskip("faiss")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", ["add", "delete"])
def test_it_is_killed_anywhere(tmp_path, command, tried):
    config = write_config(tmp_path, method="zero_shot", tasks=("two",))
    trained, whole, killed = (tmp_path / name for name in ("trained", "whole", "killed"))
    assert run("train", f"--config={config}", f"--workdir={trained}")[0] == 0
    notes = tmp_path / "notes.txt"
    notes.write_text("w1 w2\n\nw3 w4", encoding="utf-8")
    assert run("index", "add", f"--input={notes}", f"--workdir={trained}")[0] == 0
    shutil.copytree(trained, whole)
    argument = "--task=two" if command == "add" else f"--source={notes}"
    status, _, err = run("index", command, argument, f"--workdir={whole}", folder=whole)
    assert status == 0, err
    before, after = (Index.load(run / "index.safetensors").entries for run in (trained, whole))
    assert before != after
    seen = []
    for point in range(1, operations(whole) + 1):
        shutil.copytree(trained, killed)
        arguments = ["index", command, argument, f"--workdir={killed}"]
        status, _, err = run(*arguments, kill_at=point, folder=killed)
        assert status == -signal.SIGKILL, err
        entries = Index.load(killed / "index.safetensors").entries
        assert entries in (before, after)
        seen.append(entries == after)
        if not seen[-1]:
            status, _, err = run(*arguments)
            assert status == 0, err
            assert Index.load(killed / "index.safetensors").entries == after
        shutil.rmtree(killed)
    assert not seen[0]
    tried(f"SIGKILL inside 'moecl index {command}'", len(seen), "survived")
