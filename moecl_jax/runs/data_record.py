"""data.json: fingerprints of the data and the tokenizer that a workdir was trained with.

A run that goes on with other data would mix two trainings without a trace. So a change is refused,
unless it is accepted; then the results name it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from moecl_jax.data.task import SPLITS
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask, prompt_format
from moecl_jax.errors import UserError, one_line
from moecl_jax.models.light_tokenizer import AnyTokenizer
from moecl_jax.outside import parse_json
from moecl_jax.runs.names import DATA_NAME
from moecl_jax.runs.workdir import write_json


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What a run reads, as fingerprints.

    Attributes:
      tokenizer: fingerprint of the tokenizer; "none" where the model has none.
      tasks: prompt and splits of each task: the prompt's text around "{text}", and a fingerprint of
        each split, such as "48 examples 1f0a...".
      accepted: changes that were accepted since the run was begun.
    """

    tokenizer: str
    tasks: Mapping[str, Mapping[str, str]]
    accepted: tuple[str, ...] = ()

    @classmethod
    def of(cls, tasks: Sequence[TokenizedTask], tokenizer: AnyTokenizer | None) -> Self:
        """The record of the tasks that were read; others are left out."""
        read = {
            task.name: {
                "prompt": prompt_format(task.definition, tokenizer).template,
                **{split: _of_examples(task.splits[split]) for split in SPLITS},
            }
            for task in tasks
            if not task.unread and not task.definition.removed
        }
        return cls(_of_tokenizer(tokenizer), read)

    @classmethod
    def load(cls, workdir: Path) -> Self | None:
        """Reads data.json; None where there is none, as in a workdir that was converted.

        Raises:
          UserError: it is broken.
        """
        path = workdir / DATA_NAME
        try:
            content = parse_json(path.read_bytes())
            if not _is_record(content):
                raise ValueError("it is not what a training writes")
            return cls(content["tokenizer"], content["tasks"], tuple(content["accepted"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is broken: {one_line(error)}. Restore it from a copy; without it, the "
                "data that are there now are taken for those of the training."
            ) from error

    def save(self, workdir: Path) -> None:
        """Writes data.json."""
        write_json(workdir / DATA_NAME, dataclasses.asdict(self))

    def size(self, task: str, split: str) -> int:
        """Number of examples of a task's split; 0 where it was never read."""
        return int(self.tasks.get(task, {}).get(split, "0").partition(" ")[0])

    def differences(self, now: "DataRecord", begun: Sequence[str]) -> list[str]:
        """What has changed, one phrase each.

        Args:
          now: record of what was read now.
          begun: names of the tasks whose training was begun. Training and validation examples of
            others may change.
        """
        found = [] if self.tokenizer == now.tokenizer else ["the tokenizer"]
        for name in self.tasks.keys() & now.tasks.keys():
            for part, old in self.tasks[name].items():
                new = now.tasks[name][part]
                if old == new or (part in ("train", "validation") and name not in begun):
                    continue
                if part == "prompt":
                    found.append(f"the prompt of task '{name}' ({old!r}, now {new!r})")
                else:
                    found.append(f"the {part} split of task '{name}' ({_change(old, new)})")
        return sorted(found)

    def followed_by(self, now: "DataRecord", begun: Sequence[str], *, accept: bool) -> "DataRecord":
        """The record of a run that goes on with what was read now.

        Raises:
          UserError: something has changed that is not accepted.
        """
        found = self.differences(now, begun)
        if found and not accept:
            raise UserError(
                f"since the training was begun, {' and '.join(found)} changed. Put back what it "
                "was; or accept the change with --accept-changes (in Python "
                "Trainer(accept_changes=True)), and results.json names it under accepted_changes"
            )
        return DataRecord(now.tokenizer, {**self.tasks, **now.tasks}, (*self.accepted, *found))


def _is_record(content: Any) -> bool:
    """Whether a JSON value is what `DataRecord.save` writes."""
    if not isinstance(content, dict) or not content.keys() >= {"tokenizer", "tasks", "accepted"}:
        return False
    tokenizer, tasks, accepted = content["tokenizer"], content["tasks"], content["accepted"]
    if not (isinstance(tokenizer, str) and isinstance(tasks, dict) and isinstance(accepted, list)):
        return False
    parts = {"prompt", *SPLITS}
    return all(isinstance(read, dict) and read.keys() >= parts for read in tasks.values())


def refuse_other_tokenizer(workdir: Path, tokenizer: AnyTokenizer | None) -> None:
    """Refuses to answer with another tokenizer than the one that the experts were trained with.

    Raises:
      UserError: it is another one.
    """
    record = DataRecord.load(workdir)
    if record is not None and record.tokenizer != _of_tokenizer(tokenizer):
        raise UserError(
            f"the tokenizer is not the one that {workdir} was trained with: prompts would become "
            "other token ids. Put back the model's tokenizer files of then."
        )


def _of_tokenizer(tokenizer: AnyTokenizer | None) -> str:
    if tokenizer is None:
        return "none"
    content: Any = tokenizer
    parts = [
        content.backend_tokenizer.to_str() if content.is_fast else json.dumps(content.get_vocab()),
        json.dumps(content.special_tokens_map, sort_keys=True, default=str),
        str(content.chat_template),
    ]
    return _hash("\0".join(parts).encode("utf-8", "surrogatepass"))


def _of_examples(examples: Sequence[TokenizedExample]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        response = example.response if example.response is not None else np.zeros(0, np.int32)
        digest.update(f"{len(example.prompt)} {example.label} {len(response)} ".encode())
        digest.update(np.ascontiguousarray(example.prompt, np.int32).data)
        digest.update(np.ascontiguousarray(response, np.int32).data)
    return f"{len(examples)} examples {digest.hexdigest()}"


def _change(old: str, new: str) -> str:
    before, after = old.partition(" ")[0], new.partition(" ")[0]
    if before == after:
        return f"{before} examples as before, but other ones, other labels or another order"
    return f"{before} examples, now {after}"


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
