"""How far a longer piece of work has come, and how long the rest will take.

Work consists of examples of a few kinds:

    TRAIN      texts that a training step learns from
    EVALUATE   texts that pass through the model once
    WRITE      texts that the model answers token by token

The time left is the sum over the kinds of what is left of each, divided by the speed that was
measured of it. It is not known before each kind that is left was measured.
"""

import collections
import dataclasses
import time
import unicodedata
from collections.abc import Callable, Mapping

TRAIN, EVALUATE, WRITE = "train", "evaluate", "write"
_SHORT = {"adversarial": "adv"}


@dataclasses.dataclass
class Stage:
    """A part of the work.

    Attributes:
      label: what is being done, such as "task 2/4 trec, epoch 1/3". The part before the first
        comma may be shortened where there is little room.
      kind: kind of its examples; empty if it has none.
      total: examples in all; 0 where they are not counted.
      done: examples that are done.
      size: how much work an example is, in the unit of the plan.
      losses: the losses to show, by name.
    """

    label: str
    kind: str = ""
    total: int = 0
    done: int = 0
    size: float = 1.0
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Progress:
    """Stages under way, speeds, and a plan of the work.

    Time that passes counts for the kind of the innermost stage. A stage without a kind, such as
    compilation, counts for none.

    Attributes:
      stages: the stages under way, the innermost last.
      done: the work that was done since the beginning, by kind: examples, each times its size.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """Begins without stages and without a plan.

        Args:
          clock: gives the time in seconds; by default `time.monotonic`.
        """
        self.stages: list[Stage] = []
        self._clock = time.monotonic if clock is None else clock
        self._begun = self._at = self._clock()
        self._whole: Mapping[str, float] = {}
        self._left: dict[str, float] = {}
        self.done: dict[str, float] = collections.defaultdict(float)
        self._seconds: dict[str, float] = collections.defaultdict(float)

    def expect(self, left: Mapping[str, float], whole: Mapping[str, float] | None = None) -> None:
        """Sets the plan.

        Args:
          left: the work that is left, by kind: examples, each times its size.
          whole: the work in all, with what was done before; by default what is left.
        """
        self._left = dict(left)
        self._whole = dict(left if whole is None else whole)

    def enter(self, stage: Stage) -> None:
        """Begins a stage inside the one that is under way."""
        self._pass_time()
        self.stages.append(stage)

    def leave(self) -> None:
        """Ends the innermost stage."""
        self._pass_time()
        self.stages.pop()

    def advance(self, count: int) -> None:
        """Counts examples of the innermost stage as done; without a stage nothing happens."""
        self._pass_time()
        if not self.stages:
            return
        stage = self.stages[-1]
        stage.done += count
        self.done[stage.kind] += count * stage.size
        if stage.kind in self._left:
            self._left[stage.kind] = max(0.0, self._left[stage.kind] - count * stage.size)

    def leave_out(self, seconds: float) -> None:
        """Leaves the last seconds out of all speeds."""
        self._at = min(self._at + seconds, self._clock())

    @property
    def elapsed(self) -> float:
        """Seconds since the work began, with all that is left out of speeds."""
        return self._clock() - self._begun

    @property
    def seconds_left(self) -> float | None:
        """How long the rest of the plan, or without one of the stages, will take.

        None if a kind of work is left whose speed is not known.
        """
        if self._whole:
            return self._seconds_of(self._left)
        left: dict[str, float] = collections.defaultdict(float)
        for stage in self.stages:
            left[stage.kind] += max(0, stage.total - stage.done) * stage.size
        return self._seconds_of(left)

    @property
    def share_done(self) -> float | None:
        """Share of the plan, in time at the measured speeds, that is done; None if not known."""
        whole, left = self._seconds_of(self._whole), self._seconds_of(self._left)
        return None if not whole or left is None else 1.0 - left / whole

    @property
    def examples_per_second(self) -> float | None:
        """Speed of the innermost stage's kind at that stage's size; None if not known."""
        stage = self.stages[-1] if self.stages else None
        seconds = 0.0 if stage is None else self._seconds[stage.kind]
        if stage is None or not stage.kind or not seconds or not self.done[stage.kind]:
            return None
        return self.done[stage.kind] / seconds / stage.size

    def line(self, width: int | None = None) -> str:
        """What is going on, in one line.

        Args:
          width: cells of a terminal that the line may have; None for as many as it takes. Where
            room is short the speed, numbers of examples, and parts of names are left out.
        """
        for level in range(4):
            text = self._line(level)
            if width is None or cells(text) <= width:
                return text
        assert width is not None
        name, comma, others = self._label(3).partition(",")
        shorter = cut(name, max(6, cells(name) - cells(text) + width))
        return cut(text.replace(name + comma + others, shorter + comma + others), width)

    def _line(self, level: int) -> str:
        """The line, with the less the higher the level."""
        stage = self.stages[-1] if self.stages else Stage("")
        parts = [self._label(level)]
        if stage.total and level < 3:
            parts[0] += f" {stage.done}/{stage.total}"
        short = _SHORT if level >= 2 else {}
        losses = stage.losses.items()
        parts.append(" ".join(f"{short.get(name, name)} {value:.3g}" for name, value in losses))
        speed, left, share = self.examples_per_second, self.seconds_left, self.share_done
        if speed is not None and level < 1:
            parts.append(f"{speed:.3g} examples/s")
        if left is not None and (self._whole or stage.total):
            parts.append(f"{duration(left)} left")
        return ("" if share is None else f"{100 * share:.0f}% ") + ", ".join(filter(None, parts))

    def _label(self, level: int) -> str:
        labels = [stage.label for stage in self.stages if stage.label]
        return ", ".join(labels).removeprefix("task " if level >= 2 else "")

    def _seconds_of(self, work: Mapping[str, float]) -> float | None:
        total = 0.0
        for kind, amount in work.items():
            if not amount:
                continue
            if not self.done[kind] or not self._seconds[kind]:
                return None
            total += amount * self._seconds[kind] / self.done[kind]
        return total

    def _pass_time(self) -> None:
        now = self._clock()
        kind = self.stages[-1].kind if self.stages else ""
        self._seconds[kind] += max(0.0, now - self._at)
        self._at = now


def duration(seconds: float) -> str:
    """A duration in at most two units, such as "45s", "3m20s", "2h05m" and "4d03h"."""
    whole = max(0, round(seconds))
    for unit, below, one, other in (
        (86400, 3600, "d", "h"),
        (3600, 60, "h", "m"),
        (60, 1, "m", "s"),
    ):
        if whole >= unit:
            return f"{whole // unit}{one}{whole % unit // below:02d}{other}"
    return f"{whole}s"


def cells(text: str) -> int:
    """Columns of a terminal that a text takes; Chinese and Japanese characters take two."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def cut(text: str, width: int) -> str:
    """The text, or its beginning and "…" where it is wider than so many columns."""
    if cells(text) <= width:
        return text
    while text and cells(text) > width - 1:
        text = text[:-1]
    return f"{text}…"
