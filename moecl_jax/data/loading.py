"""From tasks to token ids: reads, cleans, samples and tokenises the examples of a stream."""

import functools
from collections.abc import Collection, Sequence

import numpy as np

from moecl_jax import reporting
from moecl_jax.data.examples import TaskExamples, load_examples
from moecl_jax.data.settings import DataSettings
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TokenizedTask, tokenize_task
from moecl_jax.errors import UserError
from moecl_jax.models.light_tokenizer import AnyTokenizer


def load_tasks(
    tasks: Sequence[Task],
    answers: Sequence[Sequence[np.ndarray]],
    settings: DataSettings,
    *,
    seed: int,
    tokenizer: AnyTokenizer | None,
    vocabulary_size: int,
    spared: Collection[str] = (),
) -> list[TokenizedTask]:
    """Reads and tokenises the tasks' examples; reports what was cut or left out, and doubts.

    Args:
      tasks: tasks of a stream.
      answers: for each task the ids of its labels' texts; empty with a classification head and for
        free-form tasks.
      settings: which examples are read, and how they are cut.
      seed: seed of sub-sampling and of the carved validation split.
      tokenizer: tokenizer of the frozen LLM, or None.
      vocabulary_size: number of token ids; `input_ids` must be below it.
      spared: names of tasks that may be without data. Where they cannot be read, the reason is
        reported and the task has no examples.

    Raises:
      UserError: data are missing or malformed, or do not fit.
    """
    read = functools.partial(
        _read,
        settings=settings,
        seed=seed,
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
    )
    loaded = []
    for task, own in zip(tasks, answers, strict=True):
        try:
            loaded.append(read(task, own))
        except UserError as error:
            if task.name not in spared:
                raise
            reporting.current().message(
                f"{task.name} is finished, and its data cannot be read, so it is not scored again: "
                f"{error}"
            )
            loaded.append(TokenizedTask.without_data(task, str(error)))
    if settings.validation_from == "test":
        reporting.current().message(
            "validation is the test split (data.validation_from): what is selected by it scores "
            "too well"
        )
    return loaded


def load_task(
    task: Task, settings: DataSettings, *, seed: int, vocabulary_size: int
) -> TaskExamples:
    """`load_examples` as settings ask for it; `seed` and `vocabulary_size` as for `load_tasks`."""
    return load_examples(
        task,
        seed=seed,
        vocabulary_size=vocabulary_size,
        validation_from=settings.validation_from,
        validation_fraction=settings.validation_fraction,
        train_examples=settings.train_examples,
        validation_examples=settings.validation_examples,
        test_examples=settings.test_examples,
        on_bad_example=settings.on_bad_example,
        test_fraction=settings.test_fraction,
    )


def _read(
    task: Task,
    answers: Sequence[np.ndarray],
    *,
    settings: DataSettings,
    seed: int,
    tokenizer: AnyTokenizer | None,
    vocabulary_size: int,
) -> TokenizedTask:
    """One task's examples; arguments and errors as for `load_tasks`."""
    examples = load_task(task, settings, seed=seed, vocabulary_size=vocabulary_size)
    tokenized = tokenize_task(
        examples,
        answers,
        tokenizer,
        max_length=settings.max_length,
        max_response=settings.max_response,
        over_long=settings.over_long,
    )
    if not task.removed:
        reporting.current().message(_describe(examples, tokenized))
    return tokenized


def _describe(task: TaskExamples, tokenized: TokenizedTask) -> str:
    counts = ", ".join(f"{split} {len(tokenized.splits[split])}" for split in tokenized.splits)
    notes = [f"{reason}: {count} skipped" for reason, count in task.skipped.items()]
    notes += task.notes
    for what, by_split in (
        ("texts cut to fit", tokenized.truncated),
        ("responses cut to fit", tokenized.truncated_responses),
        ("examples dropped", tokenized.dropped),
    ):
        notes += [f"{count} {split} {what}" for split, count in by_split.items() if count]
    return f"{tokenized.name}: {counts}" + (f" ({'; '.join(notes)})" if notes else "")
