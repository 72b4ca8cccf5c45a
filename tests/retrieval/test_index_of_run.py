"""The index of a workdir: `moecl index`, and what a rollback and a removal leave of it."""

import shutil

import pytest
from streams import tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.retrieval import Index
from moecl_jax.runs.undo import remove, rollback
from moecl_jax.serving.indexing import add_to_index, delete_from_index, search_index
from moecl_jax.training.trainer import train

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdir of two finished tasks, of which both and a document are indexed."""
    folder = tmp_path_factory.mktemp("trained")
    settings = tiny_settings(folder, method="zero_shot", tasks=("two", "five"))
    train(settings, folder / "run")
    manual = folder / "manual"
    manual.mkdir()
    (manual / "a.md").write_text("# w40\nw41 w42\n\n# w43\nw44 w45 w46\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = add_to_index(folder / "run", tasks=["two", "five"], documents=["manual"])
    assert done.total == done.added > 2 and done.replaced == done.skipped == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that workdir to change."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def index_of(run):
    return Index.load(run / "index.safetensors")


def tasks_of(run):
    return {entry.task for entry in index_of(run).entries.values()}


def test_examples_have_their_texts_answers_and_places(run):
    entries = index_of(run).entries.values()
    two = [entry for entry in entries if entry.task == "two"]
    assert {entry.answer for entry in two} == {"w0", "w1"}
    assert all("two_train.jsonl:" in entry.source for entry in two)
    texts = [entry.text for entry in two[:3]]
    for text, hits in zip(texts, search_index(run, texts, count=1, tasks=["two"]), strict=True):
        assert hits[0].entry.text == text and hits[0].similarity > 0.999


def test_adding_again_replaces(run, monkeypatch):
    count, manual = len(index_of(run)), run.parent / "manual"
    monkeypatch.chdir(run.parent)
    manual.mkdir()
    (manual / "a.md").write_text("w50 w51\n", encoding="utf-8")
    done = add_to_index(run, tasks=["two"], documents=["manual"])
    assert done.replaced == done.added + 1 and done.total == count - 1
    assert [e.text for e in index_of(run).entries.values() if not e.task] == ["w50 w51"]


def test_what_is_named_twice_is_added_once_and_an_emptied_file_goes(run, monkeypatch):
    manual = run.parent / "manual"
    monkeypatch.chdir(run.parent)
    manual.mkdir()
    (manual / "a.md").write_text("\n", encoding="utf-8")
    (manual / "b.md").write_text("w50 w51\n", encoding="utf-8")
    done = add_to_index(
        run, tasks=["two", "two"], documents=["manual", "manual/b.md"], embedding="frozen"
    )
    two = [entry for entry in index_of(run).entries.values() if entry.task == "two"]
    assert len(two) == done.added - 1 == done.replaced - 2
    assert [e.text for e in index_of(run).entries.values() if not e.task] == ["w50 w51"]


def test_what_is_deleted_is_not_found(run):
    [[hit]] = search_index(run, ["# w43\nw44 w45 w46"], count=1)
    assert hit.entry.source == "manual/a.md:4"
    assert delete_from_index(run, sources=["manual/a.md"]) == 2
    found = search_index(run, ["# w43\nw44 w45 w46", "w41"], count=10_000)
    assert all(hit.entry.task for hits in found for hit in hits)


@pytest.mark.parametrize("undo", [lambda run, dry: remove(run, "five", dry_run=dry), None])
def test_a_task_that_goes_is_not_found(run, undo):
    undo = undo or (lambda run, dry: rollback(run, "two", dry_run=dry))
    before, count = (run / "index.safetensors").read_bytes(), len(index_of(run))
    five = sum(entry.task == "five" for entry in index_of(run).entries.values())
    assert f"deleted: {five} entries of index.safetensors" in str(undo(run, True))
    assert (run / "index.safetensors").read_bytes() == before
    undo(run, False)
    assert tasks_of(run) == {"", "two"} and len(index_of(run)) == count - five
    assert not (run / "checkpoints" / ".prepared").exists()
    with pytest.raises(UserError, match="'five' is not finished"):
        add_to_index(run, tasks=["five"])


def test_a_run_without_an_index_is_undone_as_before(run):
    (run / "index.safetensors").unlink()
    assert "index.safetensors" not in str(remove(run, "five"))
    assert not (run / "index.safetensors").exists()


def test_the_command_adds_searches_and_deletes(run, capsys, monkeypatch):
    flag = f"--workdir={run}"
    monkeypatch.chdir(run.parent)
    (run.parent / "b.txt").write_text("w60 w61 w62", encoding="utf-8")
    assert main(["index", "add", flag, "--input=b.txt"]) == 0
    assert capsys.readouterr().out.startswith("added: 1; replaced: 0; entries now: ")
    assert main(["index", "search", flag, "--query=w60 w61 w62", "--count=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("w60 w61 w62: 2 found\n  1.000  id ") and "b.txt:1" in out
    assert main(["index", "search", flag, "--query=w60", "--task=two", "--count=1"]) == 0
    assert " two " in capsys.readouterr().out
    assert main(["index", "delete", flag, "--source=b.txt"]) == 0
    assert capsys.readouterr().out == "deleted: 1\n"
    assert main(["index", "delete", flag, "--source=b.txt"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add"], "name what is to be added"),
        (["add", "--query=w1"], "--query is of 'moecl index search'"),
        (["add", "--task=two", "--embedding=wordlama"], "is not one of frozen"),
        (["add", "--task=six"], "'six' is not finished"),
        (["delete"], "name the entries to delete"),
        (["search"], "name what to search for"),
        (["search", "--query= "], "text 0 is empty"),
        (["search", "--query=w1", "--count=0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, arguments, said):
    before = (run / "index.safetensors").read_bytes()
    assert main(["index", *arguments, f"--workdir={run}"]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert (run / "index.safetensors").read_bytes() == before
