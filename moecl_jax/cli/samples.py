"""Arguments of the commands that read samples which a system has scored."""

import argparse


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how thresholds are chosen."""
    parser.add_argument(
        "--target-precision",
        required=True,
        type=float,
        metavar="P",
        help="the precision that each label's decisions should have, above 0 and below 1",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="P",
        help="how sure the rule 'guaranteed' is that all labels reach it (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        action="store_true",
        help="calibrate probabilities by a temperature, fitted on validation samples",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="chooses the random halves and the bootstrap's resamples (default: %(default)s)",
    )


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the fields of a sample."""
    parser.add_argument(
        "--id", default="id", metavar="FIELD", help="a sample's name (default: %(default)s)"
    )
    parser.add_argument(
        "--gold", metavar="FIELD", help="its true label (default: gold, else label)"
    )
    parser.add_argument(
        "--positive",
        metavar="LABEL",
        help="the label that a number stands for, where scores are one number a sample (default: "
        "the last in the order of the alphabet)",
    )
