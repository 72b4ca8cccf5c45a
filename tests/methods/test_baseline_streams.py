"""Whole tiny streams of the baselines: what they reduce to, resuming, extending, and refusals."""

import json
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streams import (
    ROOT,
    assert_bit_equal,
    evaluator_of,
    logged,
    restored,
    stop_after,
    tiny_settings,
    watched_batches,
)

from moecl_jax.data.batching import make_batch
from moecl_jax.data.rehearsal import replayed, reservoir
from moecl_jax.errors import UserError
from moecl_jax.methods.forward import forward, instruction_loss, output_logits
from moecl_jax.methods.shared_expert import WAYS
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.serving.session import open_stream
from moecl_jax.training.trainer import train

TWO = ("two", "five")
STEPS = 6  # of a task: one epoch of 48 examples, 8 a batch
OPTIONS = {  # small memories, and penalties that matter
    "replay": {"replay__memory": 10, "replay__batch": 3},
    "ewc": {"ewc__examples": 5, "ewc__weight": 1e4},
    "gain_lora": {"gain_lora__hidden": 16},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains a method on two tasks, once for all tests; gives its settings, folder and results."""
    done = {}

    def trained(method, **changes):
        key = (method, *sorted(changes.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp(method)
            settings = settings_of(folder, method, **changes)
            done[key] = settings, folder / "run", train(settings, folder / "run")
        return done[key]

    return trained


def settings_of(folder, method, **changes):
    values = {"tasks": TWO, "epochs": 1, **OPTIONS.get(method, {}), **changes}
    return tiny_settings(folder, method=method, **values)


def assert_same_training(ours, theirs, tolerance=1e-6):
    """Fails unless losses, accuracies and the shared trees of two runs agree."""
    for mine, other in zip(logged(ours[1]), logged(theirs[1]), strict=True):
        assert mine["loss_instruction"] == pytest.approx(other["loss_instruction"], rel=tolerance)
        assert mine["loss"] == pytest.approx(other["loss"], rel=tolerance)
    for key in ("accuracy_matrix", "random_init", "steps", "validation_accuracy"):
        assert ours[2][key] == theirs[2][key]
    left, right = (restored(workdir)[1].shared for _, workdir, _ in (ours, theirs))
    for mine, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(mine, other, atol=tolerance, rtol=0)


def ends_of(workdir):
    """Scores of the first task's test examples when it was finished, and after the last task."""
    evaluator, store = open_stream(workdir)
    examples = evaluator.load()[0].splits["test"]
    scores = []
    for state in (store.restore_moment(0), store.restore()[0]):
        parameters = evaluator.starting.task(state, TWO[0], 0)
        scores.append(evaluator.scores(parameters, 0, examples).scores)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("per_task", {}),
        ("moe_cl", {}),
        pytest.param("moe_cl", {"moe_cl__snapshot_dtype": "int8"}, marks=pytest.mark.slow),
        pytest.param("moe_cl", {"moe_cl__shared": "frozen"}, marks=pytest.mark.slow),
        ("o_lora", {"o_lora__composed": False}),
    ],
    ids=["per_task", "moe_cl", "moe_cl in int8", "moe_cl, frozen", "o_lora, not composed"],
)
def test_what_answers_for_a_finished_task_never_changes(run, method, changes):
    _, workdir, results = run(method, **changes)
    assert results["metrics"]["bwt"] == 0.0
    assert results["metrics"]["forgetting"] == 0.0
    before, after = ends_of(workdir)
    np.testing.assert_array_equal(before, after)
    assert np.ptp(before) > 0


ONE_FOR_ALL = [
    "moving",
    *(pytest.param(way, marks=pytest.mark.slow) for way in ("merged", "projected")),
]


@pytest.mark.parametrize("shared", ONE_FOR_ALL)
def test_moe_cl_with_one_expert_for_all_does_change(run, shared):
    before, after = ends_of(run("moe_cl", moe_cl__shared=shared)[1])
    assert np.any(before != after)


def test_drift_is_measured_between_a_tasks_own_row_and_the_last(run, monkeypatch, capsys):
    _, workdir, results = run("moe_cl", moe_cl__shared="moving")
    monkeypatch.setattr("sys.argv", ["drift.py", str(workdir), "--split=test"])
    script = runpy.run_path(str(ROOT / "launch" / "drift.py"))
    script["main"]()
    kept, *_, moved = capsys.readouterr().out.splitlines()[2:]
    matrix = results["accuracy_matrix"]
    assert kept == f"| kept | kept | {100 * matrix[0][0]:.1f} |"
    assert moved == f"| moved | moved | {100 * matrix[-1][0]:.1f} |"
    assert matrix[0][0] != matrix[-1][0]

    _, other, _ = run("moe_cl")
    with pytest.raises(SystemExit, match=r"is no run of moe_cl with moe_cl.shared = moving"):
        script["accuracies"](other, "test")


def test_moe_cl_trains_alike_with_and_without_snapshots(run):
    plain, kept = run("moe_cl", moe_cl__shared="moving"), run("moe_cl")
    assert logged(plain[1]) == logged(kept[1])
    (_, without, _), (_, with_them, _) = (restored(done[1]) for done in (plain, kept))
    assert_bit_equal(without.shared, with_them.shared)
    for name in TWO:
        assert_bit_equal(without.finished[name].expert, with_them.finished[name].expert["task"])
    assert plain[2]["accuracy_matrix"][0] == kept[2]["accuracy_matrix"][0]
    expert = with_them.finished["five"].expert
    snapshot = {"shared": expert["shared"], "gate": expert["gate"]}
    assert_bit_equal(snapshot["shared"], without.shared["expert"])
    assert_bit_equal(snapshot["gate"], without.shared["gate"])
    one = sum(leaf.size for leaf in jax.tree.leaves(snapshot))
    difference = kept[2]["parameters"]["stored"] - plain[2]["parameters"]["stored"]
    assert difference == 2 * one


@pytest.mark.slow
def test_frozen_after_all_tasks_is_snapshot(run):
    frozen = run("moe_cl", moe_cl__shared="frozen", moe_cl__frozen_after=3)
    kept = run("moe_cl")
    assert logged(frozen[1]) == logged(kept[1])
    assert frozen[2]["accuracy_matrix"] == kept[2]["accuracy_matrix"]
    (_, ours, _), (_, theirs, _) = (restored(done[1]) for done in (frozen, kept))
    for name in TWO:
        assert_bit_equal(ours.finished[name].expert, theirs.finished[name].expert)


@pytest.mark.slow
def test_frozen_trains_the_shared_expert_on_the_first_task_alone(run):
    _, workdir, results = run("moe_cl", moe_cl__shared="frozen")
    _, store = open_stream(workdir)
    first, last = store.restore_moment(0), store.restore()[0]
    assert_bit_equal(first.shared["expert"], last.shared["expert"])
    assert_bit_equal(first.memory["expert"], last.shared["expert"])
    assert np.any(first.shared["gate"] != last.shared["gate"])
    assert results["accuracy_matrix"][0] == run("moe_cl")[2]["accuracy_matrix"][0]


@pytest.mark.parametrize("method", ["sequential_lora", "per_task"])
def test_fewer_texts_before_the_end_change_neither_the_diagonal_nor_the_last_row(run, method):
    whole, early = run(method), run(method, evaluation__early_examples=3)
    (first, last), (ours, end) = (done[2]["accuracy_matrix"] for done in (whole, early))
    assert ours[0] == first[0] and end == last
    assert early[2]["right"] == whole[2]["right"]
    assert early[2]["metrics"]["bwt"] == whole[2]["metrics"]["bwt"]
    for accuracy in (ours[1], *early[2]["random_init"]):
        assert 3 * accuracy == pytest.approx(round(3 * accuracy))


@pytest.mark.parametrize("shared", ONE_FOR_ALL)
def test_before_the_second_task_every_way_answers_as_snapshot_does(run, shared):
    ours, theirs = run("moe_cl", moe_cl__shared=shared), run("moe_cl")
    assert logged(ours[1])[:STEPS] == logged(theirs[1])[:STEPS]
    assert ours[2]["accuracy_matrix"][0] == theirs[2]["accuracy_matrix"][0]


def test_a_snapshot_in_int8_takes_a_quarter_of_the_room(run):
    whole, small = run("moe_cl"), run("moe_cl", moe_cl__snapshot_dtype="int8")
    assert logged(whole[1]) == logged(small[1])
    _, stream, _ = restored(whole[1])
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(stream.finished["two"].expert["shared"]))
    saved = whole[2]["parameters"]["stored_bytes"] - small[2]["parameters"]["stored_bytes"]
    units = 2 * 4 * 2 * 3 * 2 * 8  # tasks, bytes, layers, projections, factors, rank
    assert saved == 2 * one * 3 // 4 - units


@pytest.mark.slow
def test_statistics_of_the_first_task_change_the_second_alone(run):
    ours = run("moe_cl", adversarial__past="statistics", adversarial__objective="paper")
    theirs = run("moe_cl", adversarial__objective="off")
    mine, other = logged(ours[1]), logged(theirs[1])
    for one, two in zip(mine[:STEPS], other[:STEPS], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["loss_adversarial"] == 0.0
    assert all(line["loss_adversarial"] > 0 for line in mine[STEPS:])
    statistics = restored(ours[1])[1].memory["statistics"]
    assert statistics["seen"].tolist() == [True, True]
    assert np.all(statistics["deviation"] > 0)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lwf", {"lwf__weight": 0.0, "lwf__temperature": 3.0}),
        ("replay", {"replay__memory": 0}),
        ("replay", {"replay__batch": 0}),
    ],
    ids=["lwf of weight 0", "replay of no memory", "replay of nothing"],
)
def test_what_reduces_to_sequential_lora(run, method, changes):
    assert_same_training(run(method, **changes), run("sequential_lora"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lwf", "ewc", "replay"])
def test_with_their_defaults_they_differ_from_sequential_lora_after_the_first_task(run, method):
    ours, plain = logged(run(method)[1]), logged(run("sequential_lora")[1])
    losses, others = ([line["loss_instruction"] for line in lines] for lines in (ours, plain))
    np.testing.assert_allclose(losses[:STEPS], others[:STEPS], atol=1e-6)
    assert np.abs(np.subtract(losses, others)[STEPS + 1 :]).max() > 1e-4


@pytest.mark.slow
def test_ewc_s_penalty_pulls_towards_where_the_first_task_ended(run):
    _, workdir, _ = run("ewc")
    lines = logged(workdir)
    terms = [line["loss"] - line["loss_instruction"] for line in lines]
    assert terms[: STEPS + 1] == [0.0] * (STEPS + 1)  # the first step of task 2 is at the anchor
    assert max(terms[STEPS + 1 :]) > 1e-4
    evaluator, store = open_stream(workdir)
    before, (after, _) = store.restore_moment(0), store.restore()
    method = evaluator.method
    assert_bit_equal(before.memory["anchor"], before.shared)

    def penalty(shared):
        distances = jax.tree.map(
            lambda f, x, start: (f * (x - start) ** 2).sum(),
            before.memory["fisher"],
            shared,
            before.memory["anchor"],
        )
        return 0.5 * method.options.weight * sum(jax.tree.leaves(distances))

    gradients = jax.tree.leaves(jax.grad(penalty)(after.shared))
    assert all(np.any(leaf) for leaf in gradients)


@pytest.mark.slow
def test_fisher_information_is_the_mean_over_a_task_s_examples(tmp_path):
    settings = settings_of(tmp_path, "ewc", tasks=("five",), ewc__examples=1000)
    train(settings, tmp_path / "run")
    evaluator, stream, _ = restored(tmp_path / "run")
    [task] = evaluator.load()
    active, context = evaluator.starting.task(stream, "five", 0), evaluator.context
    frozen, layout = evaluator.model.params, evaluator.layout(settings.batch.size)

    @jax.jit
    def squares(shared, batch):
        def negative_log_likelihood(shared):
            chosen = type(active)(shared, {}, {}, active.memory)
            hidden, _ = forward(chosen, frozen, batch, context, seeds=None)
            logits = output_logits(chosen, hidden, frozen, batch, context)
            loss = instruction_loss(logits, batch, context)
            return loss * batch.answer_mask.sum()

        return jax.tree.map(jnp.square, jax.grad(negative_log_likelihood)(shared))

    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), stream.shared)
    for example in task.splits["train"]:
        batch = make_batch(
            [example], evaluator.answers[0], layout, task_index=0, class_count=5, training=True
        )
        total = jax.tree.map(np.add, total, squares(active.shared, batch))
    count = len(task.splits["train"])
    for ours, expected in zip(
        jax.tree.leaves(stream.memory["fisher"]), jax.tree.leaves(total), strict=True
    ):
        np.testing.assert_allclose(ours, expected / count, rtol=1e-4, atol=1e-9)
        assert np.any(ours)


@pytest.fixture
def batches(monkeypatch):
    return watched_batches(monkeypatch)


def test_replay_mixes_the_reservoir_s_examples_into_each_batch(tmp_path, batches):
    settings = settings_of(tmp_path, "replay")
    results = train(settings, tmp_path / "run")
    tasks = evaluator_of(settings).load()
    kept = reservoir(settings.seed, [48], 10)
    prompts = [tuple(tasks[task].splits["train"][place].prompt) for task, place in kept]
    assert results["stored_examples"] == 10
    for step, (index, examples) in enumerate(batches):
        assert len(examples) == (8 if index == 0 else 11)
        if index == 1:
            drawn = replayed(settings.seed, 1, step - STEPS, 10, 3)
            assert examples[8:] == [prompts[place] for place in drawn]
    lines = logged(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 2 * STEPS + 1))


def test_joint_training_has_one_row_and_the_steps_of_a_stream(run):
    settings, workdir, results = run("joint")
    unknown, last = results["accuracy_matrix"]
    assert unknown == [None, None] and None not in last
    metrics = results["metrics"]
    assert metrics["acc"] == pytest.approx(np.mean(last))
    assert [metrics[name] for name in ("bwt", "fwt", "forgetting")] == [None] * 3
    assert results["steps"] == run("sequential_lora")[2]["steps"] == 2 * STEPS
    assert results["validation_accuracy"][0] is None
    assert {line["task"] for line in logged(workdir)} == {"five"}
    written = json.loads((workdir / "results.json").read_text())
    assert written["accuracy_matrix"] == results["accuracy_matrix"]
    longer = settings.changed({"tasks": (*TWO, "fourteen")})
    copied = workdir.with_name("copied")
    shutil.copytree(workdir, copied)
    with pytest.raises(UserError, match="trained on 2 tasks jointly; tasks cannot be added"):
        train(longer, copied)


def test_an_epoch_of_joint_training_passes_over_all_tasks_mixed(tmp_path, batches):
    settings = settings_of(tmp_path, "joint")
    train(settings, tmp_path / "run")
    tasks = evaluator_of(settings).load()
    wanted = {
        tuple(example.prompt): task for task in range(2) for example in tasks[task].splits["train"]
    }
    trained = [prompt for _, prompts in batches for prompt in prompts]
    assert sorted(trained) == sorted(wanted)
    assert {wanted[prompt] for prompt in batches[0][1]} == {0, 1}


slow = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *("ewc", "replay", "slao"),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                *("o_lora", "mocl", "lwf", "per_task", "joint"),
                *("n_lora", "inf_lora", "gain_lora"),
            )
        ),
        *(pytest.param(f"moe_cl.shared={way}", marks=slow) for way in list(WAYS)[1:]),
        "moe_cl.shared=snapshot",
        pytest.param("adversarial.past=statistics", marks=slow),
    ],
)
def test_a_run_killed_inside_the_second_task_goes_on_bit_for_bit(
    run, tmp_path, monkeypatch, method
):
    key, _, value = method.partition("=")
    changes = {key.replace(".", "__"): value} if value else {}
    settings, workdir, results = run("moe_cl" if value else method, **changes)
    resumed = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 5)  # a step after a checkpoint
        with pytest.raises(KeyboardInterrupt):
            train(settings, resumed)
    record = TaskCheckpoints(resumed).in_progress_record()
    # Joint training begins with the last task.
    assert (record["task"], record["step"]) == ("five", 8 if method == "joint" else 4)
    again = train(settings, resumed)
    for key in ("accuracy_matrix", "random_init", "validation_accuracy", "steps"):
        assert again[key] == results[key]
    assert logged(resumed) == logged(workdir)
    (_, whole, _), (_, pieces, _) = restored(workdir), restored(resumed)
    for part in ("shared", "memory", "finished"):
        assert_bit_equal(getattr(whole, part), getattr(pieces, part))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *("o_lora", "gain_lora"),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("mocl", "replay", "slao", "n_lora", "inf_lora")
        ),
    ],
)
def test_adding_a_task_leaves_the_earlier_rows(run, method):
    settings, workdir, first = run(method)
    extended = workdir.with_name("extended")
    shutil.copytree(workdir, extended)
    _, before, _ = restored(extended)
    longer = settings.changed({"tasks": (*TWO, "fourteen")})
    second = train(longer, extended)
    matrix = np.array(second["accuracy_matrix"])
    np.testing.assert_array_equal(matrix[:2, :2], first["accuracy_matrix"])
    assert np.isfinite(matrix).all()
    assert second["random_init"][:2] == first["random_init"]
    assert logged(extended)[: 2 * STEPS] == logged(workdir)
    _, after, _ = restored(extended)
    if "expert" in before.memory:  # the LoRAs of finished tasks are where and what they were
        for target, factors in before.memory["expert"].items():
            width = factors["b"].shape[1]
            kept = after.memory["expert"][target]
            np.testing.assert_array_equal(kept["a"][:, :, :width], factors["a"])
            np.testing.assert_array_equal(kept["b"][:, :width], factors["b"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("replay", "'replay' needs an output layer that all tasks share: set head = 'lm', or "),
        ("joint", "'joint' needs an output layer that all tasks share: set head = 'lm', or "),
        ("lwf", "'lwf' needs the LLM's own output layer: set head = 'lm'"),
    ],
)
def test_methods_that_need_one_output_layer_refuse_a_head_a_task(tmp_path, method, message):
    with pytest.raises(UserError, match=message):
        evaluator_of(settings_of(tmp_path, method, head="classification"))
    shared = settings_of(tmp_path, method, head="classification", shared_head=True, tasks=("two",))
    if method == "lwf":
        with pytest.raises(UserError, match=message):
            evaluator_of(shared)
    else:
        evaluator_of(shared)


@pytest.mark.parametrize(
    "method",
    [
        "per_task",
        *(
            pytest.param(name, marks=slow)
            for name in ("o_lora", "mocl", "ewc", "slao", "n_lora", "inf_lora", "gain_lora")
        ),
    ],
)
def test_methods_with_a_classification_head_a_task(run, method):
    _, workdir, results = run(method, head="classification")
    assert np.isfinite(results["accuracy_matrix"]).all()
    losses = [line["loss_instruction"] for line in logged(workdir)]
    assert np.mean(losses[STEPS // 2 : STEPS]) < np.mean(losses[: STEPS // 2])
    if method == "per_task":
        assert results["metrics"]["bwt"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replay", "joint"])
def test_rehearsal_with_one_classification_head_for_all_tasks(tmp_path, method):
    settings = settings_of(tmp_path, method, head="classification", shared_head=True)
    definitions = {**settings.definitions, "six": settings.definitions["five"]}
    settings = settings.changed({"definitions": definitions, "tasks": ("five", "six")})
    results = train(settings, tmp_path / "run")
    assert None not in results["accuracy_matrix"][-1]
    assert results["accuracy_matrix"][-1][0] == results["accuracy_matrix"][-1][1]


@pytest.mark.slow
def test_all_weights_are_trained_and_resumed(run, tmp_path, monkeypatch):
    settings, workdir, results = run("sequential_full")
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 5)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    assert train(settings, tmp_path / "run")["accuracy_matrix"] == results["accuracy_matrix"]
    assert logged(tmp_path / "run") == logged(workdir)
    evaluator, stream, _ = restored(workdir)
    assert results["parameters"]["trained"] == results["parameters"]["frozen"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(stream.shared))
    assert jax.tree.structure(stream.shared["difference"]) == jax.tree.structure(
        evaluator.model.params
    )
