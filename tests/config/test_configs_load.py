"""Every file of configs/ makes settings, as it is and as its docstring says to call it."""

import ast
import shlex
from pathlib import Path

import pytest
from streams import ROOT

from moecl_jax.config.default import from_config, to_config
from moecl_jax.config.file import load_settings

FILES = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def commands(file: str) -> list[list[str]]:
    """The words of each `moecl train` command in a config's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / "configs" / file).read_text()))
    assert docstring is not None
    lines = [line.strip() for line in docstring.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("moecl train ")]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", FILES)
def test_a_config_makes_settings_a_method_and_tasks(file: str) -> None:
    settings = load_settings(str(Path("configs") / file))
    assert [task.name for task in settings.task_objects()] == list(settings.tasks)
    assert settings.method_object().name == "moe_cl"
    assert from_config(to_config(settings)) == settings


@pytest.mark.parametrize("file", FILES)
def test_its_docstring_has_a_command_that_is_understood(file: str) -> None:
    assert commands(file)
    for _, _, *arguments in commands(file):
        (config,) = (word for word in arguments if word.startswith("--config="))
        name = config.removeprefix("--config=")
        assert name.partition(":")[0] == f"configs/{file}"
        overrides = [word for word in arguments if word.startswith("--config.")]
        assert load_settings(name, overrides).task_objects()


@pytest.mark.parametrize(
    "name",
    [
        *(f"mtl5.py:order={order},base=llama-2-7b" for order in (1, 2, 3)),
        "mtl5_shared_smollm2.py:order=3,data=elsewhere",
        "mtl5_comparison.py:order=2",
        "original.py:order=2",
        "cold.py:order=3,base=gemma3-270m,language=zh,data=missing",
        "tencent3.py:order=2,language=en,data=missing",
        *(f"long_sequence.py:order={order}" for order in (4, 5, 6)),
        "long_sequence.py:data=local,folder=missing",
    ],
)
def test_a_config_s_arguments_are_understood(name: str) -> None:
    assert load_settings(f"configs/{name}").task_objects()
