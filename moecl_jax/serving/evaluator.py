"""Answers for the tasks of a stream: scores, features and text, with any parameters."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from moecl_jax import reporting
from moecl_jax.data.batching import BatchLayout, make_mixed_batch, need_of
from moecl_jax.data.continued import first_names
from moecl_jax.data.loading import load_tasks
from moecl_jax.data.settings import DataSettings
from moecl_jax.data.shapes import Need, scoring_shapes
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import (
    TokenizedExample,
    TokenizedTask,
    bare_prompts,
    end_of_sequence,
    prompt_format,
    prompt_limit,
    tokenize_prompt,
)
from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.stream import StartingValues
from moecl_jax.models.model import Model
from moecl_jax.progress import EVALUATE, WRITE
from moecl_jax.runs.history import Evaluation
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.fit import check_fit, label_answers
from moecl_jax.serving.generation import Generator, Sampling
from moecl_jax.serving.preceding import Preceded, Preceder
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
_ONE_TEXT = dataclasses.replace(_ONE_TOKEN, text="a")  # for methods that compare texts


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
      preceder: puts before texts what the method says.
    """

    def __init__(self, model: Model, method: Method, tasks: Sequence[Task], settings: Settings):
        """Checks that model, method and tasks fit each other.

        Raises:
          UserError: they do not; says why.
        """
        head: Any = settings.head
        check_fit(model, method, tasks, settings)
        self.model, self.method, self.settings, self.tasks = model, method, settings, tuple(tasks)
        self.context = StepContext(
            model.architecture,
            method,
            head,
            attack=settings.adversarial_inputs,
            self_supervised=settings.self_supervised,
        )
        self.answers = label_answers(head, tasks, model)
        classes = max(1, *(len(task.labels) for task in tasks))
        self.starting = StartingValues(
            method,
            model.sizes,
            settings.seed,
            head,
            classes,
            settings.shared_head,
            first_names(tasks),
        )
        section = settings.evaluation
        self.sampling = Sampling(section.temperature, section.top_k, section.top_p)
        self._evaluation_step = jax.jit(functools.partial(evaluation_step, context=self.context))
        self._feature_step = jax.jit(
            functools.partial(feature_step, architecture=model.architecture)
        )
        self.preceder = Preceder(model, self.context, self.tasks, settings.data.max_length)
        self.scoring_of = functools.cache(self._scoring)

    @property
    def epochs(self) -> int:
        """Passes over a task's training examples; none where nothing is trained."""
        return self.settings.epochs if self.method.traits.trains else 0

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

    def same(self, index: int) -> list[int]:
        """Places of the tasks that are answered alike: a task, and those that continue it."""
        first, names = self.starting.first, self.names
        return [place for place, name in enumerate(names) if first(name) == first(names[index])]

    def parts(self, index: int) -> list[int]:
        """Places of a task and of those before it that are answered alike: what it goes on from."""
        return [place for place in self.same(index) if place <= index]

    def load(
        self,
        tasks: Sequence[Task] | None = None,
        spared: Collection[str] = (),
        data: DataSettings | None = None,
    ) -> list[TokenizedTask]:
        """Reads and tokenises the examples of tasks of the stream, of all as a default.

        Args:
          tasks: some of the stream's tasks, maybe with other examples.
          spared: names of the tasks that may be without data, as `load_tasks` says.
          data: which examples are read; by default as the run's settings say.

        Raises:
          UserError: data are missing or malformed, or do not fit.
        """
        chosen = self.tasks if tasks is None else tasks
        return load_tasks(
            chosen,
            [self.answers[self.index(task.name)] for task in chosen],
            self.settings.data if data is None else data,
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

    @property
    def scoring(self) -> Scoring:
        """How texts to be scored are laid out; their shapes follow from settings and tasks."""
        return self.scoring_of(0)

    def _scoring(self, longer: int) -> Scoring:
        """`scoring` of texts whose prompts may be so many tokens longer than settings say."""
        section, data = self.settings.batch, self.settings.data
        needs, answer = [Need(data.max_length + longer, 1, 1)], 1
        for task, answers in zip(self.tasks, self.answers, strict=True):
            limit = prompt_limit(task, answers, data.max_length, data.max_response)
            responses = (np.zeros(data.max_response, np.int32),) if task.free_form else answers
            longest = TokenizedExample(np.zeros(limit + longer, np.int32), 0)
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

    def precede(
        self, parameters: TaskParameters, index: int, examples: Sequence[TokenizedExample]
    ) -> Preceded:
        """Examples that are asked as a task's, with what the method puts before them.

        Arguments as for `scores`.
        """
        if not self.method.traits.precedes or self.model.tokenizer is None:
            return Preceded(parameters, examples)
        return self.preceder(parameters, index, examples, self.features)

    def _step(self, asked: Preceded) -> Callable[..., Any]:
        """The evaluation step of texts with what stands before them."""
        if asked.prefix is None:
            return self._evaluation_step
        return functools.partial(self._evaluation_step, prefix=asked.prefix)

    def scores(
        self,
        parameters: TaskParameters,
        index: int,
        examples: Sequence[TokenizedExample],
        *,
        one_shape: bool = False,
    ) -> Scores:
        """Scores of examples that are asked as a task's.

        Args:
          parameters: parameters that answer.
          index: place of the task.
          examples: n of them.
          one_shape: whether all batches have one shape, so that an example's scores do not depend
            on those beside it.
        """
        return self._scores(index, self.precede(parameters, index, examples), one_shape)

    def _votes(
        self, parameters: TaskParameters, index: int, examples: Sequence[TokenizedExample]
    ) -> Scores:
        """Scores by the method's own vote; arguments as for `scores`."""
        count = len(self.tasks[index].labels)
        votes = np.zeros((0, count), np.float32)
        if examples:
            votes = self.method.votes(parameters, self.features(examples), count)
        return Scores(votes, np.zeros(votes.shape, bool)).of_best

    def _scores(self, index: int, asked: Preceded, one_shape: bool = False) -> Scores:
        if self.method.traits.votes:
            return self._votes(asked.parameters, index, asked.examples)
        scoring = self.scoring_of(asked.own_limit)
        return score(
            self._step(asked),
            asked.parameters
            if self.method.traits.precedes
            else self.model.placement.put(self.method.answering(asked.parameters)),
            self.model.params,
            asked.examples,
            self.answers[index],
            scoring.of_one_shape if one_shape else scoring,
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
        if self.method.traits.votes:  # of one task, for they are not mixed
            return self._votes(parameters, group[0], examples)
        asked = self.precede(parameters, group[0], examples)  # or there are several, and it is none
        return score_mixed(
            self._step(asked),
            asked.parameters,
            self.model.params,
            asked.examples,
            own,
            [self.answers[task] for task in group],
            self.scoring_of(asked.own_limit),
            class_counts=[len(self.tasks[task].labels) for task in group],
        )

    def prepare_scores(self, parameters: TaskParameters, group: Sequence[int]) -> None:
        """Compiles all programs of `scores_of_several` for so many tasks, by running each once."""
        if self.method.traits.votes:
            self.prepare_features()
            return
        answers = [self.answers[task] for task in group]
        counts = [len(self.tasks[task].labels) for task in group]
        needs = [need_of(_ONE_TOKEN, labels, training=False) for labels in answers]
        least = min(range(len(group)), key=lambda task: needs[task].slots)
        asked = self.precede(parameters, group[0], [_ONE_TEXT])
        scoring = self.scoring_of(asked.own_limit)
        layout, step = scoring.layout, self._step(asked)
        for shape in scoring.shapes:
            if shape.holds([needs[least]], layout.packed):  # else no text of these tasks is in it
                batch = make_mixed_batch(
                    [_ONE_TOKEN], [least], answers, layout, class_counts=counts, shape=shape
                )
                jax.block_until_ready(step(asked.parameters, self.model.params, batch))

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
            asked = self.precede(parameters, index, examples)
            scores = self._scores(index, asked)
            if not self.method.traits.trains and not task.free_form:
                scores = scores.of_best
            evaluation = dataclasses.replace(
                evaluate_examples(scores, examples, task.labels),
                shown=asked.shown / max(1, len(examples)),
                left_out=asked.left_out / max(1, len(examples)),
            )
        if not examples or not self.writes(index) or self.generator is None:
            return evaluation
        tokenizer: Any = self.model.tokenizer
        longest = self.settings.data.max_response
        with reporting.stage(f"writing answers of {task.name}", WRITE, count):
            written = self.generator.write(
                asked.parameters,
                [example.prompt for example in asked.examples],
                prefix=asked.prefix,
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
        if self.method.traits.votes:
            return False
        return self.context.head == "lm" and (written or self.tasks[index].metric == "rouge_l")

    def features(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """What the frozen model makes of each text alone, `[n, D]`, of at least one."""
        texts = bare_prompts(examples, self.model.tokenizer, self.settings.data.max_length)
        label, size = "reading texts", text_size(examples)
        with reporting.stage(label, EVALUATE, len(texts), size=size):
            return extract(self._feature_step, self.model.params, texts, self.scoring.of_one_shape)

    def write(
        self,
        parameters: TaskParameters,
        index: int,
        examples: Sequence[TokenizedExample],
        **options: Any,
    ) -> list[np.ndarray | None]:
        """Continues the prompts of examples that are asked as a task's, with the LM head.

        Arguments as for `scores`; `options`, results and errors are those of `Generator.write`.
        """
        assert self.generator is not None  # whoever asks has seen to it
        asked = self.precede(parameters, index, examples)
        prompts = [example.prompt for example in asked.examples]
        return self.generator.write(asked.parameters, prompts, prefix=asked.prefix, **options)

    @functools.cached_property
    def generator(self) -> Generator | None:
        """Writes text with the LM head; None with classification heads or where a vote answers."""
        if self.context.head != "lm" or self.method.traits.votes:
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
