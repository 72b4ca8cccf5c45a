"""The Python snippets of guides on online learning and on experts' starting values run."""

import re

import pytest
from fenced import blocks
from streams import ROOT, tiny_settings

from moecl_jax.runs.workdir import save_settings
from moecl_jax.training.online import Online, OnlineSettings


def snippet(page):
    """The one Python block of a guide."""
    text = (ROOT / "docs" / "howto" / page).read_text(encoding="utf-8")
    [block] = [block for block in blocks(text) if block.language == "python"]
    return block.text


def test_an_online_step_answers_and_learns(tmp_path, monkeypatch, capsys):
    pytest.importorskip("river")
    folder = tmp_path / "runs" / "first"
    settings = tiny_settings(tmp_path, method="per_task", head="classification")
    task = {**settings.definitions["two"], "labels": ("ham", "spam")}
    folder.mkdir(parents=True)
    changes = {"tasks": ("sms_spam",), "definitions": {"sms_spam": task}}
    save_settings(settings.changed(changes), folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet("online.md"), "online.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] in ("ham", "spam")
    assert Online(folder, OnlineSettings(task="sms_spam")).lines == 1


def test_maml_on_parabolas_prints_what_the_page_says(capsys):
    exec(compile(snippet("meta_init.md"), "meta_init.md", "exec"), {})
    said = re.findall(r"# (-[0-9.]+)", snippet("meta_init.md"))
    assert capsys.readouterr().out.split() == said == ["-1.5", "-3.0"]
