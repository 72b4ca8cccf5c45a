"""A strict session: silent rank promotion is an error, and JAX sees eight virtual CPU devices."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before jax is imported. On two cores the eight devices cost the tests about a tenth of their time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# No test may reach for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests compile the same tiny steps again and again; this session's processes share the results.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="moecl_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("survived", "refused")  # of faults


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder shared/ beside the repository; skips the test where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (not shipped with the package)")
    return folder


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str, int, str], None]:
    """Notes that a fault was tried: what, how many times, and the outcome.

    Where MOECL_FAULTS names a folder, it gets one file a test, which launch/faults.sh turns into
    the table.
    """
    folder = os.environ.get("MOECL_FAULTS")
    entries: list[tuple[str, int, str]] = []

    def note(fault: str, times: int, outcome: str) -> None:
        assert outcome in OUTCOMES
        entries.append((fault, times, outcome))
        if folder is not None:
            name = request.node.nodeid.replace("/", ".").replace(":", "_")
            (Path(folder) / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")

    return note
