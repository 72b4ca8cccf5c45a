"""Answers for the tasks of a stream: scores, features and text, with any parameters."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from moecl_jax import reporting
from moecl_jax.data.batching import BatchLayout, make_mixed_batch, need_of
from moecl_jax.data.loading import load_tasks
from moecl_jax.data.shapes import Need, scoring_shapes
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import (
    TokenizedExample,
    TokenizedTask,
    bare_prompts,
    end_of_sequence,
    prompt_format,
    prompt_limit,
    tokenize_answers,
    tokenize_prompt,
)
from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.stream import StartingValues
from moecl_jax.models.lora import ATTENTION_TARGETS
from moecl_jax.models.model import Model
from moecl_jax.progress import EVALUATE, WRITE
from moecl_jax.runs.history import Evaluation
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.generation import Generator, Sampling
from moecl_jax.serving.scoring import (
    Scores,
    Scoring,
    evaluate_examples,
    evaluation_step,
    score,
    score_mixed,
)
from moecl_jax.serving.task_choice import extract, feature_step
from moecl_jax.serving.text_scores import labels_of, score_texts

_ONE_TOKEN = TokenizedExample(np.zeros(1, np.int32), 0)


class Evaluator:
    """A model with a method's experts, ready to answer for the tasks of a stream.

    Attributes:
      model: frozen LLM.
      method: continual-learning method.
      settings: settings of the run.
      tasks: tasks of the stream in their order.
      context: static parts of all steps.
      starting: starting values of the stream's parameters.
      answers: for each task the ids of its labels' texts; empty with classification heads and for
        free-form tasks.
      sampling: how answers that are evaluated are decoded.
    """

    def __init__(self, model: Model, method: Method, tasks: Sequence[Task], settings: Settings):
        """Checks that model, method and tasks fit each other.

        Raises:
          UserError: they do not; says why.
        """
        head: Any = settings.head
        _check(model, method, tasks, settings)
        self.model, self.method, self.settings, self.tasks = model, method, settings, tuple(tasks)
        self.context = StepContext(
            model.architecture,
            method,
            head,
            attack=settings.adversarial_inputs,
            self_supervised=settings.self_supervised,
        )
        self.answers = _answers(head, tasks, model)
        classes = max(1, *(len(task.labels) for task in tasks))
        self.starting = StartingValues(
            method, model.sizes, settings.seed, head, classes, settings.shared_head
        )
        section = settings.evaluation
        self.sampling = Sampling(section.temperature, section.top_k, section.top_p)
        self._evaluation_step = jax.jit(functools.partial(evaluation_step, context=self.context))
        self._feature_step = jax.jit(
            functools.partial(feature_step, architecture=model.architecture)
        )

    @property
    def names(self) -> list[str]:
        """Names of the tasks in their order."""
        return [task.name for task in self.tasks]

    def index(self, name: str) -> int:
        """Place of a task in the stream.

        Raises:
          UserError: there is no such task.
        """
        if name not in self.names:
            raise UserError(f"there is no task '{name}'; the tasks are {', '.join(self.names)}")
        return self.names.index(name)

    def load(
        self, tasks: Sequence[Task] | None = None, spared: Collection[str] = ()
    ) -> list[TokenizedTask]:
        """Reads and tokenises the examples of tasks of the stream, of all as a default.

        Args:
          tasks: some of the stream's tasks, maybe with other examples.
          spared: names of the tasks that may be without data, as `load_tasks` says.

        Raises:
          UserError: data are missing or malformed, or do not fit.
        """
        chosen = self.tasks if tasks is None else tasks
        return load_tasks(
            chosen,
            [self.answers[self.index(task.name)] for task in chosen],
            self.settings.data,
            seed=self.settings.seed,
            tokenizer=self.model.tokenizer,
            vocabulary_size=self.model.sizes.vocabulary_size,
            spared=spared,
        )

    def layout(self, batch_size: int) -> BatchLayout:
        """How batches of this size are laid out."""
        section = self.settings.batch
        longest = max((len(ids) for labels in self.answers for ids in labels), default=1)
        return BatchLayout(
            batch_size,
            packed=section.layout == "packed",
            row_length=section.row_length,
            continuations=self.starting.classes if self.context.head == "lm" else 1,
            answer_length=longest,
            padded_length=self.settings.data.max_length if section.layout == "padded_to_max" else 0,
            row_multiple=self.model.placement.row_shards,
            compact=self.model.placement.one_cpu,
        )

    @functools.cached_property
    def scoring(self) -> Scoring:
        """How texts to be scored are laid out; their shapes follow from settings and tasks."""
        section, data = self.settings.batch, self.settings.data
        needs, answer = [Need(data.max_length, 1, 1)], 1
        for task, answers in zip(self.tasks, self.answers, strict=True):
            limit = prompt_limit(task, answers, data.max_length, data.max_response)
            responses = (np.zeros(data.max_response, np.int32),) if task.free_form else answers
            longest = TokenizedExample(np.zeros(limit, np.int32), 0)
            needs.append(need_of(longest, responses, training=False))
        answer = max(need.answer for need in needs)
        slots = section.evaluation_size * section.row_length // 4
        layout = self.layout(section.evaluation_size)
        if layout.packed:  # short texts, too, fill all slots
            layout = dataclasses.replace(layout, batch_size=max(layout.batch_size, slots // 8))
        shapes = scoring_shapes(
            slots,
            max(need.slots for need in needs),
            max(need.predicted for need in needs),
            answer,
            layout.planner,
        )
        return Scoring(layout, shapes)

    def scores(
        self, parameters: TaskParameters, index: int, examples: Sequence[TokenizedExample]
    ) -> Scores:
        """Scores of examples that are asked as a task's.

        Args:
          parameters: parameters that answer.
          index: place of the task.
          examples: n of them.
        """
        return score(
            self._evaluation_step,
            self.model.placement.put(self.method.answering(parameters)),
            self.model.params,
            examples,
            self.answers[index],
            self.scoring,
            class_count=len(self.tasks[index].labels),
        )

    def scores_of_several(
        self,
        parameters: TaskParameters,
        group: Sequence[int],
        examples: Sequence[TokenizedExample],
        own: Sequence[int],
    ) -> Scores:
        """Scores of examples of several tasks in the same batches.

        Args:
          parameters: parameters of the group's tasks, as `methods.mixed.together` gives them.
          group: places of the tasks in the stream.
          examples: n of them.
          own: each example's task, as an index into the group.
        """
        return score_mixed(
            self._evaluation_step,
            parameters,
            self.model.params,
            examples,
            own,
            [self.answers[task] for task in group],
            self.scoring,
            class_counts=[len(self.tasks[task].labels) for task in group],
        )

    def prepare_scores(self, parameters: TaskParameters, group: Sequence[int]) -> None:
        """Compiles all programs of `scores_of_several` for so many tasks, by running each once."""
        answers = [self.answers[task] for task in group]
        counts = [len(self.tasks[task].labels) for task in group]
        needs = [need_of(_ONE_TOKEN, labels, training=False) for labels in answers]
        least = min(range(len(group)), key=lambda task: needs[task].slots)
        layout = self.scoring.layout
        for shape in self.scoring.shapes:
            if shape.holds([needs[least]], layout.packed):  # else no text of these tasks is in it
                batch = make_mixed_batch(
                    [_ONE_TOKEN], [least], answers, layout, class_counts=counts, shape=shape
                )
                jax.block_until_ready(self._evaluation_step(parameters, self.model.params, batch))

    def prepare_features(self) -> None:
        """Compiles all programs of `features`, by running each once."""
        scoring = self.scoring.of_one_shape
        for shape in scoring.shapes:
            scored = dataclasses.replace(scoring, shapes=(shape,))
            extract(self._feature_step, self.model.params, [_ONE_TOKEN.prompt], scored)

    def evaluate(
        self, parameters: TaskParameters, index: int, examples: Sequence[TokenizedExample]
    ) -> Evaluation:
        """How well given parameters answer examples that are asked as a task's.

        Arguments as for `scores`.
        """
        task = self.tasks[index]
        parameters = self.model.placement.put(parameters)
        label, count = f"evaluating {task.name}", len(examples)
        with reporting.stage(label, EVALUATE, count, size=text_size(examples)):
            evaluation = evaluate_examples(
                self.scores(parameters, index, examples), examples, task.labels
            )
        if not examples or not self.writes(index) or self.generator is None:
            return evaluation
        tokenizer: Any = self.model.tokenizer
        longest = self.settings.data.max_response
        with reporting.stage(f"writing answers of {task.name}", WRITE, count):
            written = self.generator.write(
                parameters,
                [example.prompt for example in examples],
                max_tokens=longest if task.free_form else self.scoring.layout.answer_length,
                sampling=self.sampling,
                seed=self.settings.seed,
                batch_size=self.settings.batch.evaluation_size,
            )
        if not task.free_form:
            predicted = labels_of(written, self.answers[index])
            accuracy = float((predicted == evaluation.gold).mean())
            return dataclasses.replace(evaluation, accuracy=accuracy, predicted=predicted)
        texts = [
            "" if ids is None else str(tokenizer.decode(ids, skip_special_tokens=True))
            for ids in written
        ]
        expected = [example.response_text for example in examples]
        return dataclasses.replace(evaluation, accuracy=score_texts(texts, expected, task.metric))

    def work(self, tasks: Sequence[TokenizedTask], split: str) -> dict[str, float]:
        """How much work it is to evaluate some of the stream's tasks on a split, by kind."""
        examples = {self.index(task.name): task.splits[split] for task in tasks}
        return {
            EVALUATE: sum(len(own) * text_size(own) for own in examples.values()),
            WRITE: sum(len(own) for place, own in examples.items() if self.writes(place)),
        }

    def writes(self, index: int) -> bool:
        """Whether a task's answers are written, token by token, when it is evaluated."""
        written = self.settings.evaluation.answers == "generated"
        return self.context.head == "lm" and (written or self.tasks[index].metric == "rouge_l")

    def features(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """What the frozen model makes of each text alone, `[n, D]`, of at least one."""
        texts = bare_prompts(examples, self.model.tokenizer, self.settings.data.max_length)
        label, size = "reading texts", text_size(examples)
        with reporting.stage(label, EVALUATE, len(texts), size=size):
            return extract(self._feature_step, self.model.params, texts, self.scoring.of_one_shape)

    @functools.cached_property
    def generator(self) -> Generator | None:
        """Writes text with the LM head; None with classification heads."""
        if self.context.head != "lm":
            return None
        tokenizer: Any = self.model.tokenizer
        return Generator.of(self.context, self.model.params, end_of_sequence(tokenizer))

    def prompt_of(self, index: int) -> Callable[[TokenizedExample], tuple[np.ndarray, bool]]:
        """Gives an example's prompt as a task's, and whether it was cut to fit.

        An example with a text is put into the task's template; one without keeps its ids.
        """
        task, tokenizer = self.tasks[index], self.model.tokenizer
        form = prompt_format(task, tokenizer)
        section = self.settings.data
        limit = prompt_limit(task, self.answers[index], section.max_length, section.max_response)

        def fit(example: TokenizedExample) -> tuple[np.ndarray, bool]:
            if example.text and tokenizer is not None:
                return tokenize_prompt(example.text, form, tokenizer, limit)
            return example.prompt[:limit], len(example.prompt) > limit

        return fit


def text_size(examples: Sequence[TokenizedExample]) -> float:
    """Mean tokens of the prompts, which say how much work a text is; 0 where there are none."""
    return sum(len(example.prompt) for example in examples) / max(1, len(examples))


def _check(model: Model, method: Method, tasks: Sequence[Task], settings: Settings) -> None:
    """Refuses settings that do not fit the model, the method or the tasks."""
    data = settings.data
    sizes = model.sizes
    if method.lora.rank > min(sizes.width, sizes.ffn_width):
        raise UserError(
            f"config: lora.rank = {method.lora.rank} exceeds the model's width of "
            f"{min(sizes.width, sizes.ffn_width)}, above which a rank adds nothing; lower it"
        )
    if settings.shared_head:
        _check_shared_head(settings.head, tasks)
    if data.max_length > model.sizes.context_length:
        raise UserError(
            f"config: data.max_length = {data.max_length} exceeds the "
            f"{model.sizes.context_length} positions that {model.source} was trained on; lower it"
        )
    if any(task.free_form for task in tasks) and data.max_response >= data.max_length:
        raise UserError(
            f"config: data.max_response = {data.max_response} leaves no room for a prompt in "
            f"data.max_length = {data.max_length} tokens; lower the first or raise the other"
        )
    _check_output(method, settings.head, settings.shared_head)
    on_attention = [name for name in method.lora.targets if name in ATTENTION_TARGETS]
    if method.traits.reads_moments and on_attention:
        raise UserError(
            f"config: method = '{method.name}' needs second moments of the projections' inputs, "
            "which are measured in the FFN alone; leave "
            f"{', '.join(on_attention)} out of lora.targets"
        )
    if model.quantization != "none" and method.traits.trains_llm:
        raise UserError(
            f"config: method = '{method.name}' trains the LLM's own weights, which cannot be "
            "quantised; set model.quantization = 'none'"
        )


def _check_shared_head(head: str, tasks: Sequence[Task]) -> None:
    if head != "classification":
        raise UserError(f"config: shared_head needs head = 'classification'; it is {head!r}")
    counts = {task.name: len(task.labels) for task in tasks}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(
            f"config: shared_head needs equally many labels in every task, but {listed}; set "
            "shared_head = False for a head a task"
        )


def _check_output(method: Method, head: str, shared_head: bool) -> None:
    needs = {
        "any": "",
        "shared": "needs an output layer that all tasks share: set head = 'lm', or shared_head = "
        "True",
        "lm": "distils the LLM's own output layer: set head = 'lm'",
    }
    output = method.traits.output
    shares = head == "lm" or (output == "shared" and shared_head)
    if output != "any" and not shares:
        raise UserError(f"config: method = '{method.name}' {needs[output]}")


def _answers(head: str, tasks: Sequence[Task], model: Model) -> tuple[tuple[np.ndarray, ...], ...]:
    """For each task the ids of its labels' texts where the LM head writes them, else none."""
    free_form = next((task.name for task in tasks if task.free_form), None)
    if head == "classification":
        if free_form is not None:
            raise UserError(
                f"config: head = 'classification', and task '{free_form}' has a response_field: "
                "its answer is free text, which only head = 'lm' writes"
            )
        return ((),) * len(tasks)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{model.source} holds no tokenizer, and head = 'lm' writes texts; put its "
            "tokenizer.json there, or set head = 'classification' and give examples as input_ids"
        )
    return tuple(() if task.free_form else tokenize_answers(task, tokenizer) for task in tasks)
