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


def _note_faults(node: pytest.Item, entries: list[tuple[str, int, str]]) -> None:
    """Writes what a test tried, where MOECL_FAULTS names a folder; see launch/faults.sh."""
    folder = os.environ.get("MOECL_FAULTS")
    if folder is not None:
        name = "".join(c if c.isalnum() else "_" for c in node.nodeid)
        (Path(folder) / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str, int, str], None]:
    """Notes that a fault was tried: what, how many times, and whether it survived or was refused.

    A test calls it after its assertions.
    """
    entries: list[tuple[str, int, str]] = []

    def note(fault: str, times: int, outcome: str) -> None:
        assert outcome in ("survived", "refused")
        entries.append((fault, times, outcome))
        _note_faults(request.node, entries)

    return note


@pytest.hookimpl
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> None:
    """Notes the generated cases of a property test that has passed."""
    test = getattr(item, "obj", None)
    if call.when == "call" and call.excinfo is None and getattr(test, "is_hypothesis_test", False):
        settings = test._hypothesis_internal_use_settings
        kind = Path(item.path).stem.removeprefix("test_").replace("_", " ")
        fault = f"generated cases: {kind}"
        _note_faults(item, [(fault, settings.max_examples, "read or refused")])
