"""`moecl ab`: how much more one system decides than another, at equal precision."""

import argparse

from moecl_jax.cli.command import Command, path
from moecl_jax.cli.samples import add_choice, add_fields


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for arm, meaning in (
        ("baseline", "any system's samples: an id and scores are enough"),
        ("candidate", "the same samples, scored by the system that may replace it"),
    ):
        parser.add_argument(f"--{arm}", required=True, type=path, metavar="FILE", help=meaning)
    add_choice(parser)
    for arm in ("baseline", "candidate"):
        parser.add_argument(
            f"--{arm}-score",
            metavar="FIELD",
            help=f"scores in the {arm}'s file (default: what moecl predict writes, or score)",
        )
    add_fields(parser)
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE.html",
        help="the page; FILE.md, FILE.csv and FILE_changed.csv are written beside it (default: "
        "the tables are printed)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax import decisions
    from moecl_jax.report.decisions import ComparisonPage, write_comparison

    fields = {name: getattr(arguments, name) for name in ("id", "gold", "positive")}
    candidate = decisions.read_samples(
        arguments.candidate, score=arguments.candidate_score, needs_ids=True, **fields
    )
    baseline = decisions.read_samples(
        arguments.baseline,
        score=arguments.baseline_score,
        labels=candidate.labels,
        needs_ids=True,
        **fields,
    )
    comparison = decisions.compare(
        baseline,
        candidate,
        arguments.target_precision,
        confidence=arguments.confidence,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    files = {"baseline": str(arguments.baseline), "candidate": str(arguments.candidate)}
    if arguments.output is None:
        print(ComparisonPage(comparison, files).markdown(), end="")
        return 0
    written = write_comparison(comparison, files, arguments.output)
    print(ComparisonPage(comparison, files).outcome)
    print(f"Written: {', '.join(map(str, written))}")
    return 0


COMMAND = Command(
    name="ab",
    summary="compare two systems by the share of samples that they decide at a target precision",
    example="moecl ab --baseline=old.csv --candidate=labels.jsonl --target-precision=0.9 "
    "--output=ab.html",
    add_arguments=_add_arguments,
    run=_run,
)
