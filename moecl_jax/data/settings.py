"""Settings of data and batches."""

import dataclasses
from typing import ClassVar

from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class DataSettings(Section):
    """Which examples are read, and how they are cut.

    Attributes:
      max_length: tokens of a prompt together with its answer.
      max_response: tokens of a free-form task's response, end of sequence included; the prompt has
        the rest of max_length. A longer response is cut, and then does not end.
      over_long: what happens to an example that does not fit: truncate cuts the end of its text or
        response and counts it, drop leaves it out.
      on_bad_example: what happens to an example that cannot be used: error stops, skip leaves it
        out and counts it. Training examples that all have one label stop too, or are noted.
      validation_from: where validation examples come from: train (a task's own validation split, or
        else a part of training) or test. With test, as in the original code, the selected epoch's
        test accuracy is too good (a leak).
      validation_fraction: part of training that becomes validation where a task has no validation
        split.
      test_fraction: part of training that becomes test where a task has no test split, before
        validation is taken out; drawn by the task's name, so that all seeds are scored on the same
        texts. 0 leaves such a task without a score.
      train_examples: at most so many training examples a task, class-balanced where possible; 0
        means all.
      validation_examples: at most so many validation examples a task; 0 means all.
      test_examples: at most so many test examples a task; 0 means all.
    """

    KEY: ClassVar[str] = "data"
    max_length: int = setting(256, least=1, most=2**20)
    max_response: int = setting(64, least=1, most=2**20)
    over_long: str = setting("truncate", choices=("truncate", "drop"))
    on_bad_example: str = setting("error", choices=("error", "skip"))
    validation_from: str = setting("train", choices=("train", "test"))
    validation_fraction: float = setting(0.1, least=0, below=1)
    test_fraction: float = setting(0.0, least=0, below=1)
    train_examples: int = setting(0, least=0, most=10**9)
    validation_examples: int = setting(0, least=0, most=10**9)
    test_examples: int = setting(0, least=0, most=10**9)


@dataclasses.dataclass(frozen=True)
class BatchSettings(Section):
    """Sizes and layout of batches.

    Attributes:
      size: examples of a training batch.
      accumulation_steps: number of parts of a training batch, computed one after another. Their
        gradients are summed: less memory, the same step.
      evaluation_size: prompts that are answered in writing at a time. Batches whose labels are
        scored have evaluation_size * row_length / 4 slots, which as many texts fill as fit.
      layout: packed (several examples share a row of slots, so that few are padding), padded (one
        example a row, as long as the batch's longest) or padded_to_max (one example a row of
        data.max_length slots, as in the original code). All train alike; only the speed differs.
      row_length: packed rows have at least this many slots.
    """

    KEY: ClassVar[str] = "batch"
    size: int = setting(8, least=1, most=2**16, by_task=True)
    accumulation_steps: int = setting(1, least=1, most=2**16, by_task=True)
    evaluation_size: int = setting(16, least=1, most=2**16)
    layout: str = setting("packed", choices=("packed", "padded", "padded_to_max"))
    row_length: int = setting(128, least=1, most=2**20)
