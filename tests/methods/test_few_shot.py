"""`zero_shot` and `few_shot`: nothing is trained, and what is shown is what is said."""

import dataclasses
import json

import numpy as np
import pytest
from records import read, repeat_task
from streams import (
    assert_bit_equal,
    evaluator_of,
    restored,
    tiny_config,
    tiny_settings,
    training_of,
)

from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import export_peft
from moecl_jax.methods import METHODS
from moecl_jax.methods.few_shot import FewShot, Options, Shown, most_alike
from moecl_jax.methods.preceding import NOTHING
from moecl_jax.runs.results import Results
from moecl_jax.runs.undo import remove
from moecl_jax.service.labelling import Labeller
from moecl_jax.serving.session import open_run
from moecl_jax.training.plan import measure_training, plan_training
from moecl_jax.training.trainer import StreamTraining, train

TEXTS = ["w9 w8 w30", "w20 w3 w50 w2", "w11 w12"]
STREAM = {"tasks": ("two", "five")}
ANSWER = 66  # id of the template's last word; a word's id is 2 more than its number


def settings_of(folder, choice="balanced", k=3, **changes):
    values = {"few_shot__choice": choice, "few_shot__k": k, **STREAM, **changes}
    return tiny_settings(folder, method="few_shot", **values)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished streams of two tasks by the name of what they show."""
    folder = tmp_path_factory.mktemp("shown")
    found = {"zero_shot": tiny_settings(folder, method="zero_shot", **STREAM)}
    found |= {choice: settings_of(folder, choice) for choice in ("balanced", "nearest")}
    found["none"] = settings_of(folder, k=0)
    for name, settings in found.items():
        train(settings, folder / name)
    return folder


def shown_in(workdir, task):
    """The demonstrations that a finished task keeps, as lists of ids."""
    _, state, _ = restored(workdir)
    kept = state.finished[task].expert
    return [ids.tolist() for ids in np.split(kept["tokens"], np.cumsum(kept["lengths"])[:-1])]


def ids_of(text):
    return [2 + int(word[1:]) for word in text.split()]


def by_hand(folder, task, texts, demonstrations):
    """Predictions of the frozen model for texts after demonstrations, given as ids.

    Args:
      demonstrations: those of each text, in their order in the prompt.
    """
    words = [[*ids_of(text), ANSWER] for text in texts]
    prompts = [
        {"input_ids": [*(token for piece in before for token in piece), *own]}
        for before, own in zip(demonstrations, words, strict=True)
    ]
    return open_run(folder / "zero_shot").predict(prompts, task)


def assert_close(ours, theirs):
    assert [each.label for each in ours] == [each.label for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-4)


# What is chosen


@pytest.mark.parametrize("choice", ["random", "balanced", "nearest"])
def test_fewer_examples_are_the_first_of_more_and_depend_on_seed_and_task(choice):
    labels = np.array([0, 0, 0, 1, 1, 2] * 5)

    def chosen(k, seed=0, index=0, pool=7):
        return Shown(Options(k, choice, pool)).of_task(seed, index, labels)

    most = chosen(12)
    assert len(most) == len(set(most)) == (7 if choice == "nearest" else 12)
    for k in (1, 5):
        assert chosen(k) == (most if choice == "nearest" else most[:k])
    assert chosen(0) == []
    assert chosen(12, seed=1) != most
    if choice == "balanced":
        counts = np.bincount(labels[most])
        assert counts.max() - counts.min() <= 1
    else:
        assert chosen(12, index=1) != most


def test_all_examples_are_shown_where_there_are_no_more():
    for choice in ("random", "balanced", "nearest"):
        found = Shown(Options(50, choice)).of_task(0, 0, np.array([0, 1, 1]))
        assert sorted(found) == [0, 1, 2]


def test_the_most_alike_by_hand():
    # The pool's mean is (0, 0), so these are cosines with (1, 0): 1, -1, 0 and 0.
    pool = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], np.float32)
    asked = np.array([[1.0, 0.0], [0.0, -3.0], [0.0, 0.0]], np.float32)
    assert most_alike(asked, pool, 3).tolist() == [[0, 2, 3], [3, 0, 1], [0, 1, 2]]
    # Of these the mean is (5, 5): all lies in one direction as seen from 0.
    assert most_alike(asked + 5, pool + 5, 1).tolist() == [[0], [3], [0]]
    assert most_alike(asked, pool, 9).shape == (3, 4)


# What answers


def test_no_demonstrations_are_zero_shot(runs):
    ours, theirs = (Results.load(runs / name).content for name in ("none", "zero_shot"))
    for key in ("accuracy_matrix", "scored_accuracy_matrix", "random_init", "right", "steps"):
        assert ours[key] == theirs[key], key
    assert "demonstrations" not in ours and "demonstrations" not in theirs
    ours, theirs = (open_run(runs / name) for name in ("none", "zero_shot"))
    for task in STREAM["tasks"]:
        assert ours.predict(TEXTS, task) == theirs.predict(TEXTS, task)  # bit for bit


def test_zero_shot_is_the_untrained_model_for_ever(runs):
    results = Results.load(runs / "zero_shot")
    assert np.ptp(results.matrix, axis=0).max() == 0
    np.testing.assert_array_equal(results.matrix[0], results.random_init)
    # The best-scored label is the answer, so that of the tables is no other.
    assert results.content["scored_accuracy_matrix"] == results.content["accuracy_matrix"]
    assert results.metrics["bwt"] == results.metrics["forgetting"] == results.metrics["fwt"] == 0
    content = results.content
    assert content["steps"] == content["stored_examples"] == 0
    assert content["parameters"]["trained"] == content["parameters"]["stored"] == 0


def test_demonstrations_of_a_task_stand_before_each_of_its_texts(runs):
    session = open_run(runs / "balanced")
    for task in STREAM["tasks"]:
        shown = shown_in(runs / "balanced", task)
        assert len(shown) == 3
        expected = by_hand(runs, task, TEXTS, [shown[::-1]] * len(TEXTS))
        assert_close(session.predict(TEXTS, task), expected)


def test_kept_examples_are_prompts_with_their_labels(runs):
    lines = read(runs / "data" / "five_train.jsonl")
    known = {(*ids_of(line["text"]), ANSWER, *ids_of(line["label"])) for line in lines}
    for choice, count in (("balanced", 3), ("nearest", 48)):
        shown = shown_in(runs / choice, "five")
        assert len(shown) == count and set(map(tuple, shown)) <= known
    balanced = [ids[-1] for ids in shown_in(runs / "balanced", "five")]
    assert len(set(balanced)) == 3


def test_nearest_examples_stand_before_a_text_the_most_alike_last(runs):
    session = open_run(runs / "nearest")
    evaluator, state, _ = restored(runs / "nearest")
    for task in STREAM["tasks"]:
        kept, shown = state.finished[task].expert, shown_in(runs / "nearest", task)
        read_alone = [
            evaluator.features([example])[0]
            for example in (session.reader(task).read([{"text": text}])[0][1].example
                            for text in TEXTS)
        ]  # fmt: skip
        centre = kept["features"].mean(axis=0)
        demonstrations = []
        for feature in read_alone:
            own, pool = feature - centre, kept["features"] - centre
            cosines = pool @ own / np.linalg.norm(pool, axis=1) / np.linalg.norm(own)
            demonstrations.append([shown[place] for place in np.argsort(-cosines)[:3][::-1]])
        expected = by_hand(runs, task, TEXTS, demonstrations)
        assert_close(session.predict(TEXTS, task), expected)
        alone = [session.predict([text], task)[0] for text in TEXTS]
        assert_close(alone, expected)  # whatever the texts beside it


def test_results_count_what_is_shown_kept_and_left_out(runs):
    for choice, kept in (("balanced", 6), ("nearest", 96)):
        content = Results.load(runs / choice).content
        assert content["stored_examples"] == kept
        assert content["demonstrations"] == {"shown": [3.0, 3.0], "left_out": [0.0, 0.0]}
        assert content["steps"] == 0
        matrix = np.array(content["accuracy_matrix"])
        assert matrix[0][0] == matrix[1][0]  # a finished task is answered for ever alike
        zero = Results.load(runs / "zero_shot").matrix
        assert matrix[0][1] == zero[0][1]  # the second task was not seen
        assert content["task_free"]["acc"] is not None


def test_what_does_not_fit_the_context_is_left_out_and_counted(tmp_path):
    """And a task without validation examples needs none, for nothing is selected."""
    settings = settings_of(
        tmp_path, k=5, data__max_length=40, data__validation_fraction=0.0, tasks=("two",)
    )
    fields = {k: v for k, v in settings.definitions["two"].items() if k != "validation"}
    settings = settings.changed({"definitions": {**settings.definitions, "two": fields}})
    config = tmp_path / "model" / "config.json"
    sizes = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**sizes, "max_position_embeddings": 64}), encoding="utf-8")
    results = train(settings, tmp_path / "run")
    # A demonstration has 6 words, the template's and the label: 3 of them have 24 tokens.
    assert results["demonstrations"] == {"shown": [3.0], "left_out": [2.0]}
    assert results["sizes"]["validation"] == [0]


@pytest.mark.slow
def test_a_free_form_task_is_written_after_its_demonstrations(tmp_path):
    config = tiny_config(tmp_path, method="few_shot", few_shot__k=2, tasks=("repeat",))
    with config.unlocked():
        config.definitions.repeat = repeat_task(tmp_path / "data")
    config.data.max_length, config.data.max_response = 24, 4
    results = train(from_config(config), tmp_path / "run")
    assert results["demonstrations"]["shown"] == [2.0]
    session, shown = open_run(tmp_path / "run"), shown_in(tmp_path / "run", "repeat")
    text = "w11 w40 w41 w42"
    ids = [*shown[1], *shown[0], 13, 42, 43, 44, ANSWER]
    evaluator = session.evaluator
    [expected] = evaluator.generator.write(
        evaluator.starting.begin({}, 0), [np.array(ids, np.int32)], max_tokens=4
    )
    written = session.generate([text], "repeat")
    assert written == [session._text(expected)]
    assert "".join(session.stream(text, "repeat")) == written[0]
    bare = session.generate([text], "repeat", base=True)
    [untold] = evaluator.generator.write(
        evaluator.starting.begin({}, 0), [np.array(ids[-5:], np.int32)], max_tokens=4
    )
    assert bare == [session._text(untold)]


# What it is to a run


def test_a_killed_run_goes_on_as_the_uninterrupted_one(runs, tmp_path, monkeypatch):
    settings = settings_of(tmp_path, "nearest")
    original, count = StreamTraining.evaluate_all, [0]

    def killed(self, stream):
        count[0] += 1
        if count[0] == 3:  # after the second task
            raise KeyboardInterrupt
        return original(self, stream)

    monkeypatch.setattr(StreamTraining, "evaluate_all", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run")
    monkeypatch.undo()
    assert restored(tmp_path / "run")[1].answering == ["two"]
    train(settings, tmp_path / "run")
    (_, ours, _), (_, theirs, _) = restored(tmp_path / "run"), restored(runs / "nearest")
    assert_bit_equal(dict(ours.finished), dict(theirs.finished))
    ours, theirs = (Results.load(each).content for each in (tmp_path / "run", runs / "nearest"))
    for key in ("accuracy_matrix", "right", "task_free", "demonstrations"):
        assert ours[key] == theirs[key], key


@pytest.mark.slow
def test_demonstrations_are_read_once_for_all_texts_and_few_programs_are_compiled(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(StreamTraining, "_task_free", lambda *_: None)  # asks tasks again
    run = training_of(settings_of(tmp_path, tasks=("two", "five", "fourteen")), tmp_path / "run")
    preceder, reads = run.evaluator.preceder, []
    step = preceder.read_prefix

    def counted(*arguments):
        reads.append(arguments)
        return step(*arguments)

    preceder.read_prefix = counted
    run.run()
    # Each finished task is evaluated once, for its answers never change, and is read once for it.
    assert len(reads) == 3
    assert step._cache_size() == 1
    shapes = len(run.evaluator.scoring.shapes)
    assert run.evaluator._evaluation_step._cache_size() <= 2 * shapes  # with a prefix, and without
    session, reads[:] = open_run(tmp_path / "run"), []
    session.evaluator.preceder.read_prefix = counted
    for _ in range(3):
        session.predict(TEXTS, "two")
    assert len(reads) == 1


@pytest.mark.slow
def test_a_removed_task_is_shown_no_more_and_others_answer_as_before(tmp_path):
    settings = settings_of(tmp_path, "nearest", tasks=("two", "five", "fourteen"))
    run = training_of(settings, tmp_path / "run")
    run.run()
    shapes = len(run.evaluator.scoring.shapes)  # with demonstrations, and without
    assert run.evaluator._evaluation_step._cache_size() <= 2 * shapes
    before = {name: open_run(tmp_path / "run").predict(TEXTS, name) for name in ("two", "fourteen")}
    kept = shown_in(tmp_path / "run", "five")
    remove(tmp_path / "run", "five")
    session = open_run(tmp_path / "run")
    assert session.tasks == ["two", "fourteen"]
    assert {name: session.predict(TEXTS, name) for name in before} == before
    left = {tuple(ids) for name in before for ids in shown_in(tmp_path / "run", name)}
    assert not left & set(map(tuple, kept))


@pytest.mark.slow
def test_a_service_answers_as_the_session_with_programs_compiled_beforehand(runs):
    labeller = Labeller(open_run(runs / "nearest"))
    labeller.prepare()
    step = labeller._evaluator._evaluation_step
    compiled = step._cache_size()
    read = labeller.read([(text, task) for text in TEXTS for task in STREAM["tasks"]])
    answers = labeller.label([each.prompt for each in read])
    assert step._cache_size() == compiled
    session = open_run(runs / "nearest")
    for place, task in enumerate(STREAM["tasks"]):
        expected = session.predict(TEXTS, task)
        assert [each["label"] for each in answers[place::2]] == [each.label for each in expected]


def test_nothing_is_planned_to_be_trained(tmp_path):
    settings = settings_of(tmp_path)
    evaluator = evaluator_of(settings)
    tasks = evaluator.load()
    plan = plan_training(evaluator, tasks)
    assert plan.steps == (0, 0) and plan.trained_bytes < 100  # the optimizer's count of steps
    assert plan.step_bytes == plan.frozen_bytes
    assert measure_training(evaluator, tasks, plan).step_seconds == (0.0, 0.0)


@pytest.mark.parametrize("method", ["zero_shot", "few_shot"])
def test_a_classification_head_is_refused(tmp_path, method):
    settings = tiny_settings(tmp_path, method=method, head="classification")
    with pytest.raises(UserError, match=f"'{method}' needs the LLM's own output layer"):
        evaluator_of(settings)


def test_there_is_no_lora_to_export(runs, tmp_path):
    with pytest.raises(UserError, match="nothing was trained, and there is no LoRA"):
        export_peft(runs / "balanced", tmp_path / "balanced")


def test_options_out_of_range_are_named():
    for values, message in (
        ({"k": -1}, "few_shot.k = -1 must be at least 0"),
        ({"choice": "best"}, "few_shot.choice = 'best' is not one of random, balanced, nearest"),
        ({"pool": 0}, "few_shot.pool = 0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            METHODS["few_shot"].Options(**values)


def test_a_task_that_was_not_seen_has_nothing_to_show():
    method = FewShot(k=3)
    parameters = dataclasses.make_dataclass("Parameters", ["expert"])({})
    assert method.preceding(parameters, None) is NOTHING
