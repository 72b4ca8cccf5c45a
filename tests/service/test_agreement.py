"""Cohen's kappa and the rule by which a label is settled."""

import math
import random

import pytest

from moecl_jax.service.agreement import cohen_kappa, settled_label


def table(both_yes, yes_no, no_yes, both_no):
    counts = {("y", "y"): both_yes, ("y", "n"): yes_no, ("n", "y"): no_yes, ("n", "n"): both_no}
    return [pair for pair, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("pairs", "kappa"),
    [
        # p_o = 0.7, p_e = 0.5: the usual example of 50 grant proposals
        (table(20, 5, 10, 15), 0.4),
        # the same p_o = 0.6, with p_e = 0.54 and 0.46
        (table(45, 15, 25, 15), (0.6 - 0.54) / 0.46),
        (table(25, 35, 5, 35), (0.6 - 0.46) / 0.54),
        (table(10, 0, 0, 10), 1.0),
        (table(5, 5, 5, 5), 0.0),
        (table(0, 10, 10, 0), -1.0),
    ],
)
def test_kappa_is_that_of_the_textbook(pairs, kappa):
    assert cohen_kappa(pairs) == pytest.approx(kappa, abs=1e-12)


@pytest.mark.parametrize("pairs", [[], [("a", "a")] * 3])
def test_kappa_without_a_choice_is_not_defined(pairs):
    assert cohen_kappa(pairs) is None


def test_kappa_of_several_labels_is_the_equation_in_floating_point():
    generator = random.Random(0)
    for _ in range(50):
        pairs = [tuple(generator.choices("abcd", k=2)) for _ in range(generator.randint(5, 60))]
        first, second = zip(*pairs, strict=True)
        observed = sum(a == b for a, b in pairs) / len(pairs)
        chance = math.fsum(
            first.count(x) / len(pairs) * (second.count(x) / len(pairs)) for x in "abcd"
        )
        assert cohen_kappa(pairs) == pytest.approx((observed - chance) / (1 - chance))


@pytest.mark.parametrize(
    ("model", "votes", "settled"),
    [
        ("a", [], None),
        ("a", ["a"], "a"),
        ("a", ["b"], None),
        ("a", ["b", "b"], "b"),
        ("a", ["b", "a"], "a"),
        ("a", ["b", "c"], None),
        ("a", ["b", "c", "c"], "c"),
        ("a", ["a", "b"], "a"),
        ("a", ["a", "b", "b"], None),
        ("a", ["a", "b", "b", "b"], "b"),
    ],
)
def test_a_label_is_settled_by_two_that_agree(model, votes, settled):
    assert settled_label(model, votes) == settled
