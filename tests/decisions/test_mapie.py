"""The thresholds of the rule `guaranteed` are those of MAPIE's risk control."""

import warnings

import numpy as np
import pytest
from scored import calibrated, stepped

from moecl_jax.decisions import choose
from moecl_jax.decisions.choosing import Validation, p_values

pytestmark = pytest.mark.oracle


def fallback(base, shares):
    """The fallback procedure as MAPIE's kind of class."""

    class Fallback(base):
        def _init_state(self, *_):
            self.place, self.handed_on = 0, 0.0

        def _select_next_hypothesis(self, p_values):
            while self.place < len(shares):
                if p_values[self.place] <= self.handed_on + shares[self.place]:
                    return self.place
                self.place, self.handed_on = self.place + 1, 0.0
            return None

        def _local_significance_levels(self):
            return self.handed_on + shares

        def _update_on_reject(self, hypothesis_index):
            self.handed_on += shares[hypothesis_index]
            self.place = hypothesis_index + 1

    return Fallback()


@pytest.mark.parametrize("draw", [calibrated, stepped])
@pytest.mark.parametrize("target", [0.8, 0.9, 0.95])
def test_p_values_and_thresholds_are_mapies(draw, target):
    """But for a rounding: MAPIE 1.6 counts errors as ceil(n (k / n)), which may be k + 1.

    So its p-values are sometimes those of one error more, and its thresholds never lower.
    """
    pytest.importorskip("mapie")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from mapie.risk_control import BinaryClassificationController, BinaryRisk
        from mapie.risk_control.fwer_control import FWERProcedure

    errors = BinaryRisk(
        risk_occurrence=lambda gold, decided: gold != decided,
        risk_condition=lambda _, decided: decided == 1,
        higher_is_better=False,
    )
    thresholds, rounded = [], []
    for seed in range(8):
        samples = draw(np.random.default_rng(seed), 1200)
        ours = choose(samples, target, seed=seed)
        validation = Validation(samples, seed=seed)
        tested, gold = validation.tested, samples.gold[validation.tested]
        for label in (0, 1):
            candidates, shares = validation.plan(label, target, 0.05 / 2)
            own = samples.scores[tested, label]
            own = np.where(own > 0.5, own, -1.0)  # a label that is not the best is not decided
            controller = BinaryClassificationController(
                predict_function=lambda p: np.stack([1 - p, p], axis=1),
                risk=errors,
                target_level=1 - target,
                confidence_level=1 - 0.05 / 2,
                best_predict_param_choice="predicted_positive_fraction",
                list_predict_params=candidates,
                fwer_method=fallback(FWERProcedure, shares),
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where no threshold is valid
                controller.calibrate(own, gold == label)
            decided = np.sum(own >= candidates[:, None], axis=1)
            wrong = np.sum((own >= candidates[:, None]) & (gold != label), axis=1)
            up = (wrong / decided) * decided > wrong
            found, expected = controller.p_values[:, 0], p_values(decided, wrong, target)
            np.testing.assert_allclose(found[~up], expected[~up], rtol=1e-9)
            assert np.all(found[up] > expected[up])
            assert np.all(found[up] <= p_values(decided, wrong + 1, target)[up] * (1 + 1e-9))
            rounded.append(np.mean(up))
            theirs = min(controller.valid_predict_params, default=np.inf)
            mine = np.inf if ours.values[label] is None else ours.values[label]
            assert mine <= theirs
            thresholds.append((mine, theirs))
    assert np.mean(rounded) < 0.1
    assert np.mean([mine == theirs for mine, theirs in thresholds]) >= 0.75
    assert np.isfinite(thresholds).any()
