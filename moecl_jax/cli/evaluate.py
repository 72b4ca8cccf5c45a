"""`moecl evaluate`: scores a trained run."""

import argparse
import json

from moecl_jax.cli.command import Command, add_workdir


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument("--split", default="test", help="the split to score (default: test)")
    parser.add_argument(
        "--perturb",
        default="",
        metavar="KIND,...",
        help="score the texts with small changes too: typos, swaps, case, homoglyphs, homophones, "
        "split (of Chinese characters)",
    )
    parser.add_argument(
        "--perturb-rate",
        type=float,
        default=0.1,
        metavar="PART",
        help="part of the places in a text that each kind changes (default: 0.1)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.session import open_run

    found = open_run(arguments.workdir).evaluate(
        arguments.split,
        perturbations=[kind for kind in arguments.perturb.split(",") if kind],
        perturbation_rate=arguments.perturb_rate,
    )
    print(json.dumps(found, indent=2))
    return 0


COMMAND = Command(
    name="evaluate",
    summary="score a trained run on all its tasks and print the result as JSON",
    example="moecl evaluate --workdir=runs/first --split=test\n"
    "  moecl evaluate --workdir=runs/first --perturb=typos,swaps,case,homoglyphs",
    add_arguments=_add_arguments,
    run=_run,
)
