"""Export of each method: the LoRA that answers, or a refusal that says why there is none."""

import dataclasses

import jax
import numpy as np
import pytest
from streams import assert_bit_equal, restored, tiny_settings
from tiny import randomised

from moecl_jax.data.batching import make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.interchange.official import export_official
from moecl_jax.interchange.peft import export_peft, read_adapter
from moecl_jax.methods.forward import forward, output_logits
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.runs.history import History
from moecl_jax.runs.store import DiskStore
from moecl_jax.runs.workdir import save_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of

TASKS = ("two", "five", "fourteen")


def workdir_of(folder, method, *, finished=2, **changes):
    """A workdir whose first tasks are finished with random trees, as if they had been trained."""
    settings = tiny_settings(folder, method=method, tasks=TASKS, **changes)
    model, tasks = model_of(settings), settings.task_objects()
    evaluator = Evaluator(model, settings.method_object(), tasks, settings)
    method, starting, workdir = evaluator.method, evaluator.starting, folder / "run"
    workdir.mkdir()
    store = DiskStore(workdir, tasks, starting, model)
    stream = starting.stream(len(TASKS))
    history = History([0.5] * len(TASKS))
    for index, name in enumerate(TASKS[:finished]):
        begun = starting.begin(stream.shared, index, stream.last_head, stream.memory)
        trained = jax.tree.map(lambda leaf, i=index: leaf * (1 + i), randomised(begun, 0.2))
        memory = method.begin_task(begun, starting.task_start(index))
        trained = jax.tree.map(np.asarray, trained.replace(memory=memory))

        def mean_of_gradients(_, transform, shared=trained.shared):
            return jax.tree.map(transform, shared)

        end = dataclasses.replace(starting.task_end(index), mean_of_gradients=mean_of_gradients)
        stream = stream.after(name, method.finish_task(trained, end), len(tasks[index].labels))
        history.append_row([])
        history.accuracy[-1] = history.scored[-1] = [0.5] * len(TASKS)
        history.validation.append(None)
        store.save_finished(stream, history)
    save_settings(settings, workdir)
    return workdir, evaluator


def state_of(workdir):
    _, stream, _ = restored(workdir)
    return stream


def exported(evaluator, workdir, output, expert=None):
    export_peft(workdir, output, expert=expert)
    return read_adapter(output, evaluator.model.sizes, "the base")


def logits(evaluator, parameters, context):
    """Logits of a few answers' tokens, in float32."""
    generator = np.random.default_rng(0)
    examples = [
        TokenizedExample(ids[:5], 0, ids[5:])
        for ids in generator.integers(2, 60, (4, 9)).astype(np.int32)
    ]
    layout = dataclasses.replace(evaluator.scoring.layout, batch_size=4, answer_length=4)
    batch = make_batch(examples, (), layout, task_index=0, class_count=0, training=False)
    frozen = evaluator.model.params
    hidden, _ = forward(parameters, frozen, batch, context, seeds=None)
    return np.asarray(output_logits(parameters, hidden, frozen, batch, context))


def logits_of_adapter(evaluator, adapter):
    """The same with a PEFT file as a plain LoRA of its own rank and alpha."""
    lora = dataclasses.replace(evaluator.method.lora, rank=adapter.rank, alpha=adapter.lora_alpha)
    context = dataclasses.replace(evaluator.context, method=SequentialLora(lora))
    return logits(evaluator, TaskParameters({"expert": adapter.expert}, {}, {}), context)


@pytest.mark.parametrize(
    ("method", "finished", "expert", "rank", "alpha"),
    [
        ("sequential_lora", 2, None, 8, 12.0),
        ("joint", 2, None, 8, 12.0),
        ("replay", 2, None, 8, 12.0),
        ("ewc", 2, None, 8, 12.0),
        ("lwf", 2, None, 8, 12.0),
        ("o_lora", 1, None, 8, 12.0),
        ("o_lora", 2, None, 16, 24.0),
        ("o_lora", 3, None, 24, 36.0),
        ("o_lora alone", 2, "two", 8, 12.0),
        ("o_lora alone", 2, "five", 8, 12.0),
        ("per_task", 2, "two", 8, 12.0),
        ("per_task", 2, "five", 8, 12.0),
        ("per_task", 1, None, 8, 12.0),
        ("slao", 1, None, 8, 12.0),
        ("slao", 3, None, 8, 12.0),
        ("n_lora", 2, None, 16, 24.0),
        ("inf_lora", 2, None, 16, 24.0),
    ],
)
def test_the_exported_adapter_gives_the_logits_of_the_run(
    tmp_path, method, finished, expert, rank, alpha
):
    changes = {"o_lora__composed": False} if method == "o_lora alone" else {}
    workdir, evaluator = workdir_of(
        tmp_path, method.split()[0], finished=finished, lora__alpha=12.0, **changes
    )
    adapter = exported(evaluator, workdir, tmp_path / "out", expert)
    assert (adapter.rank, adapter.lora_alpha) == (rank, alpha)
    stream, starting = state_of(workdir), evaluator.starting
    for task in [expert] if expert else TASKS[:finished]:
        parameters = starting.task(stream, task, TASKS.index(task))
        ours = logits(evaluator, parameters, evaluator.context)
        theirs = logits_of_adapter(evaluator, adapter)
        np.testing.assert_allclose(theirs, ours, atol=2e-5, rtol=0)
    memory = evaluator.method.init_memory(evaluator.model.sizes, len(TASKS))
    untrained = starting.begin(starting.shared(3), 0, memory=memory)
    assert np.abs(ours - logits(evaluator, untrained, evaluator.context)).max() > 0.1


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_composed_loras_give_the_same_logits_in_peft(tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    workdir, evaluator = workdir_of(tmp_path, "o_lora", lora__alpha=12.0)
    export_peft(workdir, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids = np.random.default_rng(0).integers(2, 60, (4, 9))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()[:, 4:8]
    parameters = evaluator.starting.task(state_of(workdir), TASKS[0], 0)
    ours = logits(evaluator, parameters, evaluator.context)[:, 0]
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["per_task", "o_lora"])
def test_of_an_expert_a_task_one_must_be_named(tmp_path, method):
    workdir, _ = workdir_of(tmp_path, method, o_lora__composed=False)
    with pytest.raises(UserError, match="an expert a task; name one by --expert, one of two, five"):
        export_peft(workdir, tmp_path / "out")
    with pytest.raises(UserError, match="--expert=fourteen is not one of two, five"):
        export_peft(workdir, tmp_path / "out", expert="fourteen")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("expert", [None, "two"])
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("mocl", "it weighs its experts anew for each text"),
        ("gain_lora", "its gates weigh its experts anew for each text"),
        ("sequential_full", "all weights of the LLM were trained, and no LoRA"),
    ],
)
def test_what_is_no_single_lora_is_refused_with_the_reason(tmp_path, method, reason, expert):
    workdir, _ = workdir_of(tmp_path, method, finished=1)
    with pytest.raises(UserError, match=f"cannot be merged or exported as one LoRA: {reason}"):
        export_peft(workdir, tmp_path / "out", expert=expert)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["o_lora", "ewc"])
def test_one_lora_for_all_tasks_has_no_name(tmp_path, method):
    workdir, _ = workdir_of(tmp_path, method, finished=1)
    with pytest.raises(UserError, match=f"trained with {method}, which has one expert; leave"):
        export_peft(workdir, tmp_path / "out", expert="two")


def test_of_moe_cl_with_snapshots_single_experts_are_exported_and_no_more(tmp_path):
    workdir, evaluator = workdir_of(tmp_path, "moe_cl", head="classification", finished=3)
    stream = state_of(workdir)
    adapter = exported(evaluator, workdir, tmp_path / "two", "two")
    assert_bit_equal(adapter.expert, dict(stream.finished["two"].expert["task"]))
    shared = exported(evaluator, workdir, tmp_path / "shared", "shared")
    assert_bit_equal(shared.expert, jax.tree.map(np.asarray, dict(stream.shared["expert"])))
    message = r"moe_cl\.shared = 'snapshot', where each finished task has a gate of its own"
    for form in ("official", "safetensors"):
        with pytest.raises(UserError, match=message):
            export_official(workdir, form, tmp_path / form)
    assert not list(tmp_path.glob("official*")) and not list(tmp_path.glob("safetensors*"))


@pytest.mark.parametrize("method", ["o_lora", "mocl", "sequential_full"])
def test_other_methods_have_no_place_in_the_official_format(tmp_path, method):
    workdir, _ = workdir_of(tmp_path, method, head="classification", finished=1)
    with pytest.raises(UserError, match=f"method = '{method}'; the original's format has a place"):
        export_official(workdir, "official", tmp_path / "out")
