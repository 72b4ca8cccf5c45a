"""Conversion of the original's checkpoints, and back, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from converting import PROMPTS, convert, export, predicted, write_ids
from official_files import OUTPUT, class_logits, random_tensors, write_adapter, write_base
from streams import logged, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.runs.workdir import save_settings
from moecl_jax.testing import write_model
from moecl_jax.weights.safetensors_file import open_safetensors

HEADS = {"tickets": 3, "amazon": 5, "agnews": 2}  # in the order of their experts
FIXTURE = Path(__file__).parents[1] / "fixtures" / "moe_cl_tiny.npz"
GATE = "seq_module_.layer1.wrapper_module_.mlp_.moes_.gate_.weight"
LORA = "seq_module_.layer0.wrapper_module_.mlp_.mlp_.w2_.loras_.expert2.lora_a_.weight"


def same_files(first, second):
    """Whether two exports hold the same tensors bit for bit, and the same settings."""
    ours, theirs = (open_safetensors(p.with_name(p.name + ".safetensors")) for p in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.encoding == theirs[name].encoding, name
        np.testing.assert_array_equal(tensor.decode(), theirs[name].decode(), err_msg=name)
    settings = [json.loads(p.with_name(p.name + ".json").read_text()) for p in (first, second)]
    assert settings[0] == settings[1]


def error_of(capsys, *arguments):
    capsys.readouterr()
    assert convert(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("moecl: error: ")
    return captured.err.removeprefix("moecl: error: ").strip()


@pytest.fixture(scope="module")
def mtl(tmp_path_factory):
    """A checkpoint with a head a task and LoRA on q and v, some of it in 16 bits, converted."""
    folder = tmp_path_factory.mktemp("mtl")
    base = write_base(folder / "base")
    tensors = random_tensors(HEADS, attention="qv", narrow=True)
    modules = {f"w{i}_proj": True for i in (1, 2, 3)} | {"q_proj": True, "v_proj": True}
    modules |= {"k_proj": False, "o_proj": False}
    write_adapter(folder / "adapter.v1", tensors, target_modules=modules)
    assert convert(folder / "base", folder / "adapter.v1", folder / "run") == 0
    return folder, base, tensors


@pytest.fixture(scope="module")
def tencent(tmp_path_factory):
    """A checkpoint with one head for three tasks, converted."""
    folder = tmp_path_factory.mktemp("tencent")
    base = write_base(folder / "base", seed=3)
    tensors = random_tensors({"": 2}, tasks=3, rank=2)
    write_adapter(folder / "adapter", tensors)
    arguments = (folder / "base", folder / "adapter", folder / "run", "--tasks=ads, chat,posts")
    assert convert(*arguments) == 0
    return folder, base, tensors


@pytest.mark.parametrize("task", HEADS)
def test_predictions_are_the_equations_values(mtl, tmp_path, task):
    folder, base, tensors = mtl
    expert = 1 + list(HEADS).index(task)
    head = f"{task}_score_.weight"
    expected = [class_logits(base, tensors, 2.0, expert, head, ids) for ids in PROMPTS]
    np.testing.assert_allclose(predicted(folder / "run", task, tmp_path), expected, atol=2e-5)


@pytest.mark.parametrize(("expert", "task"), [(1, "ads"), (3, "posts")])
def test_predictions_with_one_head_for_all_tasks(tencent, tmp_path, expert, task):
    folder, base, tensors = tencent
    expected = [class_logits(base, tensors, 2.0, expert, "score_.weight", x) for x in PROMPTS]
    np.testing.assert_allclose(predicted(folder / "run", task, tmp_path), expected, atol=2e-5)


def test_the_config_says_what_the_checkpoint_says(mtl):
    folder, *_ = mtl
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["tasks"] == list(HEADS)
    assert (config["method"], config["head"], config["shared_head"]) == (
        "moe_cl",
        "classification",
        False,
    )
    targets = ["gate_proj", "up_proj", "down_proj", "q_proj", "v_proj"]
    assert config["lora"] == {
        "rank": 3,
        "alpha": 6.0,
        "dropout": 0.05,
        "targets": targets,
        "task_attention": False,
    }
    assert config["model"]["dtype"] == "float32"
    assert config["data"]["max_length"] == 40  # of the base
    definitions = config["definitions"]
    assert {name: definitions[name]["source"] for name in HEADS} == dict.fromkeys(HEADS, "none")
    assert definitions["tickets"]["labels"] == ["0", "1", "2"]
    assert definitions["amazon"]["labels"][0] == "very negative"  # five classes, as the catalog's
    assert definitions["agnews"]["labels"] == ["0", "1"]  # the catalog's has four


@pytest.mark.slow
@pytest.mark.parametrize("task", ["amazon", "yahoo"])  # their hub copies name other fields
def test_a_base_with_a_tokenizer_needs_data_of_the_continued_task_alone(tmp_path, task):
    write_model(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    width, ffn = config["hidden_size"], config["intermediate_size"]
    small = random_tensors({"agnews": 4, "amazon": 5, "dbpedia": 14, "yahoo": 10})
    tensors = {}
    for name, tensor in small.items():
        shape = [{24: width, 40: ffn}.get(size, size) for size in tensor.shape]
        tensors[name] = np.zeros(shape, np.float32)
    write_adapter(tmp_path / "adapter", tensors)
    run = tmp_path / "run"
    assert convert(tmp_path / "base", tmp_path / "adapter", run, f"--continue={task}") == 0
    lines = [{"text": f"w{index} w7", "label": index} for index in range(4)]
    data = tmp_path / "four.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"source": "jsonl", "path": tmp_path, "train": data.name}
    chosen = [f"definitions.{task}.{key}={value}" for key, value in fields.items()]
    assert train(run, *FAST, *chosen, "log_every=1") == 0
    assert [line["task"] for line in logged(run)] == [task]
    matrix = json.loads((run / "results.json").read_text())["accuracy_matrix"]
    assert matrix == [[None] * 4] * 4


@pytest.mark.parametrize("arguments", [(), ("--continue=tickets",), ("--continue=amazon",)])
def test_there_and_back_is_the_identity(mtl, tmp_path, arguments):
    folder, *_ = mtl
    run = folder / "run"
    if arguments:
        run = tmp_path / "run"
        assert convert(folder / "base", folder / "adapter.v1", run, *arguments) == 0
        assert json.loads((run / "config.json").read_text())["tasks"][-1] == arguments[0][11:]
    assert export(run, tmp_path / "new" / "back") == 0
    same_files(tmp_path / "new" / "back", folder / "adapter.v1")


@pytest.mark.parametrize("arguments", [(), ("--tasks=a,b,c", "--continue=b")])
def test_there_and_back_with_one_head(tencent, tmp_path, arguments):
    folder, *_ = tencent
    run = folder / "run"
    if arguments:
        run = tmp_path / "run"
        assert convert(folder / "base", folder / "adapter", run, *arguments) == 0
    assert export(run, tmp_path / "back") == 0
    same_files(tmp_path / "back", folder / "adapter")


@pytest.mark.oracle
def test_there_and_back_in_torch_s_format(mtl, tmp_path):
    torch = pytest.importorskip("torch")
    folder, _, tensors = mtl
    assert export(folder / "run", tmp_path / "back", "official") == 0
    assert convert(folder / "base", tmp_path / "back", tmp_path / "again") == 0
    assert export(tmp_path / "again", tmp_path / "twice", "official") == 0
    for name in ("back", "twice"):
        state = torch.load(tmp_path / f"{name}.bin", weights_only=True)
        assert state.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert str(state[key].dtype) == f"torch.{tensor.dtype}"
            np.testing.assert_array_equal(state[key].float().numpy(), tensor.astype(np.float32))


def damaged(tensors, name, change):
    changed = dict(tensors)
    if change is None:
        del changed[name]
    else:
        changed[name] = change(tensors.get(name))
    return changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (LORA, None, f"tensor '{LORA}' is missing; expected it with shape [3, 40]"),
        (
            LORA,
            lambda tensor: tensor[:2],
            f"tensor '{LORA}' is misshapen: it has shape [2, 40], expected [3, 40]",
        ),
        ("extra", lambda _: np.zeros(1, np.float32), "tensor 'extra' is unexpected"),
        (GATE, lambda tensor: tensor[:1], f"tensor '{GATE}' is misshapen: it has shape [1, 24]"),
        (
            OUTPUT + "amazon_score_.weight",
            None,
            "holds heads of 2 tasks (tickets, agnews), but the num_experts of",
        ),
        (
            OUTPUT + "score_.weight",
            lambda _: np.zeros((2, 24), np.float32),
            "one head for all tasks, and also",
        ),
        (
            OUTPUT + "amazon_score_.weight",
            lambda tensor: tensor[:, :9],
            "amazon_score_.weight' is misshapen: it has shape [5, 9], expected [5, 24]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(mtl, tmp_path, capsys, name, change, message):
    folder, _, tensors = mtl
    settings = json.loads((folder / "adapter.v1.json").read_text())
    write_adapter(tmp_path / "bad", damaged(tensors, name, change), **settings)
    before = sorted(tmp_path.iterdir())
    error = error_of(capsys, folder / "base", tmp_path / "bad", tmp_path / "run")
    assert error.startswith(f"{tmp_path / 'bad.safetensors'}: ")
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("sizes", "described"),
    [
        ({"num_hidden_layers": 3}, "layers 2 (here 3), width 24 (here 24), FFN 40 (here 40)"),
        ({"hidden_size": 16}, "layers 2 (here 2), width 24 (here 16), FFN 40 (here 40)"),
        ({"intermediate_size": 48}, "layers 2 (here 2), width 24 (here 24), FFN 40 (here 48)"),
    ],
)
def test_an_adapter_of_another_base_is_named(mtl, tmp_path, capsys, sizes, described):
    folder, *_ = mtl
    write_base(tmp_path / "other", **sizes)
    error = error_of(capsys, tmp_path / "other", folder / "adapter.v1", tmp_path / "run")
    assert f"this adapter belongs to another base than {tmp_path / 'other'}: {described}" in error
    assert not (tmp_path / "run").exists()


def test_a_base_of_no_known_kind_is_named(mtl, tmp_path, capsys):
    folder, *_ = mtl
    write_base(tmp_path / "base", model_type="")
    error = error_of(capsys, tmp_path / "base", folder / "adapter.v1", tmp_path / "run")
    assert f"{tmp_path / 'base' / 'config.json'}: " in error and "model_type" in error
    error = error_of(capsys, tmp_path / "none", folder / "adapter.v1", tmp_path / "run")
    assert error.startswith(f"--base={tmp_path / 'none'} is no folder")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--continue=yelp"], "--continue=yelp: no such task; the tasks of"),
        (["--tasks=a,b,c"], "--tasks names tasks that have names in"),
    ],
)
def test_arguments_that_do_not_fit_are_named(mtl, tmp_path, capsys, arguments, message):
    folder, *_ = mtl
    error = error_of(capsys, folder / "base", folder / "adapter.v1", tmp_path / "run", *arguments)
    assert error.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tasks", ["a,b", "a,b,b", "a,b,c,d"])
def test_names_must_be_as_many_as_tasks(tencent, tmp_path, capsys, tasks):
    folder, *_ = tencent
    arguments = (folder / "base", folder / "adapter", tmp_path / "run", f"--tasks={tasks}")
    assert "must name 3 different tasks" in error_of(capsys, *arguments)


def test_a_workdir_in_use_is_left_alone(mtl, capsys):
    folder, *_ = mtl
    before = (folder / "run" / "config.json").read_bytes()
    error = error_of(capsys, folder / "base", folder / "adapter.v1", folder / "run")
    assert error == f"{folder / 'run'} exists already and is not empty; name another --workdir"
    assert (folder / "run" / "config.json").read_bytes() == before


def test_a_missing_file_is_named(mtl, tmp_path, capsys):
    folder, *_ = mtl
    error = error_of(capsys, folder / "base", tmp_path / "a", tmp_path / "run")
    assert error.startswith(f"{tmp_path / 'a.json'}: no such file")


def train(workdir, *overrides, config=None):
    config = config or workdir / "config.json"
    flags = [f"--config.{override}" for override in overrides]
    return main(["train", f"--config={config}", f"--workdir={workdir}", *flags])


def task_of_ids(folder, task, labels, seed=0):
    """Data of random ids for a task, and the overrides that name it."""
    generator = np.random.default_rng(seed)
    for split, count in (("train", 6), ("test", 5)):
        prompts = generator.integers(0, 31, (count, 4)).tolist()
        chosen = [labels[i % len(labels)] for i in range(count)]
        write_ids(folder / f"{task}_{split}.jsonl", prompts, chosen)
    fields = {"source": "jsonl", "path": folder, "train": f"{task}_train.jsonl"}
    fields["test"] = f"{task}_test.jsonl"
    return [f"definitions.{task}.{key}={value}" for key, value in fields.items()]


FAST = ("epochs=1", "selection=last", "data.validation_fraction=0.0", "batch.size=4")


@pytest.mark.slow
def test_training_goes_on_from_a_conversion(mtl, tmp_path, capsys):
    tensors, run = random_tensors(HEADS, narrow=True), tmp_path / "run"
    adapter = write_adapter(tmp_path / "adapter", tensors)
    assert convert(mtl[0] / "base", adapter, run, "--continue=amazon") == 0
    for refused, message in (
        ("lora.rank=4", "begun with lora.rank = 3, and now it is 4"),
        ("lora.alpha=1", "begun with lora.alpha = 6.0, and now it is 1.0"),
        ("shared_head=true", "begun with shared_head = False, and now it is True"),
        ("adversarial.objective=off", "leaves no place for the discriminator"),
        ("definitions.tickets.labels=('a','b')", "definitions.tickets.labels = 3, and now it is 2"),
        ("tasks=('agnews','tickets','amazon')", "may only be extended at its end"),
    ):
        assert train(run, refused) == 1
        assert message in capsys.readouterr().err
    chosen = [*task_of_ids(tmp_path, "amazon", range(5)), *task_of_ids(tmp_path, "tickets", "012")]
    chosen += ["optimizer.learning_rate=0.01", "lora.dropout=0.0", "seed=4", "log_every=1"]
    # tickets has data to be scored on, and was trained before: it is not trained again.
    assert train(run, *FAST, *chosen) == 0
    assert [line["task"] for line in logged(run)] == ["amazon", "amazon"]

    results = json.loads((run / "results.json").read_text())
    assert results["tasks"] == ["tickets", "agnews", "amazon"]
    first, second, third = results["accuracy_matrix"]
    assert first == [None] * 3
    assert second[1] is None and None not in (second[0], second[2])
    assert third[1] is None and None not in (third[0], third[2])
    assert results["random_init"][1] is None
    assert results["metrics"]["acc"] == pytest.approx((third[0] + third[2]) / 2)
    assert results["metrics"]["bwt"] == pytest.approx(third[0] - second[0])
    assert main(["compare", f"--workdir={run}"]) == 0

    capsys.readouterr()
    assert train(run, "optimizer.learning_rate=0.02") == 1  # the usual rule from now on
    assert "begun with optimizer.learning_rate = 0.01" in capsys.readouterr().err

    assert export(run, tmp_path / "after") == 0
    after = safetensors.numpy.load_file(tmp_path / "after.safetensors")
    assert after.keys() == tensors.keys()
    frozen = {n for n in tensors if ".expert1." in n or ".expert3." in n or "tickets" in n}
    for name, tensor in tensors.items():
        trained = not np.array_equal(after[name].astype(np.float32), tensor.astype(np.float32))
        assert trained == (name not in frozen and "agnews" not in name), name
        if not trained:
            assert after[name].dtype == tensor.dtype, name


@pytest.mark.slow
def test_a_task_can_be_added_to_a_conversion(tencent, tmp_path):
    folder, *_ = tencent
    run = tmp_path / "run"
    assert convert(folder / "base", folder / "adapter", run, "--tasks=ads,chat,posts") == 0
    file = tmp_path / "more.py"
    definition = dict(line.split("=") for line in task_of_ids(tmp_path, "mail", "01"))
    fields = {key.rpartition(".")[2]: value for key, value in definition.items()}
    file.write_text(
        "from moecl_jax.config.file import load_config\n"
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    config = load_config({str(run / 'config.json')!r})\n"
        "    with config.unlocked():\n"
        f"        config.definitions.mail = ConfigDict({fields | {'labels': ('0', '1')}!r})\n"
        "        config.tasks = (*config.tasks, 'mail')\n"
        "    return config\n"
    )
    assert train(run, *FAST, config=file) == 0
    matrix = json.loads((run / "results.json").read_text())["accuracy_matrix"]
    assert matrix[0] == matrix[1] == [None] * 4
    assert matrix[2][3] is not None and matrix[3][3] is not None
    assert export(run, tmp_path / "four") == 0
    settings = json.loads((tmp_path / "four.json").read_text())
    assert settings["num_experts"] == 5 and settings["micro_batch_size"] == 8
    arguments = ("--tasks=ads,chat,posts,mail",)
    assert convert(folder / "base", tmp_path / "four", tmp_path / "again", *arguments) == 0
    assert predicted(run, "chat", tmp_path) == predicted(tmp_path / "again", "chat", tmp_path)


@pytest.mark.slow
def test_the_one_lora_on_attention_is_trained_on_and_exported(mtl, tmp_path):
    folder, _, tensors = mtl
    run = tmp_path / "run"
    assert convert(folder / "base", folder / "adapter.v1", run, "--continue=agnews") == 0
    assert train(run, *FAST, *task_of_ids(tmp_path, "agnews", "01"), "log_every=1") == 0
    assert export(run, tmp_path / "out") == 0
    written = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert set(written) == set(tensors)
    name = "seq_module_.layer0.wrapper_module_.self_attn_.wq_.loras_.expert0.lora_b_.weight"
    assert not np.array_equal(written[name], tensors[name])


def test_experts_of_each_task_on_attention_have_no_place(tmp_path, capsys):
    changes = {"head": "classification", "lora__targets": ("gate_proj", "q_proj")}
    changes["moe_cl__shared"] = "moving"
    (tmp_path / "run").mkdir()
    save_settings(tiny_settings(tmp_path, tasks=("two",), epochs=1, **changes), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out") == 1
    assert "trained with experts of each task on q_proj" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The dumped tensors of the original as a base and an adapter on disk."""
    folder, dump = tmp_path_factory.mktemp("published"), dict(np.load(FIXTURE))
    base = folder / "base"
    base.mkdir()
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    config = {"model_type": "llama", "rope_theta": 10000.0, **sizes, **heads}
    (base / "config.json").write_text(json.dumps(config))
    weights = {k.removeprefix("base."): v for k, v in dump.items() if k.startswith("base.")}
    safetensors.numpy.save_file(weights, base / "model.safetensors")
    prefix = "adapter0."
    tensors = {k.removeprefix(prefix): v for k, v in dump.items() if k.startswith(prefix)}
    # The dump has the task amazon alone; the others are of no consequence to it.
    for name in [name for name in tensors if ".expert2." in name]:
        for other in (1, 3, 4):
            tensors[name.replace("expert2", f"expert{other}")] = 1 + tensors[name]
    for task, classes in {"agnews": 4, "dbpedia": 14, "yahoo": 10}.items():
        tensors[f"{OUTPUT}{task}_score_.weight"] = np.ones((classes, 32), np.float32)
    write_adapter(folder / "adapter", tensors)
    return base, folder / "adapter", dump


def check_published(base, adapter, dump, folder):
    """The original's logits, and its trajectory when the training of amazon goes on."""
    lengths = dump["mask"].sum(axis=1)
    prompts = [row[:n].tolist() for row, n in zip(dump["tokens"], lengths, strict=True)]
    assert convert(base, adapter, folder / "run") == 0
    logits = predicted(folder / "run", "amazon", folder, prompts)
    np.testing.assert_allclose(logits, dump["out.pooled_logits"], atol=1e-5, rtol=0)

    write_ids(folder / "amazon.jsonl", prompts, dump["labels"][:, 0].tolist())
    run = folder / "continued"
    assert convert(base, adapter, run, "--continue=amazon") == 0
    data = ("source=jsonl", f"path={folder}", "train=amazon.jsonl")
    settings = ("lora.dropout=0.0", "adversarial.alpha=0.3", "log_every=1")
    settings += ("batch.size=4", "selection=last", "data.validation_fraction=0.0")
    assert train(run, *settings, *(f"definitions.amazon.{field}" for field in data)) == 0
    seen = [[line["loss_instruction"], line["loss_adversarial"]] for line in logged(run)]
    np.testing.assert_allclose(seen, dump["traj"], atol=1e-5, rtol=0)
    assert export(run, folder / "after") == 0
    after = safetensors.numpy.load_file(folder / "after.safetensors")
    trained = [name for name in dump if name.startswith("adapter3.")]
    assert len(trained) > 40
    for name in trained:
        ours = after[name.removeprefix("adapter3.")]
        np.testing.assert_allclose(ours, dump[name], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.slow
def test_the_original_s_logits_and_trajectory(published, tmp_path):
    check_published(*published, tmp_path)


@pytest.mark.shared
@pytest.mark.oracle
def test_the_original_s_own_files(shared, tmp_path):
    torch = pytest.importorskip("torch")
    folder = shared / "reference" / "official_ckpt"
    adapter = folder / "amazon_finetuned"
    dump = dict(np.load(shared / "reference" / "moe_cl_tiny.npz"))
    check_published(folder / "base", adapter, dump, tmp_path)
    given = torch.load(f"{adapter}.bin", weights_only=True)
    for number, arguments in enumerate([(), ("--continue=yahoo",)]):
        run, output = tmp_path / f"run{number}", tmp_path / f"back{number}"
        assert convert(folder / "base", adapter, run, *arguments) == 0
        assert export(run, output, "official") == 0
        back = torch.load(f"{output}.bin", weights_only=True)
        assert back.keys() == given.keys()
        for name, tensor in given.items():
            assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype, name
        settings = [json.loads(Path(f"{prefix}.json").read_text()) for prefix in (output, adapter)]
        assert settings[0] == settings[1]
