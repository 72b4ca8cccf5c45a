"""The store of the reviewer's page: texts to review, and the audit of all decisions, in SQLite.

Two tables are only ever appended to: `items`, the texts and what the model said of them, and
`audit`, what reviewers did. `queue` is derived from them, in the same transaction: the texts that
are still to be decided. A commit is on the disk before a call returns (write-ahead log,
`synchronous=FULL`). So what a caller was told has happened outlasts a kill and a loss of power.
"""

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import moecl_jax
from moecl_jax.errors import UserError, listed
from moecl_jax.outside import shortened
from moecl_jax.service import review_tables as tables
from moecl_jax.service.agreement import cohen_kappa, settled_label

REVIEW = "review"
"""Decision of the engine for a text that a person has to decide."""

VERSIONS = ("checkpoint", "thresholds")
"""Versions of what answered, in an engine's answer."""

_HELD = 600.0  # seconds for which a text that was handed to one reviewer is kept from the others


class NotFoundError(UserError):
    """There is no such text."""


class ConflictError(UserError):
    """What is asked for does not go together with what was done before."""


@dataclass(frozen=True)
class Entry:
    """A text to keep, and what the model said of it.

    Attributes:
      text: the text.
      answer: what the engine said: `task`, `label`, `probabilities` by label, `decision`, the
        versions `checkpoint` and `thresholds`, and anything else that can be JSON.
      context: further fields that a reviewer sees beside the text.
    """

    text: str
    answer: Mapping[str, Any]
    context: Mapping[str, Any]


def uncertainty(probabilities: Mapping[str, float]) -> float:
    """How unsure the model is: 1 less the margin between its two most probable labels.

    It is 0 where one label is certain and 1 where two are equally likely, whatever the number of
    labels: so texts of different tasks can stand in one queue. Source: margin sampling, in B.
    Settles, Active Learning Literature Survey (2009), section 3.1.
    """
    first, second = sorted([*probabilities.values(), 0.0, 0.0], reverse=True)[:2]
    return 1.0 - (first - second)


class ReviewStore:
    """Texts to review and what reviewers did, in a SQLite file. Threads may share one store."""

    def __init__(self, path: str | Path):
        """Opens a store, which is created if there is none.

        Raises:
          UserError: the file cannot be opened, or is no store of this version.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[int, float]] = {}  # item and deadline, by reviewer
        try:
            self._db = _connect(self.path)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        try:
            self._create_or_check()
            # Not before: the file of another program is left as it is.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error as error:
            self.close()
            raise self._unreadable(error) from error
        except UserError:
            self.close()
            raise

    def _create_or_check(self) -> None:
        """Makes the tables in an empty file; refuses a file that has others."""
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            names = {row["name"] for row in found}
            if not names:
                tables.create(db)
            elif version != tables.VERSION or not names >= {"items", "audit", "queue"}:
                raise UserError(
                    f"{self.path}: these are no reviews of version {tables.VERSION} (found "
                    f"version {version}, tables {listed(sorted(names))}). Name another file, or "
                    "use the moecl_jax that wrote it."
                )

    def _unreadable(self, error: sqlite3.Error) -> UserError:
        return UserError(
            f"{self.path}: the reviews cannot be read or written ({error}). Name a file that the "
            "service has made, or a new one in a folder that can be written."
        )

    def close(self) -> None:
        """Closes the file; nothing is lost without it."""
        self._db.close()

    def add(self, entries: Sequence[Entry]) -> tuple[int, int]:
        """Keeps texts; those whose decision is "review" are queued.

        Args:
          entries: texts and what the model said of them.

        Returns:
          How many were added, and how many were there already (same task, text and context).
        """
        added = 0
        with self._transaction() as db:
            for entry in entries:
                added += self._add(db, entry)
        return added, len(entries) - added

    def next_item(self, reviewer: str, task: str | None = None) -> dict[str, Any] | None:
        """The text that a reviewer should look at next, or None if there is none for them.

        It is the one that they have on the screen, until they decide or skip it. Else uncertain
        ones come first, then older ones, then those that the reviewer has skipped. Texts that
        another reviewer has on the screen, or that this one has decided, are left out.

        Args:
          reviewer: name of the reviewer.
          task: name of the task to stay with; None for all.
        """
        with self._transaction() as db:
            now = time.monotonic()
            held = {name: item for name, (item, until) in self._held.items() if until > now}
            values = {"reviewer": reviewer, "task": task, "held": held.pop(reviewer, None)}
            values["others"] = _json(list(held.values()))
            for query in (tables.HELD, tables.NEXT, tables.SKIPPED):
                row = db.execute(query, values).fetchone()
                if row is not None:
                    break
            if row is None:
                self._held.pop(reviewer, None)
                return None
            self._held[reviewer] = (row["item"], now + _HELD)
            return _as_item(self._item(db, row["item"]))

    def decide(
        self, item: int, label: str, *, reviewer: str, request: str, opinion_shown: bool
    ) -> dict[str, Any]:
        """Records a decision.

        Args:
          item: id of the text.
          label: the reviewer's label.
          reviewer: name of the reviewer.
          request: id that the client has made for this decision. The same one again returns what
            was recorded the first time.
          opinion_shown: whether the reviewer saw the model's opinion before. One who has decided
            the text before, and undone that, has seen it, since it is told after a decision.

        Returns:
          The audit row, and `settled`: the label that is settled now, or None.

        Raises:
          NotFoundError: there is no such text.
          ConflictError: the reviewer has decided the text already, the model has decided it, or
            the request's id was used for something else.
          UserError: the text has no such label.
        """
        with self._transaction() as db:
            known = self._repeated(db, request, "decision", reviewer, (item, label))
            if known is not None:
                return known
            row = self._item(db, item)
            labels = list(json.loads(row["answer"])["probabilities"])
            if label not in labels:
                raise UserError(f"no label {shortened(label)}; this task has {listed(labels)}")
            if row["decision"] != REVIEW:
                raise ConflictError(f"text {item} was decided by the model: {row['decision']}")
            if db.execute(tables.VOTED, (item, reviewer)).fetchone():
                raise ConflictError(
                    f"{shortened(reviewer)} has decided text {item} already; undo that first"
                )
            told = db.execute(tables.TOLD, (item, reviewer)).fetchone() is not None
            seen = opinion_shown or told
            self._record(db, row, "decision", reviewer, request, label=label, opinion_shown=seen)
            self._held.pop(reviewer, None)
            return self._told(db, request)

    def skip(self, item: int, *, reviewer: str, request: str) -> dict[str, Any]:
        """Records that a reviewer leaves a text for later; they meet it again after all others.

        Args and what is raised are as those of `decide`.
        """
        with self._transaction() as db:
            known = self._repeated(db, request, "skip", reviewer, (item, None))
            if known is None:
                self._record(db, self._item(db, item), "skip", reviewer, request)
                self._held.pop(reviewer, None)
            return known or self._told(db, request)

    def undo(self, *, reviewer: str, request: str) -> dict[str, Any]:
        """Takes back the reviewer's last decision or skip that was not undone, by a further row.

        Returns:
          The audit row, with the text under `undone`; it is the reviewer's to decide again.

        Raises:
          NotFoundError: there is nothing to undo.
        """
        with self._transaction() as db:
            known = self._repeated(db, request, "undo", reviewer, None)
            if known is None:
                last = db.execute(tables.LAST, (reviewer,)).fetchone()
                if last is None:
                    raise NotFoundError("there is nothing to undo")
                row = self._item(db, last["item"])
                self._record(db, row, "undo", reviewer, request, undoes=last["id"])
                known = self._told(db, request)
            self._held[reviewer] = (known["item"], time.monotonic() + _HELD)
            return {**known, "undone": _as_item(self._item(db, known["item"]))}

    def progress(self) -> dict[str, Any]:
        """How far the texts are, by task, and how well reviewers and the model agree.

        Returns:
          `tasks`: by name the number of texts that the model has decided alone (`stripped`), that
          are settled, that wait for a second reviewer (`second`) and for a first (`open`).
          `kappa` and `pairs`, Cohen's kappa of first and second reviewers, over the texts that
          have both; these are texts on which the first did not agree with the model.
          `model_kappa` and `model_pairs`, of first reviewers and the model.
        """
        with self.snapshot() as db:
            counts = {
                row["task"]: {name: row[name] for name in ("stripped", "settled", "second", "open")}
                for row in db.execute(tables.PROGRESS)
            }
            votes: dict[int, list[str]] = {}
            models: dict[int, str] = {}
            for row in db.execute(tables.VOTES):
                # Two tasks may have a label of one name, which are two labels.
                votes.setdefault(row["item"], []).append(f"{row['task']}/{row['label']}")
                models[row["item"]] = f"{row['task']}/{row['said']}"
        pairs = [(labels[0], labels[1]) for labels in votes.values() if len(labels) > 1]
        modelled = [(labels[0], models[item]) for item, labels in votes.items()]
        return {
            "tasks": counts,
            "kappa": cohen_kappa(pairs),
            "pairs": len(pairs),
            "model_kappa": cohen_kappa(modelled),
            "model_pairs": len(modelled),
        }

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own that reads the store as it is now, while others write."""
        with contextlib.closing(_connect(self.path)) as db:
            db.execute("PRAGMA query_only = ON")
            db.execute("BEGIN")
            yield db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _add(self, db: sqlite3.Connection, entry: Entry) -> int:
        answer = dict(entry.answer)
        try:
            content = _json([answer["task"], entry.text, entry.context]).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text {shortened(entry.text)} or its context holds half of a surrogate pair, "
                "which is no character; write it in UTF-8"
            ) from error
        values = {
            "digest": hashlib.sha256(content).hexdigest(),
            "task": answer["task"],
            "text": entry.text,
            "context": _json(entry.context),
            "label": answer["label"],
            "decision": answer["decision"],
            "answer": _json(answer),
            "uncertainty": uncertainty(answer["probabilities"]),
            "added_at": _now(),
        }
        row = db.execute(tables.ADD, values).fetchone()
        if row is not None:
            self._requeue(db, self._item(db, row["id"]))
        return row is not None

    def _item(self, db: sqlite3.Connection, item: int) -> sqlite3.Row:
        row = db.execute("SELECT * FROM items WHERE id = ?", (item,)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no text {item}")
        found: sqlite3.Row = row
        return found

    def _repeated(
        self,
        db: sqlite3.Connection,
        request: str,
        kind: str,
        reviewer: str,
        what: tuple[int, str | None] | None,
    ) -> dict[str, Any] | None:
        """What a request with this id has done before, if it was the same request."""
        row = db.execute("SELECT * FROM audit WHERE request = ?", (request,)).fetchone()
        if row is None:
            return None
        same = (row["kind"], row["reviewer"]) == (kind, reviewer)
        if not same or what not in (None, (row["item"], row["label"])):
            raise ConflictError("this request's id was used for something else")
        return self._told(db, request)

    def _record(
        self,
        db: sqlite3.Connection,
        item: sqlite3.Row,
        kind: str,
        reviewer: str,
        request: str,
        *,
        label: str | None = None,
        undoes: int | None = None,
        opinion_shown: bool = False,
    ) -> None:
        answer = json.loads(item["answer"])
        versions = {key: answer.get(key) for key in VERSIONS} | {"moecl_jax": moecl_jax.__version__}
        values = {
            "request": request,
            "kind": kind,
            "item": item["id"],
            "reviewer": reviewer,
            "at": _now(),
            "label": label,
            "undoes": undoes,
            "opinion_shown": opinion_shown,
            "model": item["answer"],
            "versions": _json(versions),
        }
        db.execute(tables.RECORD, values)
        self._requeue(db, item)

    def _requeue(self, db: sqlite3.Connection, item: sqlite3.Row) -> None:
        """Brings the queue to what the audit says of a text."""
        votes = votes_of(db, item["id"])
        settled = settled_label(item["label"], votes)
        if settled is not None or item["decision"] != REVIEW:
            db.execute("DELETE FROM queue WHERE item = ?", (item["id"],))
        else:
            values = (item["id"], item["task"], item["uncertainty"], len(votes))
            db.execute("INSERT OR REPLACE INTO queue VALUES (?, ?, ?, ?)", values)

    def _told(self, db: sqlite3.Connection, request: str) -> dict[str, Any]:
        row = db.execute("SELECT * FROM audit WHERE request = ?", (request,)).fetchone()
        item = self._item(db, row["item"])
        settled = settled_label(item["label"], votes_of(db, item["id"]))
        return {**as_audit(row), "settled": settled}


def votes_of(db: sqlite3.Connection, item: int) -> list[str]:
    """The labels that reviewers gave a text and did not take back, oldest first."""
    return [row["label"] for row in db.execute(tables.STANDING, (item,))]


def as_audit(row: sqlite3.Row) -> dict[str, Any]:
    """An audit row as JSON values."""
    return {
        **dict(row),
        "opinion_shown": bool(row["opinion_shown"]),
        "model": json.loads(row["model"]),
        "versions": json.loads(row["versions"]),
    }


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def _as_item(row: sqlite3.Row) -> dict[str, Any]:
    answer = json.loads(row["answer"])
    return {
        "id": row["id"],
        "task": row["task"],
        "text": row["text"],
        "context": json.loads(row["context"]),
        "labels": list(answer["probabilities"]),
        "added_at": row["added_at"],
        "model": answer,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
