"""Decisions by thresholds, and their file."""

import json

import numpy as np
import pytest
from scored import thresholds

from moecl_jax.decisions import PLAIN, Thresholds
from moecl_jax.decisions.calibration import Calibration
from moecl_jax.decisions.thresholds import _digest
from moecl_jax.errors import UserError


def test_a_label_is_decided_from_its_threshold_on():
    found = thresholds().decide(
        [
            {"ham": 0.9, "spam": 0.1},
            {"spam": 0.1001, "ham": 0.8999},
            {"ham": 0.4, "spam": 0.6},
            {"ham": 0.5, "spam": 0.5},
        ]
    )
    assert found == ["ham", None, "spam", None]


def test_no_sample_is_decided_for_two_labels_however_low_the_thresholds_are():
    three = thresholds((0.0, 0.0, 0.0), ("a", "b", "c"))
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 1000)
    assert three.decide(rows) == ["abc"[index] for index in rows.argmax(axis=1)]
    # Two labels are equally likely: nobody can say which is meant.
    assert three.decide([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.3, 0.4, 0.3]]) == [None, None, "b"]
    assert thresholds((None, 0.0)).decide([[0.9, 0.1], [0.1, 0.9]]) == [None, "spam"]


def test_a_decision_does_not_depend_on_the_others():
    rows = np.random.default_rng(1).dirichlet(np.ones(3), 200)
    for calibration in (Calibration(), Calibration(0.7)):
        found = thresholds((0.7, 0.6, 0.5), ("a", "b", "c"), calibration=calibration)
        together = found.decide(rows)
        assert together == [found.decide([row])[0] for row in rows]
        assert 20 < sum(label is None for label in together) < 180


def test_plain_scores_are_decided_on_both_sides():
    found = thresholds((0.5, 0.9), calibration=Calibration(2.0, shift=10.0))
    # logit(0.9) is 2.197, so spam begins at 10 + 2 * 2.197.
    assert found.decide([9.9, 10.0, 14.39, 14.40]) == ["ham", None, None, "spam"]


def test_nothing_gives_nothing():
    assert thresholds().decide([]) == []
    assert thresholds().decide(np.zeros((0, 2))) == []


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([{"ham": 1.0}], "sample 0: expected the probabilities of ham, spam"),
        ([[0.1, 0.2, 0.7]], r"\('N', 2\)"),
        ([0.3, 0.7], r"\('N', 2\)"),
        ([[np.nan, 0.5]], "finite"),
        ([["a", "b"]], "expected numbers"),
    ],
)
def test_other_scores_are_refused(scores, message):
    with pytest.raises(UserError, match=message):
        thresholds().decide(scores)


@pytest.mark.parametrize(
    "found",
    [
        thresholds(),
        thresholds((None, 0.7), reasons={"ham": "ünreachable"}, rule=PLAIN, confidence=None),
        thresholds(calibration=Calibration(0.25, shift=-3.0)),
    ],
    ids=["all", "some", "plain scores"],
)
def test_what_is_saved_is_loaded_and_has_the_same_bytes(found, tmp_path):
    for name in ("a", "b"):
        found.save(tmp_path / name)
    assert Thresholds.load(tmp_path / "a") == found
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_no_longer_the_same_is_refused(tmp_path):
    path = tmp_path / "t.json"
    thresholds().save(path)
    content = json.loads(path.read_text())
    for change, message in (
        ({"thresholds": {"ham": 0.1, "spam": 0.6}}, "digest"),
        ({"version": 2}, "version 2.*version 1 is read"),
        ({"kind": "other"}, "no file of thresholds"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            Thresholds.load(path)
    for name, value in (("labels", None), ("thresholds", {"ham": 0.1}), ("temperature", "hot")):
        changed = {key: content[key] for key in content if key != "digest"} | {name: value}
        path.write_text(json.dumps(changed | {"digest": _digest(changed)}))
        with pytest.raises(UserError, match="a part is missing or wrong"):
            Thresholds.load(path)
    path.write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        Thresholds.load(path)
    with pytest.raises(OSError, match="missing"):
        Thresholds.load(tmp_path / "missing")
