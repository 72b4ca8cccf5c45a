"""Which samples can be decided by the model alone, at a precision that is asked for.

Here belong the thresholds above which a label is decided without a person, the rules by which they
are chosen on validation samples, what they give on test samples (the share that is decided and the
precision reached), and the comparison of two systems by that share. It starts from scores and gold
labels, whoever wrote them: no model runs here, nothing imports JAX, and how a result is shown
belongs to report/. Here too belongs whether scores have moved away from those that thresholds
were chosen on.

    from moecl_jax import decisions

    validation, test = decisions.read_samples("labels.jsonl").halves(seed=0)
    thresholds = decisions.choose(validation, target=0.9)
    thresholds.decide([{"spam": 0.97, "ham": 0.03}])   # ["spam"], or [None]: a person decides
    decisions.strip(test, thresholds).total.rate       # the share that is decided
    thresholds.save("thresholds.json")

samples.py      samples with scores and gold labels, read from JSON lines or CSV
calibration.py  temperature, and scores that are no probabilities
thresholds.py   the thresholds, their file, and the decision
choosing.py     the two rules that choose thresholds
stripping.py    shares and precisions on test samples, with intervals
ab.py           two systems on the same samples
drift.py        whether scores are still those of the validation samples
"""

from moecl_jax.decisions.ab import Comparison, compare
from moecl_jax.decisions.choosing import Validation, choose
from moecl_jax.decisions.drift import Drift
from moecl_jax.decisions.samples import Samples, read_samples
from moecl_jax.decisions.stripping import Estimate, Row, Stripped, strip
from moecl_jax.decisions.thresholds import GUARANTEED, PLAIN, Thresholds

__all__ = [
    "GUARANTEED",
    "PLAIN",
    "Comparison",
    "Drift",
    "Estimate",
    "Row",
    "Samples",
    "Stripped",
    "Thresholds",
    "Validation",
    "choose",
    "compare",
    "read_samples",
    "strip",
]
