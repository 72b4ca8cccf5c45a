"""All settings of a run: what `config.json` holds."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.continued import with_inherited
from moecl_jax.data.perturbing import PERTURBATIONS
from moecl_jax.data.settings import BatchSettings, DataSettings
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError, listed, suggestion
from moecl_jax.methods import METHODS, Method, find_method, spec_of
from moecl_jax.methods.adversarial_inputs import AdversarialInputs
from moecl_jax.methods.next_token import SelfSupervised
from moecl_jax.methods.options import from_sections, to_sections
from moecl_jax.models.lora import TARGETS
from moecl_jax.models.settings import Lora, MeshSettings, ModelSettings
from moecl_jax.outside import shortened
from moecl_jax.runs.trackers import check_names
from moecl_jax.settings import Section, keys_by_task, refuse_unknown, setting

SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(Section):
    """How the LM head's answers are evaluated.

    Attributes:
      answers: scored (one pass tells whether greedy decoding would write exactly the right answer)
        or generated (answers are decoded token by token). Tasks with the metric rouge_l are decoded
        anyway.
      temperature: temperature of generated answers; 0 decodes greedily.
      top_k: generated tokens are drawn from the k most probable; 0 for all.
      top_p: generated tokens are drawn from the most probable that together reach this probability.
      early_examples: test texts of a task by which it is measured before the stream's end, but for
        the moment when it is finished; 0 for all of them.
      perturbations: small changes of the test texts with which all tasks are scored again at the
        stream's end, of typos, swaps, case, homoglyphs, homophones and split (docs: Robustness).
      perturbation_rate: part of the places in a text that each of them changes.
    """

    KEY: ClassVar[str] = "evaluation"
    answers: str = setting("scored", choices=("scored", "generated"))
    temperature: float = setting(0.0, least=0, most=1000)
    top_k: int = setting(0, least=0, most=10**7)
    top_p: float = setting(1.0, above=0, most=1)
    early_examples: int = setting(0, least=0, most=10**9)
    perturbations: tuple[str, ...] = setting((), choices=PERTURBATIONS)
    perturbation_rate: float = setting(0.1, above=0, most=1)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Section):
    """AdamW and its learning rate.

    Attributes:
      learning_rate: highest learning rate.
      weight_decay: weight decay of AdamW.
      schedule: learning rate after the warm-up: constant, or linear or cosine down to 0 at the
        task's end.
      warmup_fraction: part of a task's steps in which the rate rises linearly.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them alone.
    """

    KEY: ClassVar[str] = "optimizer"
    learning_rate: float = setting(2e-4, least=0, most=10, by_task=True)
    weight_decay: float = setting(0.01, least=0, most=1000, by_task=True)
    schedule: str = setting("constant", choices=SCHEDULES, by_task=True)
    warmup_fraction: float = setting(0.0, least=0, most=1, by_task=True)
    clip_norm: float = setting(0.0, least=0, most=1e9, by_task=True)


SECTIONS: dict[str, type[Section]] = {
    cls.KEY: cls
    for cls in (
        ModelSettings,
        Lora,
        DataSettings,
        BatchSettings,
        MeshSettings,
        EvaluationSettings,
        OptimizerSettings,
        AdversarialInputs,
        SelfSupervised,
    )
}


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """All settings of a run.

    Attributes:
      seed: seed of initial values, dropout, sub-sampling and the order of examples.
      method: name of a method, or "package.module:Class".
      head: lm (the LLM's own output layer writes the answer: instruction tuning) or classification
        (a linear head a task on the last token of the prompt).
      shared_head: whether all tasks share one classification head, carried on from task to task, as
        the original's code has it for Tencent3. Every task then has equally many labels.
      tasks: names of the tasks in the order of training, out of the catalog or of `definitions`.
        Extend the list and run again with the same workdir to train the new tasks only.
      definitions: fields of tasks by name (docs: Tasks).
      task_settings: values of some tasks' own, by the task's name and then as in a config, such as
        `task_settings.trec.optimizer.learning_rate`. They may be given for what changes neither
        shapes nor what finished tasks answer.
      model: how the frozen LLM is loaded and computed.
      lora: the low-rank experts.
      options: the methods' own sections, each a mapping of keys and values; what is left out has
        its default.
      data: which examples are read, and how they are cut.
      batch: sizes and layout of batches.
      mesh: the mesh of devices.
      evaluation: how answers are evaluated.
      optimizer: AdamW and its learning rate.
      adversarial_inputs: adversarial training on the word embeddings.
      self_supervised: training by next tokens on texts without labels.
      epochs: passes over each task's training examples.
      selection: best keeps the epoch that validates best, last the last one.
      log_every: steps between two logged ones.
      trackers: what shows figures while they are trained, beside metrics.jsonl: tensorboard, wandb,
        mlflow, or "package.module:Class" (docs: Watching a training).
      checkpoint_every: steps between two checkpoints inside a task; the end of an epoch is always
        saved.
      keep_shared: number of the newest finished tasks with which the shared trees and memory of
        their moment are kept; 0: all of them. Older ones serve to go back to that task, and to fill
        its row of the matrix for tasks that are added to the stream.
    """

    seed: int = setting(0, least=0, below=2**63)
    method: str = "moe_cl"
    head: str = setting("lm", choices=("lm", "classification"))
    shared_head: bool = False
    tasks: tuple[str, ...] = ("trec", "sms_spam")
    definitions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    task_settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    model: ModelSettings = ModelSettings()
    lora: Lora = Lora()
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    data: DataSettings = DataSettings()
    batch: BatchSettings = BatchSettings()
    mesh: MeshSettings = MeshSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    adversarial_inputs: AdversarialInputs = AdversarialInputs()
    self_supervised: SelfSupervised = SelfSupervised()
    epochs: int = setting(3, least=1, most=10**6, by_task=True)
    selection: str = setting("best", choices=("best", "last"), by_task=True)
    log_every: int = setting(10, least=1, most=10**9)
    trackers: tuple[str, ...] = ("tensorboard",)
    checkpoint_every: int = setting(200, least=1, most=10**9)
    keep_shared: int = setting(0, least=0, most=10**9)

    def __post_init__(self) -> None:
        """Checks all values, and completes `options`."""
        super().__post_init__()
        if not self.lora.targets:
            raise UserError(
                "config: lora.targets = () must name at least one projection, or nothing is "
                f"trained; there are {', '.join(TARGETS)}"
            )
        check_names(self.trackers)
        _check_definitions(self.definitions)
        object.__setattr__(self, "definitions", with_inherited(self.definitions))
        object.__setattr__(self, "options", _options(find_method(self.method), self.options))
        if self.task_settings:
            self._check_task_settings()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Settings out of a config's nested mapping; what is left out has its default.

        Raises:
          UserError: a key is unknown, a value is not allowed, or the method cannot be found.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"config: {shortened(values)} must be a section of keys and values")
        method = find_method(values.get("method", cls.method))
        defaults = _option_defaults(method)
        known = {**SECTIONS, **defaults}
        refuse_unknown(_keys(values, known), sorted(_known_keys(defaults)))
        found = {name: value for name, value in values.items() if name not in defaults}
        options = {name: value for name, value in values.items() if name in defaults}
        return cls(**found, options=options)

    def to_mapping(self) -> dict[str, Any]:
        """The nested mapping that `from_mapping` reads, with every value."""
        content: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "options":
                content |= {name: dict(keys) for name, keys in value.items()}
            elif isinstance(value, Section):
                content[field.name] = dataclasses.asdict(value)
            elif field.name in ("definitions", "task_settings"):
                content[field.name] = {name: dict(fields) for name, fields in value.items()}
            else:
                content[field.name] = value
        return content

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """These settings with some values changed.

        Args:
          changes: values by key; a section's is a section, or a mapping of the keys that change.

        Raises:
          UserError: a key is unknown, or a value is not allowed.
        """
        content = self.to_mapping()
        if "method" in changes:  # the sections of a method from outside go with it
            known = _option_defaults(find_method(changes["method"]))
            for name in self.options.keys() - known.keys():
                del content[name]
        for key, value in changes.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            old = content.get(key)
            partial = key not in ("definitions", "task_settings") and isinstance(value, Mapping)
            content[key] = {**old, **value} if partial and isinstance(old, Mapping) else value
        return Settings.from_mapping(content)

    @property
    def by_task(self) -> set[str]:
        """Dotted keys of the values that may differ from task to task."""
        method = find_method(self.method)
        return keys_by_task(Settings, "") | keys_by_task(method.Options, method.name)

    @property
    def values_by_task(self) -> dict[str, Any]:
        """The values that may differ from task to task, by dotted key."""
        known = self.by_task
        return {key: value for key, value in leaves(self.to_mapping()) if key in known}

    def for_task(self, name: str) -> "Settings":
        """The settings that a task is trained with: these, and the task's own."""
        changes = {**self.task_settings.get(name, {}), "task_settings": {}}
        return self.changed(changes) if self.task_settings else self

    def _check_task_settings(self) -> None:
        """Refuses values of tasks that do not exist, or that cannot be a task's own."""
        if not isinstance(self.task_settings, Mapping):
            raise UserError(
                f"config: task_settings = {shortened(self.task_settings)} must map tasks to values"
            )
        for name, values in self.task_settings.items():
            place = f"config: task_settings.{name}"
            if name not in self.tasks:
                hint = suggestion(str(name), self.tasks)
                raise UserError(f"{place}: config.tasks has no such task{hint}")
            if not isinstance(values, Mapping):
                raise UserError(f"{place} = {shortened(values)} must be a section of values")
            try:
                own = self.for_task(name)
            except UserError as error:
                raise UserError(f"{place}: {str(error).removeprefix('config: ')}") from error
            for key, _ in leaves(values):
                if key not in own.by_task:
                    raise UserError(f"{place}.{key}: {why_for_all(key)}")

    def method_object(self) -> Method:
        """The method with its hyper-parameters.

        Raises:
          UserError: it cannot be found, or a value is not allowed.
        """
        method = find_method(self.method)
        return method(self.lora, from_sections(method, self.options))

    def task_objects(self) -> tuple[Task, ...]:
        """The tasks in their order.

        Raises:
          UserError: a task is unknown, named twice, or wrongly defined; or there is none.
        """
        own = {n: Task.from_fields(n, fields) for n, fields in self.definitions.items()}
        known = {**CATALOG, **own}
        for name in self.tasks:
            if name not in known:
                defined = listed(own) or "empty"
                raise UserError(
                    f"config: tasks names {shortened(name)}, which is neither in the catalog "
                    f"({', '.join(CATALOG)}) nor in config.definitions ({defined})"
                )
        names = list(self.tasks)
        if not names or len(set(names)) < len(names):
            raise UserError(
                "config: tasks must name at least one task, none twice; it is "
                f"{shortened(names, 200)}"
            )
        return tuple(known[name] for name in names)


# Why a value is one for all tasks of a stream, by the beginning of its key.
_FOR_ALL = {
    "lora.": "it is one for all tasks: what was trained is computed with it",
    "model.": "it is one for all tasks: what was trained fits one frozen model",
    "data.": "it is one for all tasks: their examples are read and cut alike",
    "seed": "it is one for all tasks: starting values and the order of examples follow from it",
    "definitions.": "a task that was begun stays what it is",
}


def why_for_all(key: str) -> str:
    """Why a value cannot differ from task to task."""
    for beginning, reason in _FOR_ALL.items():
        if key.startswith(beginning):
            return reason
    return "it is one for all tasks: it decides shapes, or what finished tasks answer"


def settings_of(method: Method) -> dict[str, Any]:
    """What settings say of a method that was made in Python."""
    cls = find_method(type(method))
    return {"method": spec_of(cls), "lora": method.lora, **to_sections(cls, method.options)}


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted key and value of everything in a nested mapping that is no mapping itself."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _methods(method: type[Method]) -> Sequence[type[Method]]:
    """The known methods, and one that may come from outside."""
    return list({**METHODS, method.name: method}.values())


def _option_defaults(method: type[Method]) -> dict[str, dict[str, Any]]:
    """Sections of the options of all methods, with their default values."""
    sections: dict[str, dict[str, Any]] = {}
    taken = {field.name for field in dataclasses.fields(Settings)}
    for each in _methods(method):
        for name, keys in to_sections(each, each.Options()).items():
            if name in taken or sections.get(name, keys).keys() != keys.keys():
                raise UserError(
                    f"method {method.name!r}: {name!r} is a config key already; give the method, "
                    "or the field of its Options, another name"
                )
            sections[name] = keys
    return sections


def _options(
    method: type[Method], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Complete sections of the options of all methods; all are checked, not the method's alone."""
    defaults = _option_defaults(method)
    refuse_unknown(_keys(given, defaults), sorted(_known_keys(defaults)))
    sections: dict[str, dict[str, Any]] = {}
    for each in _methods(method):
        sections |= to_sections(each, from_sections(each, given))
    return sections


def _known_keys(defaults: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    yield from (field.name for field in dataclasses.fields(Settings) if field.name != "options")
    for name, cls in SECTIONS.items():
        yield from (f"{name}.{field.name}" for field in dataclasses.fields(cls))
    for name, keys in defaults.items():
        yield name
        yield from (f"{name}.{key}" for key in keys)


def _keys(values: Mapping[str, Any], sections: Iterable[str]) -> Iterable[str]:
    """Dotted keys of a nested mapping, those below "definitions" left out."""
    sections = set(sections)
    for key, value in values.items():
        yield str(key)
        if isinstance(value, Mapping) and key in sections:
            yield from (f"{key}.{name}" for name in value)


def _check_definitions(definitions: Any) -> None:
    if not isinstance(definitions, Mapping):
        raise UserError(
            f"config: definitions = {shortened(definitions)} must map names to tasks' fields"
        )
    for name, fields in definitions.items():
        if not isinstance(fields, Mapping):
            raise UserError(
                f"config: definitions.{name} = {shortened(fields)} must map fields to values"
            )
