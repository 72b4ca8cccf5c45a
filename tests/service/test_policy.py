"""Decisions by files of thresholds, and which files are refused."""

import hashlib

import pytest
from scored import thresholds

from moecl_jax.decisions.calibration import Calibration
from moecl_jax.errors import UserError
from moecl_jax.service.policy import Policy, read_policy

LABELS = {"mail": ("ham", "spam"), "texts": ("ham", "spam"), "news": ("a", "b", "c")}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mail.json"
    thresholds((0.9, 0.6)).save(path)
    return path


@pytest.mark.parametrize(
    ("spam", "decision"),
    [(0.05, "pass"), (0.1, "pass"), (0.3, "review"), (0.59, "review"), (0.6, "block")],
)
def test_decisions_follow_the_thresholds(file, spam, decision):
    policy = read_policy([f"mail={file}"], ["spam"], LABELS)
    assert policy.decide("mail", {"spam": spam, "ham": 1 - spam}) == decision
    assert policy.decide("texts", {"spam": spam, "ham": 1 - spam}) == "review"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (policy.version("mail"), policy.version("texts")) == (digest[:12], None)


def test_without_thresholds_a_person_reviews_all():
    assert read_policy([], [], LABELS).decide("mail", {"ham": 1.0, "spam": 0.0}) == "review"
    assert Policy().version("mail") is None


def test_a_single_task_with_the_labels_need_not_be_named(file):
    policy = read_policy([str(file)], ["spam"], {"mail": ("spam", "ham"), "news": ("a", "b")})
    assert policy.decide("mail", {"ham": 0.95, "spam": 0.05}) == "pass"


@pytest.mark.parametrize(
    ("given", "block", "message"),
    [
        ("{file}", ["spam"], "tasks with these labels: mail, texts. Name the task by"),
        ("news={file}", ["spam"], "they are for the labels ham, spam"),
        (
            "mail={file}",
            [],
            "needs --block=LABEL, the label whose texts are blocked; labels are ha",
        ),
        (
            "mail={file}",
            ["spma"],
            "--block=spma: no task with thresholds has this label; did you m",
        ),
        ("mail={folder}/none", ["spam"], "none"),
        ("mail={folder}/other", ["spam"], "other: no JSON"),
    ],
)
def test_mistakes(file, given, block, message):
    (file.parent / "other").write_text("{")
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        read_policy([given.format(file=file, folder=file.parent)], block, LABELS)
    assert message in str(caught.value)


def test_two_files_for_one_task_and_labels_without_thresholds(file):
    with pytest.raises(UserError, match="task 'mail' has thresholds already"):
        read_policy([f"mail={file}"] * 2, ["spam"], LABELS)
    with pytest.raises(UserError, match="no task with thresholds has this label"):
        read_policy([], ["spam"], LABELS)


def test_thresholds_of_plain_scores_are_refused(tmp_path):
    path = tmp_path / "scores.json"
    thresholds((0.5, 0.9), calibration=Calibration(2.0, shift=10.0)).save(path)
    with pytest.raises(UserError, match="expected the shape"):
        read_policy([f"mail={path}"], ["spam"], LABELS)
