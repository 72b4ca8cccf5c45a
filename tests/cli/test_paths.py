"""Paths on the command line that are empty, or name a file in place of a folder or the reverse."""

import pytest

from moecl_jax.cli.main import main

NAMED = {
    "train": ["--config=c.py", "--workdir="],
    "sweep": ["--config=c.py", "--methods=replay", "--workdir="],
    "evaluate": ["--workdir="],
    "compare": ["--workdir=a", "--workdir="],
    "predict": ["--workdir=a", "--input=", "--output=b"],
    "generate": ["--workdir=a", "--task=t", "--input=b", "--output="],
    "report": ["--workdir=a", "--output="],
    "export": ["--workdir=a", "--format=peft", "--output="],
    "convert": ["peft", "--workdir=a", "--adapter=b", "--base="],
}


@pytest.mark.parametrize("command", NAMED)
def test_an_empty_path_is_not_the_current_folder(command, tmp_path, monkeypatch, capsys):
    """As of a shell's variable that is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([command, *NAMED[command]])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(": it is empty; name a path ('.' is the current folder)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["train"], ["sweep", "--methods=replay"]])
def test_a_workdir_that_is_a_file_is_refused(command, tmp_path, repository, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    config = repository / "configs" / "default.py"
    assert main([*command, f"--config={config}", f"--workdir={file}"]) == 1
    error = capsys.readouterr().err
    assert error == f"moecl: error: {file} is there and is no folder; name another --workdir\n"
    assert file.read_text() == "mine"


def test_a_config_that_is_a_folder_is_named_as_such(tmp_path, capsys):
    (tmp_path / "a.py").touch()
    assert main(["train", f"--config={tmp_path}", f"--workdir={tmp_path / 'w'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"moecl: error: config file {tmp_path} is a folder; name FILE.py")
