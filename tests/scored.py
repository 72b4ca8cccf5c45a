"""Populations of scored samples whose precision above any threshold is known."""

import dataclasses

import numpy as np
from scipy.special import expit, logit, softmax

from moecl_jax.decisions import GUARANTEED, Samples, Thresholds
from moecl_jax.decisions.calibration import Calibration

LABELS = ("ham", "spam")


def binary(probabilities, gold, labels=LABELS):
    """Samples of two labels from the probability of the second."""
    p = np.asarray(probabilities, np.float64)
    ids = [str(number) for number in range(len(p))]
    gold = None if gold is None else np.asarray(gold, np.int64)
    return Samples(ids, labels, two(p), gold)


def two(p):
    """Shares of two labels `[N, 2]` from that of the second."""
    return np.stack([1 - p, p], axis=1)


def calibrated(generator, count, spread=3.0, sharper=1.0):
    """Scores that tell the truth for `sharper=1`; above it they are too sure of themselves."""
    z = generator.normal(0.0, spread, count)
    return binary(expit(sharper * z), generator.random(count) < expit(z))


_STEPS = np.array([0.03, 0.2, 0.05, 0.45, 0.6, 0.97, 0.85, 0.99])


def step_at(p):
    """How likely the second label is in `stepped`."""
    return _STEPS[np.minimum((8 * p).astype(int), 7)]


def stepped(generator, count):
    """Precision falls, rises and falls again with the score: no monotone assumption holds."""
    p = generator.random(count)
    return binary(p, generator.random(count) < step_at(p))


def plain(generator, count):
    """Scores that are no probabilities."""
    samples = calibrated(generator, count)
    return dataclasses.replace(samples, scores=40 + 7 * logit(samples.scores[:, 1]))


def three(generator, count):
    """Three labels, with scores that are too sure of themselves."""
    logits = generator.normal(0.0, 2.0, (count, 3))
    cuts = softmax(logits, axis=1).cumsum(axis=1)[:, :2]
    gold = (cuts < generator.random((count, 1))).sum(axis=1)
    ids = [str(number) for number in range(count)]
    return Samples(ids, ("a", "b", "c"), softmax(2 * logits, axis=1), gold)


POPULATIONS = {  # how samples are drawn, and how likely each label is by their scores, [N, C]
    "calibrated": (calibrated, lambda scores: scores),
    "too sure": (
        lambda generator, count: calibrated(generator, count, sharper=3.0),
        lambda scores: two(expit(logit(np.clip(scores[:, 1], 1e-300, 1 - 1e-16)) / 3.0)),
    ),
    "no monotone precision": (stepped, lambda scores: two(step_at(scores[:, 1]))),
    "plain scores": (plain, lambda scores: two(expit((scores - 40) / 7))),
    "three labels": (three, lambda scores: softmax(np.log(scores) / 2, axis=1)),
}


def thresholds(values=(0.9, 0.6), labels=LABELS, **changes):
    """Thresholds that are given, not chosen."""
    fields = {
        "labels": labels,
        "values": values,
        "reasons": {},
        "target": 0.9,
        "confidence": 0.95,
        "rule": GUARANTEED,
        "calibration": Calibration(),
        "samples": 100,
    }
    return Thresholds(**(fields | changes))
