"""The snippet of the page about retrieval runs, and its answer names the right document."""

import pytest
from fenced import run
from streams import ROOT

pytest.importorskip("faiss")


@pytest.mark.slow
def test_the_snippet_runs(tmp_path):
    page = ROOT / "docs" / "howto" / "retrieval.md"
    done = run(page, tmp_path, shrink_command=lambda _: None, search_path=[ROOT])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    *_, sources = done.stdout.strip().splitlines()
    assert sources.startswith("['manual/pump.md:1'")
