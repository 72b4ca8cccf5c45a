"""`moecl generate`: writes answers."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path, report_lines
from moecl_jax.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument("--task", required=True, metavar="NAME", help="the task to apply")
    parser.add_argument("--prompt", metavar="TEXT", help="the text to answer")
    parser.add_argument(
        "--input",
        type=path,
        metavar="FILE.jsonl",
        help='in place of --prompt: a JSON object a line, with "text" or "input_ids" ("-": '
        "standard input)",
    )
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE.jsonl",
        help='gets each object of --input with its "response", or with an "error" ("-": standard '
        "output)",
    )
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
    from moecl_jax.serving.files import check_files, generate_file
    from moecl_jax.serving.generation import Sampling
    from moecl_jax.serving.session import open_run

    files = (arguments.input, arguments.output)
    if (arguments.prompt is None) == (files == (None, None)) or (None in files and any(files)):
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
    check_files(arguments.input, arguments.output)
    session = open_run(arguments.workdir)
    bad_lines = generate_file(session, task, arguments.input, arguments.output, **options)
    return report_lines("Answers", arguments.output, bad_lines)


COMMAND = Command(
    name="generate",
    summary="write answers to one text, shown as it is written, or to the lines of a JSONL file",
    example="moecl generate --workdir=runs/first --task=NAME --prompt='What does BRB mean?'",
    add_arguments=_add_arguments,
    run=_run,
)
