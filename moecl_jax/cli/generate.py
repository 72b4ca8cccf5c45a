"""`moecl generate`: writes answers."""

import argparse

from moecl_jax.cli.command import Command, add_files, add_workdir, report_rows
from moecl_jax.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument("--task", required=True, metavar="NAME", help="the task to apply")
    parser.add_argument("--prompt", metavar="TEXT", help="the text to answer")
    add_files(parser, 'the "response"', required=False)
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="the most tokens of an answer (default: data.max_response)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the likeliest token each time (the default); above 0 tokens are sampled",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="sample from the k likeliest tokens (0, default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens that together reach this probability (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    parser.add_argument(
        "--base",
        action="store_true",
        help="answer with the frozen model alone, as before any training",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.files import Files, generate_file
    from moecl_jax.serving.generation import Sampling
    from moecl_jax.serving.session import open_run

    given = (arguments.input, arguments.output)
    if (arguments.prompt is None) == (given == (None, None)) or (None in given and any(given)):
        raise UserError("give either --prompt, or both --input and --output")
    options = {
        "max_tokens": arguments.max_tokens,
        "sampling": Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        "seed": arguments.seed,
        "base": arguments.base,
    }
    task = arguments.task
    if arguments.prompt is not None:
        for piece in open_run(arguments.workdir).stream(arguments.prompt, task, **options):
            print(piece, end="", flush=True)
        print()
        return 0
    files = Files(arguments.input, arguments.output, arguments.format, arguments.field)
    files.check()
    answered = generate_file(open_run(arguments.workdir), task, files, **options)
    return report_rows("Answers", arguments.output, answered.bad_rows)


COMMAND = Command(
    name="generate",
    summary="write answers to one text, shown as it is written, or to the rows of a file",
    example="moecl generate --workdir=runs/first --task=NAME --prompt='What does BRB mean?'",
    add_arguments=_add_arguments,
    run=_run,
)
