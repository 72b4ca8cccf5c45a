"""What `moecl check` prints: a check as text for a person."""

from collections.abc import Iterator

from moecl_jax.config.check import Check, TaskCheck
from moecl_jax.data.survey import Rendered
from moecl_jax.data.task import SPLITS
from moecl_jax.errors import printable
from moecl_jax.runs.tables import align_columns
from moecl_jax.training.plan import TrainingPlan, TrainingTime

_MOST_LABELS = 20
_MOST_CHARACTERS = 1200


def check_text(check: Check) -> str:
    """The text: each task, what the training takes, then all warnings and all problems."""
    lines = [line for task in check.tasks for line in (*_task_lines(task), "")]
    if check.plan is not None:
        lines += [*_plan_lines(check.plan, check.time), ""]
    for name, found in (("warning", check.warnings), ("problem", check.problems)):
        if found:
            lines += [f"{len(found)} {name}{'s' if len(found) > 1 else ''}:"]
            lines += [f"  - {line}" for line in found] + [""]
    if not check.problems:
        lines.append("No problem found: 'moecl train' can start.")
    return "\n".join(lines).rstrip()


def _task_lines(task: TaskCheck) -> Iterator[str]:
    examples, name = task.survey.examples, task.survey.definition.name
    if examples is None:
        yield f"task {name}: no examples could be read"
        return
    yield f"task {name}: " + ", ".join(f"{s} {len(getattr(examples, s))}" for s in SPLITS)
    if not task.survey.definition.free_form:
        yield from (f"  {line}" for line in _label_lines(task))
    if task.lengths is not None:
        found = task.lengths
        half, *more, longest = found.percentiles.items()
        shares = ", ".join(f"{percent}% up to {length}" for percent, length in more)
        yield f"  tokens with the answer: half up to {half[1]}, {shares}, longest {longest[1]}"
        yield (
            f"  data.max_length cuts {found.cut_share:.1%}; {found.suggested} would cut under 5%"
        )
    if task.rendered is not None:
        place = printable(task.rendered.where)
        yield f"  an example as the model reads it, each token of its answer in [[ ]] ({place}):"
        yield from (f"    {line}" for line in _example(task.rendered).split("\n"))


def _label_lines(task: TaskCheck) -> Iterator[str]:
    counts = task.survey.label_counts()
    labels = list(task.survey.definition.labels)
    shown = sorted(labels, key=lambda label: -counts["train"][label])[:_MOST_LABELS]
    rows = [(printable(label), *(str(counts[s][label]) for s in SPLITS)) for label in shown]
    yield from align_columns([("label", *SPLITS), *rows])
    if len(labels) > len(shown):
        yield f"... and {len(labels) - len(shown)} rarer labels"
    majority = task.survey.majority_accuracy()
    if majority is not None:
        yield f"test accuracy of always answering the most frequent label: {majority:.3f}"


def _example(rendered: Rendered) -> str:
    prompt = rendered.prompt
    if len(prompt) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        prompt = f"{prompt[:half]} [...] {prompt[-half:]}"
    answer = "".join(f"[[{token}]]" for token in rendered.answer)
    return "\n".join(map(printable, f"{prompt}{answer}".split("\n")))


def _plan_lines(plan: TrainingPlan, time: TrainingTime | None) -> Iterator[str]:
    yield (
        f"training: {sum(plan.steps)} steps ({', '.join(map(str, plan.steps))} by task), "
        f"{sum(plan.evaluated)} texts answered to evaluate"
    )
    yield (
        f"memory of a training step: {_size(plan.step_bytes)} on a device, in it "
        f"{_size(plan.frozen_bytes)} of frozen weights and {_size(plan.trained_bytes)} of what is "
        "trained with its optimizer"
    )
    yield f"disk: {_size(plan.disk_bytes)} at the end, at most {_size(plan.most_disk_bytes)}"
    if time is None:
        yield "time: --measure runs a few steps and tells it"
        return
    steps = ", ".join(f"{seconds:.2f}" for seconds in time.step_seconds)
    texts = ", ".join(f"{seconds:.3f}" for seconds in time.text_seconds)
    yield (
        f"time: about {_duration(time.total_seconds)} without loading and compiling; measured were "
        f"{steps} s a step and {texts} s a text, by task"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
