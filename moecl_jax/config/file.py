"""Config files and the overrides of the command line.

Importing this module is cheap: `moecl --help` does not wait for what reading a config needs.
"""

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecl_jax.errors import UserError, one_line, suggestion
from moecl_jax.outside import parse_json, shortened

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from moecl_jax.runs.settings import Settings

OVERRIDE = re.compile(r"--?(?:no)?config\.")

# What reading the value of an override may raise; tuples are parsed as Python is.
_MALFORMED: tuple[type[Exception], ...] = (
    *(AttributeError, LookupError, TypeError, ValueError, SyntaxError),
    *(MemoryError, RecursionError),
)


def load_config(file: str, overrides: Sequence[str] = ()) -> "ConfigDict":
    """Reads a config file and applies overrides to it.

    Args:
      file: `FILE.py`, whose `get_config()` returns a `ConfigDict`, `FILE.py:ARGUMENT`, which
        calls `get_config(ARGUMENT)`, or the `config.json` of a workdir.
      overrides: flags of the form `--config.KEY=VALUE`, as `ml_collections.config_flags` defines
        them; VALUE is read as the type of the value that it replaces.

    Returns:
      The config, locked.

    Raises:
      UserError: the file is missing or fails, or a key is unknown or a value not allowed, in the
        file or in an override.
    """
    from moecl_jax.config.default import from_config

    config = overridden(read_config(file, overrides), overrides)
    from_config(config)  # checks every key and value
    return config


def read_config(file: str, overrides: Sequence[str] = ()) -> "ConfigDict":
    """Reads a config file, unchecked and without the overrides, completed with defaults.

    Args:
      file: a config file, as `load_config` takes it.
      overrides: the overrides that will be applied; one that names the method tells which sections
        of options there are.

    Raises:
      UserError: the file is missing or fails, or there is no such method.
    """
    path = Path(file)
    config = read_json(path) if path.suffix == ".json" else _run_config_file(file)
    _complete(config, overrides)
    return config


def overridden(config: "ConfigDict", overrides: Sequence[str]) -> "ConfigDict":
    """Applies overrides to a config, which they change, and locks it; values are not checked yet.

    Raises:
      UserError: a key is unknown, or a value cannot be read.
    """
    from absl import flags
    from ml_collections import config_flags

    for override in overrides:
        _check_override(override, config)
    values = flags.FlagValues()
    arguments = ["moecl", *overrides]
    failures: tuple[type[Exception], ...] = (flags.Error, *_MALFORMED)
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=True, sys_argv=arguments
        )
        values(arguments)
    except failures as error:
        # Without the list of what is supported, which is long and in Python's terms.
        reason = one_line(error).removeprefix("flag ").partition(". Currently supported")[0]
        raise UserError(reason) from error
    return values["config"].value


def load_settings(file: str, overrides: Sequence[str] = ()) -> "Settings":
    """The settings of a config file with overrides; arguments and errors as `load_config`."""
    from moecl_jax.config.default import from_config

    return from_config(load_config(file, overrides))


def _complete(config: "ConfigDict", overrides: Sequence[str]) -> None:
    """Gives a config the keys that it lacks, with their defaults, so that they can be overridden.

    A method from outside has a section of its own. Where an override names another method than the
    file, the section of the file's goes.

    Raises:
      UserError: the method cannot be imported, or is no method.
    """
    from moecl_jax.config.default import get_config

    old = config.get("method", "moe_cl")
    named = [OVERRIDE.sub("", override, count=1).partition("=") for override in overrides]
    methods = [value for key, _, value in named if key == "method"]
    defaults = get_config(methods[-1] if methods else old)
    with config.unlocked():
        if methods and ":" in str(old):
            for key in (set(get_config(old)) - set(defaults)) & set(config):
                del config[key]
        _add_missing(config, defaults)
        for key, _, _ in named:
            _add_for_task(config, key.split("."))


def _add_for_task(config: "ConfigDict", path: Sequence[str]) -> None:
    """Gives a task a value of its own that it lacks, as it is for all tasks, to be overridden.

    Args:
      config: the whole config.
      path: an override's key; nothing is done unless it is `task_settings.NAME.KEY`.
    """
    value: Any = config
    for name in path[2:]:
        value = value.get(name) if hasattr(value, "items") else None
    if len(path) < 3 or path[0] != "task_settings" or value is None or hasattr(value, "items"):
        return
    section = config.task_settings
    for name in path[1:-1]:
        if name not in section:
            section[name] = type(config)()
        section = section[name]
    if path[-1] not in section:
        section[path[-1]] = value


def _add_missing(config: "ConfigDict", defaults: "ConfigDict") -> None:
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif hasattr(value, "items") and hasattr(config[key], "items"):
            _add_missing(config[key], value)


def read_json(path: Path) -> "ConfigDict":
    """Reads the `config.json` of a workdir; keys that are younger than it have their defaults.

    Raises:
      UserError: the file is missing, broken, or no config of a run.
    """
    from moecl_jax.config.default import to_config
    from moecl_jax.runs.settings import Settings

    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object of settings, and it is {shortened(content)}")
    except FileNotFoundError as error:
        siblings = [str(other) for other in path.parent.glob("*.json")]
        raise UserError(
            f"config file {path} does not exist{suggestion(str(path), siblings)}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken: {one_line(error)}") from error
    try:
        return to_config(Settings.from_mapping(_with_tuples(content)))
    except (UserError, ValueError) as error:  # ConfigDict's own: a key with a dot
        raise UserError(
            f"{path}: {error} (expected the config.json that 'moecl train' or 'moecl convert' "
            "writes into a workdir)"
        ) from error


def _with_tuples(content: Any) -> Any:
    """JSON's lists as the tuples that they were in the config."""
    if isinstance(content, dict):
        return {key: _with_tuples(value) for key, value in content.items()}
    return tuple(map(_with_tuples, content)) if isinstance(content, list) else content


def _run_config_file(file: str) -> "ConfigDict":
    from ml_collections import ConfigDict

    name, *argument = file.split(":", 1)
    path = Path(name)
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "a device or a pipe"
        raise UserError(f"config file {name} is {found}; name FILE.py, or a workdir's config.json")
    if not path.is_file():
        siblings = [str(other) for other in path.parent.glob("*.py")]
        raise UserError(f"config file {name} does not exist{suggestion(name, siblings)}")
    spec = importlib.util.spec_from_file_location("moecl_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {name} is neither FILE.py nor a workdir's config.json")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in the file look for it there
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)  # as for a script, so that a config can start from one beside it
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if argument and callable(get_config) and not inspect.signature(get_config).parameters:
            raise UserError(
                "its get_config() takes no argument. Leave out what follows the file's name, or "
                "define get_config(argument)"
            )
        config = get_config(*argument) if callable(get_config) else None
    except Exception as error:  # whatever the user's file raises is the user's to mend
        raise UserError(_config_file_failure(path, error)) from error
    finally:
        sys.path.remove(folder)
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file {name} must define get_config() that returns a ConfigDict")
    return config


def _config_file_failure(path: Path, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    if isinstance(error, SyntaxError) and error.filename == str(path.absolute()):
        lines.append(error.lineno)
    place = f"config file {path}" + (f", line {lines[-1]}" if lines else "")
    # The message of these two is written for the user; that of others needs its type.
    kind = "" if isinstance(error, UserError | ValueError) else f"{type(error).__name__}: "
    return f"{place}: {kind}{one_line(error)}"


def _check_override(override: str, config: "ConfigDict") -> None:
    from ml_collections.config_flags import config_path

    from moecl_jax.settings import refuse_unknown

    key = OVERRIDE.sub("", override.partition("=")[0], count=1)
    paths = dict(_paths(config))
    container = key.partition("[")[0]  # KEY[0] is an element of a list
    if container not in paths:
        refuse_unknown([key], list(paths))
    if container != key:
        try:
            config_path.get_value(key, config)
        except (LookupError, ValueError) as error:
            raise UserError(f"config key {key!r}: {one_line(error)}") from error
    elif paths[key]:
        # config_flags would replace the whole section, unchecked and without its other keys.
        raise UserError(
            f"config key {key!r} is a section; override its values, as --config.{key}.KEY"
        )


def _paths(config: "ConfigDict", prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The dotted path of each key, and whether it is a section."""
    for key, value in config.items(preserve_field_references=True):
        is_section = hasattr(value, "items")
        yield f"{prefix}{key}", is_section
        if is_section:
            yield from _paths(value, f"{prefix}{key}.")
