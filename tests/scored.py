"""Populations of scored samples whose precision above any threshold is known."""

import numpy as np
from scipy.special import expit

from moecl_jax.decisions import GUARANTEED, Samples, Thresholds
from moecl_jax.decisions.calibration import Calibration

LABELS = ("ham", "spam")


def binary(probabilities, gold, labels=LABELS):
    """Samples of two labels from the probability of the second."""
    p = np.asarray(probabilities, np.float64)
    ids = [str(number) for number in range(len(p))]
    gold = None if gold is None else np.asarray(gold, np.int64)
    return Samples(ids, labels, np.stack([1 - p, p], axis=1), gold)


def calibrated(generator, count, spread=1.5, sharper=1.0):
    """Scores that tell the truth for `sharper=1`; above it they are too sure of themselves."""
    z = generator.normal(0.0, spread, count)
    return binary(expit(sharper * z), generator.random(count) < expit(z))


def stepped(generator, count):
    """Precision falls, rises and falls again with the score: no monotone assumption holds."""
    p = generator.random(count)
    steps = np.array([0.03, 0.2, 0.05, 0.45, 0.6, 0.97, 0.85, 0.99])
    truth = steps[np.minimum((8 * p).astype(int), 7)]
    return binary(p, generator.random(count) < truth)


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
