"""`moecl strip`: the share of samples that can be decided alone at a target precision."""

import argparse
import sys

from moecl_jax.cli.command import Command, path
from moecl_jax.cli.samples import add_choice, add_fields


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions",
        required=True,
        type=path,
        metavar="FILE",
        help="the test samples: what moecl predict wrote, or another system's JSON lines or table "
        "(.csv, .tsv) with scores",
    )
    add_choice(parser)
    parser.add_argument(
        "--calibration",
        type=path,
        metavar="FILE",
        help="the validation samples, on which thresholds are chosen (default: a random half of "
        "the predictions, and the other half is tested)",
    )
    parser.add_argument(
        "--score",
        metavar="FIELD",
        help="probabilities by label, or one number (default: what moecl predict writes, or score)",
    )
    add_fields(parser)
    parser.add_argument(
        "--thresholds",
        type=path,
        metavar="FILE.json",
        help="gets the thresholds of the rule 'guaranteed', to be used on samples to come",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax import decisions
    from moecl_jax.report.decisions import strip_text

    fields = {name: getattr(arguments, name) for name in ("score", "gold", "id", "positive")}
    if arguments.calibration is None:
        samples = decisions.read_samples(arguments.predictions, **fields)
        validation, test = samples.halves(arguments.seed)
        where = f"a random half of {arguments.predictions} (seed {arguments.seed})"
        left_out = samples.left_out
    else:
        validation = decisions.read_samples(arguments.calibration, **fields)
        test = decisions.read_samples(arguments.predictions, labels=validation.labels, **fields)
        where = str(arguments.calibration)
        left_out = validation.left_out + test.left_out
    fitted = decisions.Validation(
        validation, temperature=arguments.temperature, seed=arguments.seed
    )
    found = {}
    for rule in (decisions.GUARANTEED, decisions.PLAIN):
        thresholds = fitted.choose(
            arguments.target_precision, rule=rule, confidence=arguments.confidence
        )
        found[rule] = thresholds, decisions.strip(test, thresholds, seed=arguments.seed)
    print(f"Thresholds chosen on {len(validation)} samples, {where}; {len(test)} others tested.")
    if left_out:
        print(f"Lines with an error, left out: {left_out}", file=sys.stderr)
    if validation.positive is not None:
        print(f"Scores stand for the label {validation.positive} (--positive names another).")
    print(strip_text(found))
    if arguments.thresholds is not None:
        found[decisions.GUARANTEED][0].save(arguments.thresholds)
        print(f"Thresholds of the rule {decisions.GUARANTEED}: {arguments.thresholds}")
    return 0


COMMAND = Command(
    name="strip",
    summary="find the share of samples that can be decided alone at a target precision",
    example="moecl strip --predictions=labels.jsonl --target-precision=0.9 "
    "--thresholds=thresholds.json",
    add_arguments=_add_arguments,
    run=_run,
)
