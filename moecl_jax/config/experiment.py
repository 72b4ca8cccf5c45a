"""From a config to all that a run needs. Only here is the config read and a step jitted."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moecl_jax.data.batching import Layout
from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.definition import TaskDefinition
from moecl_jax.data.tasks import Task, load_task
from moecl_jax.data.tokenize import (
    TokenizedExample,
    TokenizedTask,
    bare_prompts,
    end_of_sequence,
    tokenize_answers,
    tokenize_task,
)
from moecl_jax.errors import UserError
from moecl_jax.kernels import ATTENTIONS, QUANTIZATIONS, as_bits, one_by_one, quantize_layers
from moecl_jax.methods import METHODS, Method, MethodSettings
from moecl_jax.methods.base import Tree
from moecl_jax.methods.losses import OBJECTIVES, REDUCTIONS
from moecl_jax.methods.state import Initializer
from moecl_jax.models.attention import check_attention
from moecl_jax.models.decoder import REMAT_POLICIES
from moecl_jax.models.lora import TARGETS
from moecl_jax.models.sharding import AXES, Placement
from moecl_jax.serving.generation import Sampling, Writer, read_prompts, write_tokens
from moecl_jax.serving.task_choice import extract, feature_step
from moecl_jax.training.steps import Learner, evaluation_step, importance_step, train_step
from moecl_jax.weights.load import Backbone, load_backbone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + np.cos(np.pi * done)),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over a task's steps: a linear warm-up, then `shape` down to 0 at the end.

    Attributes:
      peak: highest learning rate.
      shape: a key of `SCHEDULES`.
      warmup_fraction: of the steps.
    """

    peak: float
    shape: str
    warmup_fraction: float

    def __call__(self, step: int, total: int) -> float:
        """The rate of the 0-based `step` out of `total`."""
        warmup = round(total * self.warmup_fraction)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        return self.peak * SCHEDULES[self.shape]((step - warmup) / max(total - warmup, 1))


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how a task is trained.

    Attributes:
      epochs: passes over a task's training examples.
      schedule: of the learning rate.
      best: whether the epoch that validates best is kept, or the last.
      validates_on_test: whether validation is the test split.
      log_every: steps.
      checkpoint_every: steps.
      keep_shared: with how many of the newest tasks shared trees are kept; 0: with all.
    """

    epochs: int
    schedule: Schedule
    best: bool
    validates_on_test: bool
    log_every: int
    checkpoint_every: int
    keep_shared: int


@dataclasses.dataclass(frozen=True)
class Answering:
    """How the LM head's answers are evaluated.

    Attributes:
      generated: whether they are decoded where one pass could tell as well.
      sampling: how they are decoded.
      max_response: tokens of a free-form answer.
    """

    generated: bool
    sampling: Sampling
    max_response: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run needs, but its data.

    Attributes:
      seed: of everything random.
      frozen: parameters of the frozen LLM, on the device.
      tokenizer: of the LLM; None if it has none, which takes a classification head.
      fingerprint: of the LLM.
      model_path: where the LLM was read from.
      learner: static parts of the steps.
      initializer: starting values.
      definitions: the tasks in order.
      answers: for each task the ids of its labels' texts; empty with classification heads and
        for free-form tasks.
      max_length: tokens of a prompt with its answer.
      training: how a task is trained.
      answering: how answers are evaluated.
      batch_size: of a task's own examples in a training batch.
      training_layout: of training batches.
      evaluation_layout: of evaluation batches.
      train_step: compiled `steps.train_step`.
      importance_step: compiled `steps.importance_step`.
      evaluation_step: compiled `steps.evaluation_step`.
      feature_step: compiled `task_choice.feature_step`.
      writer: writes text with the LM head; None with classification heads.
    """

    seed: int
    frozen: Tree
    tokenizer: "PreTrainedTokenizerBase | None"
    fingerprint: str
    model_path: str
    learner: Learner
    initializer: Initializer
    definitions: tuple[TaskDefinition, ...]
    answers: tuple[tuple[np.ndarray, ...], ...]
    max_length: int
    training: Training
    answering: Answering
    batch_size: int
    training_layout: Layout
    evaluation_layout: Layout
    train_step: Callable[..., Any]
    importance_step: Callable[..., Any]
    evaluation_step: Callable[..., Any]
    feature_step: Callable[..., Any]
    writer: Writer | None

    @property
    def names(self) -> list[str]:
        """The tasks' names in order."""
        return [definition.name for definition in self.definitions]

    def evaluation_writer(self, index: int) -> Writer | None:
        """What writes the answers that a task is evaluated by; None where one pass tells."""
        needed = self.answering.generated or self.definitions[index].metric == "rouge_l"
        return self.writer if needed else None

    def features(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """What the frozen model makes of each text alone, `[n, D]`, of at least one."""
        texts = bare_prompts(examples, self.tokenizer, self.max_length)
        return extract(self.feature_step, self.frozen, texts, self.evaluation_layout)

    def index(self, name: str) -> int:
        """Place of a task in the stream."""
        if name not in self.names:
            raise UserError(f"there is no task '{name}'; the tasks are {', '.join(self.names)}")
        return self.names.index(name)


def build(config: ConfigDict) -> Experiment:
    """Reads a config, loads the LLM and makes the steps; data is loaded by `load_tasks`.

    Raises:
      UserError: a value that is not one of its choices or out of range, or what loading raises.
    """
    dtype = _choose("model.dtype", config.model.dtype, ("bfloat16", "float32"))
    head = _choose("head", config.head, ("lm", "classification"))
    method_class = METHODS[_choose("method", config.method, tuple(METHODS))]
    settings = MethodSettings(
        rank=_at_least("lora.rank", config.lora.rank, 1),
        lora_alpha=config.lora.alpha,
        dropout=_at_least("lora.dropout", config.lora.dropout, 0.0),
        targets=tuple(_choose("lora.targets", name, TARGETS) for name in config.lora.targets),
        task_attention=config.lora.task_attention,
        objective=_choose("adversarial.objective", config.adversarial.objective, OBJECTIVES),
        adversarial_alpha=config.adversarial.alpha,
        adversarial_reduction=_choose(
            "adversarial.reduction", config.adversarial.reduction, REDUCTIONS
        ),
    )
    if settings.dropout >= 1.0:
        raise UserError(f"config: lora.dropout = {settings.dropout} must be below 1")
    definitions = _definitions(config)
    if config.shared_head:
        _check_shared_head(head, definitions)
    backbone = load_backbone(config.model.path, jnp.dtype(dtype))
    if config.data.max_length > backbone.config.context_length:
        raise UserError(
            f"config: data.max_length = {config.data.max_length} exceeds the "
            f"{backbone.config.context_length} positions that {config.model.path} was trained on; "
            "lower it"
        )
    max_response = _at_least("data.max_response", config.data.max_response, 1)
    if any(d.free_form for d in definitions) and max_response >= config.data.max_length:
        raise UserError(
            f"config: data.max_response = {max_response} leaves no room for a prompt in "
            f"data.max_length = {config.data.max_length} tokens; lower the first or raise the other"
        )
    answers = _answers(head, definitions, backbone)

    placement = Placement.over({axis: getattr(config.mesh, axis) for axis in AXES})
    remat = _choose("model.remat", config.model.remat, ("auto", "none", *REMAT_POLICIES))
    if remat == "auto":
        remat = "projections" if placement.one_cpu else "full"
    attention = _choose("model.attention", config.model.attention, tuple(ATTENTIONS))
    check_attention(attention, backbone.config, dtype, placement.device_count)
    method = method_class(settings, backbone.config, _options(config)[config.method])
    _check_output(method, head, config.shared_head)
    quantization = _choose(
        "model.quantization", config.model.quantization, ("none", *QUANTIZATIONS)
    )
    if quantization != "none" and method.trains_weights:
        raise UserError(
            f"config: method = '{method.name}' trains the LLM's own weights, which cannot be "
            "quantised; set model.quantization = 'none'"
        )
    learner = Learner(
        method=method,
        head=head,
        dtype=jnp.dtype(dtype),
        remat=remat,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
        placement=placement,
        attention=attention,
    )
    classes = max(1, *(len(definition.labels) for definition in definitions))
    rows = _choose("batch.layout", config.batch.layout, ("packed", "padded", "padded_to_max"))
    layout = functools.partial(
        Layout,
        packed=rows == "packed",
        row_length=config.batch.row_length,
        continuations=classes if head == "lm" else 1,
        answer_length=max((len(ids) for labels in answers for ids in labels), default=1),
        padded_length=config.data.max_length if rows == "padded_to_max" else 0,
        row_multiple=placement.row_shards,
        compact=placement.one_cpu,
    )
    batch_size = _at_least("batch.size", config.batch.size, 1)
    params = quantize_layers(backbone.params, quantization, over_layers=one_by_one)
    frozen = placement.put(as_bits(params) if jax.default_backend() == "cpu" else params)
    return Experiment(
        seed=config.seed,
        frozen=frozen,
        tokenizer=backbone.tokenizer,
        fingerprint=backbone.fingerprint,
        model_path=config.model.path,
        learner=learner,
        initializer=Initializer(method, config.seed, head, classes, config.shared_head),
        definitions=definitions,
        answers=answers,
        max_length=config.data.max_length,
        training=_training(config),
        answering=_answering(config, max_response),
        batch_size=batch_size,
        training_layout=layout(
            batch_size + method.replayed, parts=_parts(config, batch_size + method.replayed)
        ),
        evaluation_layout=layout(
            _at_least("batch.evaluation_size", config.batch.evaluation_size, 1)
        ),
        train_step=jax.jit(functools.partial(train_step, learner=learner), donate_argnums=0),
        importance_step=jax.jit(functools.partial(importance_step, learner=learner)),
        evaluation_step=jax.jit(functools.partial(evaluation_step, learner=learner)),
        feature_step=jax.jit(functools.partial(feature_step, learner=learner)),
        writer=_writer(learner, frozen, backbone) if head == "lm" else None,
    )


def load_tasks(config: ConfigDict, experiment: Experiment) -> list[TokenizedTask]:
    """Reads and tokenises the tasks' data; says on standard error what was cut or left out."""
    tasks = []
    for definition, answers in zip(experiment.definitions, experiment.answers, strict=True):
        task = load_task(
            definition,
            seed=config.seed,
            vocabulary_size=experiment.learner.method.config.vocabulary_size,
            validation_from=config.data.validation_from,
            validation_fraction=config.data.validation_fraction,
            train_examples=config.data.train_examples,
            validation_examples=config.data.validation_examples,
            test_examples=config.data.test_examples,
            on_bad_example=config.data.on_bad_example,
        )
        tokenized = tokenize_task(
            task,
            answers,
            experiment.tokenizer,
            max_length=config.data.max_length,
            max_response=config.data.max_response,
            over_long=config.data.over_long,
        )
        print(_describe(task, tokenized), file=sys.stderr, flush=True)
        tasks.append(tokenized)
    if config.data.validation_from == "test":
        print(
            "validation is the test split (data.validation_from): what is selected by it scores "
            "too well",
            file=sys.stderr,
        )
    return tasks


def _definitions(config: ConfigDict) -> tuple[TaskDefinition, ...]:
    own = {
        name: TaskDefinition.from_fields(name, fields)
        for name, fields in config.definitions.to_dict().items()
    }
    known = {**CATALOG, **own}
    names = list(config.tasks)
    for name in names:
        if name not in known:
            raise UserError(
                f"config: tasks names '{name}', which is neither in the catalog "
                f"({', '.join(CATALOG)}) nor in config.definitions ({', '.join(own) or 'empty'})"
            )
    if not names or len(set(names)) < len(names):
        raise UserError(f"config: tasks must name at least one task, none twice; it is {names}")
    return tuple(known[name] for name in names)


def _answers(
    head: str, definitions: Sequence[TaskDefinition], backbone: Backbone
) -> tuple[tuple[np.ndarray, ...], ...]:
    """For each task the ids of its labels' texts where the LM head writes them, else none."""
    free_form = next((d.name for d in definitions if d.free_form), None)
    if head == "classification":
        if free_form is not None:
            raise UserError(
                f"config: head = 'classification', and task '{free_form}' has a response_field: "
                "its answer is free text, which only head = 'lm' writes"
            )
        return ((),) * len(definitions)
    tokenizer = backbone.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{backbone.source} holds no tokenizer, and head = 'lm' writes texts; put its "
            "tokenizer.json there, or set head = 'classification' and give examples as input_ids"
        )
    return tuple(() if d.free_form else tokenize_answers(d, tokenizer) for d in definitions)


def _check_shared_head(head: str, definitions: Sequence[TaskDefinition]) -> None:
    if head != "classification":
        raise UserError(f"config: shared_head needs head = 'classification'; it is {head!r}")
    counts = {definition.name: len(definition.labels) for definition in definitions}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(
            f"config: shared_head needs equally many labels in every task, but {listed}; set "
            "shared_head = False for a head a task"
        )


def _options(config: ConfigDict) -> dict[str, Any]:
    """Each method's own hyper-parameters, out of the section with its name."""
    options = {}
    for name, method in METHODS.items():
        names = [field.name for field in dataclasses.fields(method.Options)]
        try:
            options[name] = method.Options(
                **{key: getattr(getattr(config, name), key) for key in names}
            )
        except UserError as error:
            raise UserError(f"config: {name}.{error}") from error
    return options


def _check_output(method: Method, head: str, shared_head: bool) -> None:
    allowed = {
        "any": "",
        "shared": "needs an output layer that all tasks share: set head = 'lm', or shared_head = "
        "True",
        "lm": "distils the LLM's own output layer: set head = 'lm'",
    }
    shares = head == "lm" or (method.output == "shared" and shared_head)
    if method.output != "any" and not shares:
        raise UserError(f"config: method = '{method.name}' {allowed[method.output]}")


def _answering(config: ConfigDict, max_response: int) -> Answering:
    section = config.evaluation
    answers = _choose("evaluation.answers", section.answers, ("scored", "generated"))
    try:
        sampling = Sampling(section.temperature, section.top_k, section.top_p)
    except UserError as error:
        raise UserError(f"config: evaluation: {error}") from error
    return Answering(answers == "generated", sampling, max_response)


def _writer(learner: Learner, frozen: Tree, backbone: Backbone) -> Writer:
    assert backbone.tokenizer is not None  # the LM head has seen to it
    end = end_of_sequence(backbone.tokenizer)
    read = functools.partial(read_prompts, learner=learner, end=end)
    write = functools.partial(write_tokens, learner=learner, end=end)
    return Writer(
        read_prompts=jax.jit(read, static_argnames=("sampling", "slots")),
        write_tokens=jax.jit(write, static_argnames=("sampling", "count"), donate_argnums=2),
        frozen=frozen,
        end=end,
        context_length=backbone.config.context_length,
    )


def _parts(config: ConfigDict, examples: int) -> int:
    """In how many parts the `examples` of a training batch are computed."""
    steps: int = _at_least("batch.accumulation_steps", config.batch.accumulation_steps, 1)
    if steps > examples:
        raise UserError(
            f"config: batch.accumulation_steps = {steps} exceeds the {examples} examples of a "
            "training batch; lower it, or raise batch.size"
        )
    return steps


def _training(config: ConfigDict) -> Training:
    optimizer = config.optimizer
    schedule = _choose("optimizer.schedule", optimizer.schedule, tuple(SCHEDULES))
    selection = _choose("selection", config.selection, ("best", "last"))
    return Training(
        epochs=_at_least("epochs", config.epochs, 1),
        schedule=Schedule(optimizer.learning_rate, schedule, optimizer.warmup_fraction),
        best=selection == "best",
        validates_on_test=config.data.validation_from == "test",
        log_every=_at_least("log_every", config.log_every, 1),
        checkpoint_every=_at_least("checkpoint_every", config.checkpoint_every, 1),
        keep_shared=_at_least("keep_shared", config.keep_shared, 0),
    )


def _describe(task: Task, tokenized: TokenizedTask) -> str:
    counts = ", ".join(f"{split} {len(tokenized.splits[split])}" for split in tokenized.splits)
    notes = [f"{reason}: {count} skipped" for reason, count in task.skipped.items()]
    for what, by_split in (
        ("texts cut to fit", tokenized.truncated),
        ("responses cut to fit", tokenized.truncated_responses),
        ("examples dropped", tokenized.dropped),
    ):
        notes += [f"{count} {split} {what}" for split, count in by_split.items() if count]
    return f"{tokenized.name}: {counts}" + (f" ({'; '.join(notes)})" if notes else "")


def _choose(key: str, value: str, choices: Sequence[str]) -> Any:
    if value not in choices:
        raise UserError(f"config: {key} = {value!r} is not one of {', '.join(choices)}")
    return value


def _at_least(key: str, value: Any, lowest: float) -> Any:
    if value < lowest:
        raise UserError(f"config: {key} = {value} must be at least {lowest}")
    return value
