"""`moecl new`: writes a config for files of examples."""

import argparse

from moecl_jax.cli.command import Command, path


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        type=_listed,
        action="extend",
        metavar="FILE,...",
        help="files (csv, tsv, json, jsonl) of examples, or folders of them; may be given several "
        "times. Each file is a task, but files that are called train, dev or validation, and test "
        "(also NAME_train, NAME_test) are the splits of one",
    )
    parser.add_argument(
        "--config", required=True, type=path, metavar="FILE.py", help="the config to write"
    )
    parser.add_argument(
        "--text", type=_listed, default=[], metavar="COL,...", help="the column of the text"
    )
    parser.add_argument("--label", default="", metavar="COL", help="the column of the label")
    parser.add_argument(
        "--response",
        default="",
        metavar="COL",
        help="the column of a free text that the model is to write, in place of a label",
    )
    parser.add_argument(
        "--task",
        type=_listed,
        action="extend",
        default=[],
        metavar="NAME,...",
        help="names of the tasks, in the order of the files (default: the files' names)",
    )
    parser.add_argument(
        "--base",
        default="smollm2-135m",
        metavar="MODEL",
        help="the frozen LLM: a Hugging Face folder, a .gguf file, or a name that 'moecl train' "
        "takes (default: smollm2-135m)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.config.new import write_config
    from moecl_jax.data.guess import Columns
    from moecl_jax.errors import UserError, printable

    if arguments.label and arguments.response:
        raise UserError("--label and --response exclude each other: a task has one kind of answer")
    written = write_config(
        arguments.config,
        arguments.data,
        columns=Columns(tuple(arguments.text), arguments.label, arguments.response),
        names=arguments.task,
        base=arguments.base,
    )
    print("\n".join(map(printable, written.notes)))
    print(f"\nConfig: {written.path}; next: moecl check --config={written.path}")
    return 0


COMMAND = Command(
    name="new",
    summary="guess the tasks in files of examples, and write a config that trains on them",
    example="moecl new --data=comments.csv --config=comments.py",
    add_arguments=_add_arguments,
    run=_run,
)
