"""A trained stream that answers: labels for texts, written answers, scores of its tasks."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax import reporting
from moecl_jax.data.batching import chunks
from moecl_jax.data.settings import DataSettings
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.methods import mixed
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.stream import StreamState
from moecl_jax.models.model import Model
from moecl_jax.outside import shortened
from moecl_jax.runs.data_record import refuse_other_tokenizer
from moecl_jax.runs.log import plain
from moecl_jax.runs.names import RESULTS_NAME
from moecl_jax.runs.results import Results
from moecl_jax.runs.settings import EvaluationSettings
from moecl_jax.runs.store import DiskStore, Store
from moecl_jax.runs.workdir import load_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.generation import GREEDY, NOT_FINITE, Generator, Sampling
from moecl_jax.serving.prompts import Prompt, PromptReader, choosing_reader, reader_of_task
from moecl_jax.serving.robustness import evaluate_perturbed
from moecl_jax.serving.scoring import labelled
from moecl_jax.weights.load import load_model

_TEXTS_A_CALL = 256  # enough to fill batches


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A text's label.

    Attributes:
      label: the best label.
      probabilities: probability of each label of the task.
      logits: scores in label order; with the LM head the log-probability of each label's text.
      task: name of the task that answered.
      truncated: whether the text was cut to fit.
    """

    label: str
    probabilities: dict[str, float]
    logits: list[float]
    task: str
    truncated: bool = False


class Session:
    """The finished tasks of a stream, ready to answer.

    Attributes:
      evaluator: model, method and tasks.
      state: the finished tasks' parameters.
      results: accuracy matrix and metrics, as the training that finished last wrote them; None
        where none has.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: Store,
        state: StreamState,
        results: Results | None = None,
        *,
        place: str = "the session",
    ):
        """Answers with what a store holds.

        Args:
          evaluator: model, method and tasks.
          store: keeps the features by which a text's task is chosen.
          state: state of the stream, with at least one finished task.
          results: results of the training that finished last, if one has.
          place: names the session in messages, such as its workdir.
        """
        self.evaluator, self.state, self.results = evaluator, state, results
        self._store, self._place = store, place
        self._parameters = functools.lru_cache(maxsize=1)(self._build_parameters)

    @property
    def tasks(self) -> list[str]:
        """Names of the finished tasks in their order, less those that continue another.

        What was trained last of such tasks answers for the name of the first.
        """
        first = self.evaluator.starting.first
        return [name for name in self._finished if first(name) == name]

    @property
    def _finished(self) -> list[str]:
        """Names of all finished tasks that were not removed."""
        finished = self.evaluator.tasks[: len(self.state.finished)]
        return [task.name for task in finished if not task.removed]

    def predict(
        self, texts: Sequence[str | Mapping[str, Any]], task: str | None = None
    ) -> list[Prediction]:
        """Labels texts.

        Args:
          texts: texts, or records with the task's text fields, or with `text` or `input_ids`.
          task: name of a finished task with labels; None to choose each text's task by the text.

        Returns:
          A prediction for each text, in their order.

        Raises:
          UserError: a text is empty or does not fit (says which), there is no such task, the
            method keeps no expert a task to choose among, or scores are not finite.
        """
        reader = self.reader(task)
        predictions: list[Prediction] = []
        for prompts in self._prompts(reader, texts):
            labelled = self.label([prompt for _, prompt in prompts])
            for (added, prompt), fields in zip(prompts, labelled, strict=True):
                if "error" in fields:
                    raise UserError(f"text {len(predictions)}: {fields['error']}")
                name = self.evaluator.names[prompt.task]
                predictions.append(Prediction(**fields, task=name, truncated="truncated" in added))
        return predictions

    def generate(
        self,
        texts: Sequence[str | Mapping[str, Any]],
        task: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        base: bool = False,
    ) -> list[str]:
        """Writes an answer to each text.

        Args:
          texts: texts, or records with the task's text fields, or with `text` or `input_ids`.
          task: name of a finished task.
          max_tokens: tokens of an answer; by default the run's data.max_response.
          sampling: how tokens are chosen; greedily by default.
          seed: seed of sampling.
          base: whether the frozen model answers alone, as before any training.

        Raises:
          UserError: a text is empty or does not fit (says which), there is no such task, the
            session has classification heads, or scores are not finite.
        """
        reader = self.reader(task, written=True)
        answers: list[str] = []
        for prompts in self._prompts(reader, texts):
            written = self.write(
                [prompt for _, prompt in prompts],
                max_tokens=max_tokens,
                sampling=sampling,
                seed=seed,
                base=base,
            )
            for fields in written:
                if "error" in fields:
                    raise UserError(f"text {len(answers)}: {fields['error']}")
                answers.append(fields["response"])
        return answers

    def stream(
        self,
        text: str,
        task: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        base: bool = False,
    ) -> Iterator[str]:
        """The answer to one text, piece by piece as it is written; arguments as for `generate`."""
        reader = self.reader(task, written=True)
        [(added, prompt)] = reader.read([{"text": text}])
        if prompt is None:
            raise UserError(f"the prompt {shortened(text)}: {added['error']}")
        if "truncated" in added:
            reporting.current().message(
                f"note: the prompt was cut to its first {len(prompt.ids)} tokens"
            )
        parameters = self._parameters((prompt.task,), base)
        asked = self.evaluator.precede(parameters, prompt.task, [prompt.example])
        tokens = self._generator.stream(
            asked.parameters,
            asked.examples[0].prompt,
            prefix=asked.prefix,
            max_tokens=self._max_response if max_tokens is None else max_tokens,
            sampling=sampling,
            seed=seed,
        )
        ids: list[int] = []
        shown = ""
        for token in tokens:
            ids.append(token)
            written = self._text(np.array(ids))
            # A character of several tokens is not shown before its last one.
            if not written.endswith("\N{REPLACEMENT CHARACTER}"):
                yield written[len(shown) :]
                shown = written
        yield self._text(np.array(ids))[len(shown) :]

    def evaluate(
        self,
        split: str = "test",
        tasks: Sequence[Task] | None = None,
        *,
        perturbations: Sequence[str] = (),
        perturbation_rate: float = 0.1,
    ) -> dict[str, Any]:
        """Scores the finished tasks on one of their splits.

        Args:
          split: "train", "validation" or "test".
          tasks: tasks with their examples, where these were given in Python and the session was
            opened from a workdir; by default the session's own.
          perturbations: small changes of the texts with which they are scored too, some of
            `moecl_jax.data.perturbing.PERTURBATIONS`.
          perturbation_rate: part of the places in a text that each of them changes.

        Returns:
          `split`, and `tasks`: by name `examples`, `accuracy`, `scored_accuracy`,
          `log_likelihood` and `classification` (figures of each label, as in results.json), None
          where they are not defined; with perturbations also `robustness`, with `accuracy` and
          `changed` by kind, and `under_attack`. A task whose data cannot be read has the reason
          under `error` alone.

        Raises:
          UserError: there is no such split or perturbation, or the data of no task can be read.
        """
        section = EvaluationSettings(
            perturbations=tuple(perturbations), perturbation_rate=perturbation_rate
        )
        kinds, rate = section.perturbations, section.perturbation_rate
        if split not in SPLITS:
            raise UserError(f"--split={split} is not one of {', '.join(SPLITS)}")
        by_task: dict[str, dict[str, Any]] = {}
        loaded = self._load(tasks)
        with reporting.working() as progress:
            work = self.evaluator.work(loaded, split)
            progress.expect({name: (1 + len(kinds)) * each for name, each in work.items()})
            for task in loaded:
                if task.unread and all(each.unread for each in loaded):
                    raise UserError(task.unread)
                if task.unread:
                    by_task[task.name] = {"error": task.unread}
                    continue
                index, examples = self.evaluator.index(task.name), task.splits[split]
                parameters = self._parameters((index,), False)
                result = self.evaluator.evaluate(parameters, index, examples)
                by_task[task.name] = {
                    "examples": len(examples),
                    "accuracy": result.accuracy,
                    "scored_accuracy": result.scored_accuracy,
                    "log_likelihood": result.log_likelihood,
                    "classification": result.classification,
                }
                if kinds:
                    robustness = evaluate_perturbed(
                        self.evaluator, parameters, index, examples, result, kinds, rate
                    )
                    by_task[task.name]["robustness"] = dataclasses.asdict(robustness)
        return {"split": split, "tasks": plain(by_task)}

    def examples(self, split: str) -> dict[str, list[TokenizedExample]]:
        """All examples of a split by the finished tasks' names; none where data cannot be read.

        Also those that a training leaves out to have equally many of each label.
        """
        settings = self.evaluator.settings.changed({"data": {f"{split}_examples": 0}})
        return {task.name: list(task.splits[split]) for task in self._load(None, settings.data)}

    # What follows serves the wrappers around files of records.

    def reader(self, task: str | None, *, written: bool = False) -> PromptReader:
        """Reads prompts of a finished task, or of the task that each text belongs to.

        Args:
          task: name of the task; None to choose each text's.
          written: whether answers are to be written, or labels to be chosen.

        Raises:
          UserError: the task is not finished, or answers in another way; or none can be chosen.
        """
        if task is None:
            return self._choosing_reader()
        index = self.evaluator.index(task)
        if self.evaluator.tasks[index].removed:
            raise UserError(
                f"task '{task}' was removed from {self._place}; finished are "
                f"{', '.join(self.tasks)}"
            )
        if task not in self.state.finished:
            raise UserError(
                f"task '{task}' has not been trained to its end in {self._place}; finished are "
                f"{', '.join(self.tasks)}"
            )
        if written and self.evaluator.generator is None:
            method = self.evaluator.method
            key = f"method = '{method.name}'" if method.traits.votes else "head = 'classification'"
            raise UserError(
                f"task '{task}' was trained with {key}: it has labels and writes no text; use "
                "'moecl predict'"
            )
        if not written and self.evaluator.tasks[index].free_form:
            raise UserError(
                f"task '{task}' answers in free text and has no labels to predict; use "
                "'moecl generate'"
            )
        return reader_of_task(self.evaluator, index)

    def label(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """`label`, `probabilities` and `logits` of each prompt, or an `error`."""
        evaluator, added = self.evaluator, [dict[str, Any]()] * len(prompts)
        tasks = sorted({prompt.task for prompt in prompts})
        together = mixed.MOST_TASKS if mixed.can_mix(evaluator.method) else 1
        for group in chunks(tasks, together):
            places = [place for place, prompt in enumerate(prompts) if prompt.task in group]
            labels = [evaluator.tasks[task].labels for task in group]
            own = [group.index(prompts[place].task) for place in places]
            examples = [prompts[place].example for place in places]
            parameters = self._parameters(tuple(group), False)
            scores = evaluator.scores_of_several(parameters, group, examples, own)
            for place, task, row in zip(places, own, scores.scores.astype(np.float64), strict=True):
                added[place] = labelled(labels[task], row[: len(labels[task])])
        return added

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        base: bool = False,
    ) -> list[dict[str, Any]]:
        """The `response` to each prompt of one task, or an `error`; arguments as for `generate`."""
        if not prompts:
            return []
        written = self.evaluator.write(
            self._parameters((prompts[0].task,), base),
            prompts[0].task,
            [prompt.example for prompt in prompts],
            max_tokens=self._max_response if max_tokens is None else max_tokens,
            sampling=sampling,
            seed=seed,
            batch_size=self.evaluator.settings.batch.evaluation_size,
        )
        return [
            {"error": NOT_FINITE} if ids is None else {"response": self._text(ids)}
            for ids in written
        ]

    @property
    def _generator(self) -> Generator:
        generator = self.evaluator.generator
        assert generator is not None  # `reader` has seen to it
        return generator

    @property
    def _max_response(self) -> int:
        return self.evaluator.settings.data.max_response

    def _text(self, ids: np.ndarray) -> str:
        """The text of an answer's ids, without the space that parts it from its prompt."""
        tokenizer: Any = self.evaluator.model.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _load(
        self, tasks: Sequence[Task] | None, data: DataSettings | None = None
    ) -> list[TokenizedTask]:
        evaluator = self.evaluator
        given = {task.name: task for task in tasks or ()}
        chosen = [given.get(task.name, task) for task in evaluator.tasks]
        wanted = [task for task in chosen if task.name in self._finished]
        return evaluator.load(wanted, spared=self._finished, data=data)

    def _build_parameters(self, tasks: tuple[int, ...], base: bool) -> TaskParameters:
        """What answers for one task, or for several in the same batch."""
        evaluator = self.evaluator
        starting, names = evaluator.starting, evaluator.names
        state = starting.stream(len(names)) if base else self.state
        own = [starting.task(state, names[task], task) for task in tasks]
        return evaluator.model.placement.put(own[0] if len(own) == 1 else mixed.together(own))

    def _choosing_reader(self) -> PromptReader:
        method = self.evaluator.method
        problem = f"it was trained with method = '{method.name}', which keeps no expert a task"
        if method.traits.expert_per_task:
            features = self._store.restore_features(self.state)
            if features is not None and features.names:
                return choosing_reader(self.evaluator, features)
            problem = "none of its tasks has labels"
            if features is None:
                problem = (
                    "its checkpoints do not hold features of all tasks' texts (some were "
                    "converted, or written by an older version)"
                )
        raise UserError(
            f"{self._place} cannot tell a text's task: {problem}. Name one by --task: "
            f"{', '.join(self.tasks)}"
        )

    def _prompts(
        self, reader: PromptReader, texts: Sequence[str | Mapping[str, Any]]
    ) -> Iterator[list[tuple[dict[str, Any], Prompt]]]:
        """What texts gain and their prompts, some at a time.

        Raises:
          UserError: a text has no prompt; names the first one and the reason.
        """
        if isinstance(texts, str):
            raise UserError("texts must be a list of texts, not one text; write [text]")
        for places in chunks(range(len(texts)), _TEXTS_A_CALL):
            given = [texts[place] for place in places]
            records = [{"text": text} if isinstance(text, str) else text for text in given]
            prompts = []
            for place, (added, prompt) in zip(places, reader.read(records), strict=True):
                if prompt is None:
                    raise UserError(f"text {place}: {added['error']}")
                prompts.append((added, prompt))
            yield prompts


def open_run(
    workdir: str | Path, *, model: Model | None = None, tasks: Sequence[Task] = ()
) -> Session:
    """Opens a workdir to answer with its finished tasks.

    Args:
      workdir: folder of a training or a conversion.
      model: the model that it was trained in, if it is loaded already.
      tasks: tasks whose examples were given in Python, for `Session.evaluate`.

    Raises:
      UserError: it is no workdir, nothing is finished in it, or it does not fit the model.
    """
    workdir = Path(workdir)
    evaluator, store = open_stream(workdir, model=model, tasks=tasks)
    state, history = store.restore(lazily=True)
    if history is None:
        raise UserError(f"{workdir} holds no finished task yet; train it with 'moecl train'")
    results = None
    if (workdir / RESULTS_NAME).exists():
        results = Results.load(workdir)
    return Session(evaluator, store, state, results, place=str(workdir))


def open_stream(
    workdir: Path, *, model: Model | None = None, tasks: Sequence[Task] = ()
) -> tuple[Evaluator, DiskStore]:
    """The evaluator and the store of a workdir, whatever is finished in it.

    Raises:
      UserError: it is no workdir, or it does not fit the model.
    """
    settings = load_settings(workdir)
    given = {task.name: task for task in tasks}
    chosen = [given.get(task.name, task) for task in settings.task_objects()]
    loaded = model_of(settings) if model is None else model
    refuse_other_tokenizer(workdir, loaded.tokenizer)
    evaluator = Evaluator(loaded, settings.method_object(), chosen, settings)
    store = DiskStore(workdir, chosen, evaluator.starting, loaded, settings)
    return evaluator, store


def model_of(settings: Any, *, shapes_only: bool = False) -> Model:
    """Loads the model that settings name, or its shapes alone; see `load_model`."""
    section = settings.model
    return load_model(
        section.path,
        dtype=section.dtype,
        quantization=section.quantization,
        remat=section.remat,
        attention=section.attention,
        mesh=dataclasses.asdict(settings.mesh),
        family=section.family or None,
        shapes_only=shapes_only,
    )
