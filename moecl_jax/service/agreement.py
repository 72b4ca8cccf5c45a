"""When a text's label is settled, and how well two reviewers agree."""

from collections import Counter
from collections.abc import Sequence

AGREEING = 2
"""Opinions that must agree before a label is settled: the model's, and those of reviewers."""


def settled_label(model: str, votes: Sequence[str]) -> str | None:
    """The label that is settled, or None if another reviewer has to look.

    The model counts as one opinion. So one reviewer who agrees with it settles a text. One who
    does not agree makes a second reviewer look, whose decision settles it if there are two labels.

    Args:
      model: label that the model gives.
      votes: labels that reviewers gave, one a reviewer.
    """
    if not votes:
        return None
    counts = Counter([model, *votes]).most_common(2)
    (label, most), rest = counts[0], counts[1:]
    tied = bool(rest) and rest[0][1] == most
    return label if most >= AGREEING and not tied else None


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa: agreement of two raters beyond that of chance; 1 is perfect, 0 is chance.

        kappa = (p_o - p_e) / (1 - p_e)

    p_o is the share of texts on which both agree, and p_e = sum_label p_1(label) p_2(label) the
    share that is expected of raters who draw each label as often, by chance. Source: J. Cohen, A
    coefficient of agreement for nominal scales, Educational and Psychological Measurement 20
    (1960), equation 1.

    Args:
      pairs: labels of the first and of the second rater, a pair for each text.

    Returns:
      Kappa; None where it is not defined: without pairs, or if both give one same label always.
    """
    count = len(pairs)
    first = Counter(one for one, _ in pairs)
    second = Counter(other for _, other in pairs)
    # In whole numbers, so that p_e = 1 is recognised: p_o = agreed / n, p_e = chance / n^2.
    agreed = sum(one == other for one, other in pairs)
    chance = sum(number * second[label] for label, number in first.items())
    if chance == count**2:
        return None
    return (agreed * count - chance) / (count**2 - chance)
