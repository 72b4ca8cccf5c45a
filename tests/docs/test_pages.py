"""The commands and Python snippets of the README and the tutorials do what the pages say."""

import json
import re

import numpy as np
import pytest
from fenced import SHELLS, blocks, commands, run
from official_files import random_tensors, write_adapter
from page_commands import RULES, rule_of, shrink, shrink_python
from streams import ROOT

from moecl_jax.testing import write_model

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *TUTORIALS]
LONG = ("own_tasks.md", "comparing_methods.md", "own_method.md", "original_checkpoint.md")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def found_commands(page):
    found = [block for block in blocks(page.read_text()) if block.language in SHELLS]
    return [command for block in found for command in commands(block)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_command_is_run_in_small_or_elsewhere(page):
    assert [command for command in found_commands(page) if rule_of(command) is None] == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.elsewhere], ids=str)
def test_what_runs_a_command_elsewhere_is_there(rule):
    file, _, test = rule.elsewhere.partition("::")
    text = (ROOT / file).read_text()
    assert f"def test_{test}" in text if "::" in rule.elsewhere else rule.replacement is None


def test_each_rule_is_needed():
    used = {rule_of(command) for page in PAGES for command in found_commands(page)}
    assert set(RULES) - used == set()


def test_the_readme_s_example_is_short():
    (example,) = [b for b in blocks((ROOT / "README.md").read_text()) if b.language == "python"]
    assert len(example.text.splitlines()) <= 15


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("notebooks/"):  # copied by docs/generate.py
            assert (page.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.long] if page.name in LONG else [])
        for page in PAGES
        if page.name != "index.md"
    ],
    ids=[name for name in NAMES if not name.endswith("index.md")],
)
def test_a_page_s_blocks_run(page, tmp_path):
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    if page.name == "original_checkpoint.md":
        write_original(tmp_path)
    done = run(
        page,
        tmp_path,
        shrink_python=shrink_python,
        shrink_command=shrink,
        search_path=[ROOT, ROOT / "examples"],
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def write_original(folder):
    """A tiny base, an adapter of the original's and data, with the names in the tutorial."""
    write_model(folder / "llama-2-7b")
    config = json.loads((folder / "llama-2-7b" / "config.json").read_text())
    sizes = {24: config["hidden_size"], 40: config["intermediate_size"]}
    (folder / "run").mkdir()
    tensors = random_tensors({"agnews": 4, "amazon": 5, "dbpedia": 14, "yahoo": 10})
    enlarged = {
        name: np.zeros([sizes.get(size, size) for size in tensor.shape], np.float32)
        for name, tensor in tensors.items()
    }
    write_adapter(folder / "run" / "amazon_finetuned", enlarged)
    (folder / "data").mkdir()
    lines = [json.dumps({"text": f"w{i} w7", "label": i % 5}) for i in range(20)]
    (folder / "data" / "amazon.jsonl").write_text("\n".join(lines) + "\n")
