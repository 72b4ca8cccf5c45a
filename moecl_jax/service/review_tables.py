"""The tables of the review store in SQLite, and the queries on them."""

import sqlite3

VERSION = 1
"""Version of the tables; others are refused."""

_TABLES = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,     -- of task, text and context
    task TEXT NOT NULL,
    text TEXT NOT NULL,
    context TEXT NOT NULL,           -- JSON object
    label TEXT NOT NULL,             -- the model's
    decision TEXT NOT NULL,          -- the model's
    answer TEXT NOT NULL,            -- all that the model said, JSON
    uncertainty REAL NOT NULL,
    added_at TEXT NOT NULL
);
CREATE INDEX items_of_task ON items (task, decision);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    request TEXT NOT NULL UNIQUE,    -- made by the client: a repeated request is no second row
    kind TEXT NOT NULL CHECK (kind IN ('decision', 'skip', 'undo')),
    item INTEGER NOT NULL REFERENCES items (id),
    reviewer TEXT NOT NULL,
    at TEXT NOT NULL,
    label TEXT CHECK ((label IS NOT NULL) = (kind = 'decision')),
    undoes INTEGER UNIQUE REFERENCES audit (id),
    opinion_shown INTEGER NOT NULL,  -- whether the reviewer saw the model's opinion before
    model TEXT NOT NULL,             -- what the model had said, JSON
    versions TEXT NOT NULL           -- what had answered, and what recorded this, JSON
);
CREATE INDEX audit_of_item ON audit (item);
CREATE INDEX audit_of_reviewer ON audit (reviewer, item);
CREATE TABLE queue (
    item INTEGER PRIMARY KEY REFERENCES items (id),
    task TEXT NOT NULL,
    uncertainty REAL NOT NULL,
    votes INTEGER NOT NULL           -- decisions that were not undone
);
CREATE INDEX queue_order ON queue (uncertainty DESC, item);
CREATE VIEW standing AS
    SELECT * FROM audit WHERE kind != 'undo'
    AND NOT EXISTS (SELECT 1 FROM audit AS later WHERE later.undoes = audit.id);
"""
_APPEND_ONLY = """
CREATE TRIGGER {table}_{event} BEFORE {event} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is only ever appended to'); END;
"""


def create(db: sqlite3.Connection) -> None:
    """Makes the tables in an empty database; the caller has begun a transaction."""
    triggers = [
        _APPEND_ONLY.format(table=table, event=event)
        for table in ("items", "audit")
        for event in ("UPDATE", "DELETE")
    ]
    # executescript would commit the transaction.
    for statement in [*filter(str.strip, _TABLES.split(";\n")), *triggers]:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


ADD = """
INSERT INTO items
    (digest, task, text, context, label, decision, answer, uncertainty, added_at)
VALUES (:digest, :task, :text, :context, :label, :decision, :answer, :uncertainty, :added_at)
ON CONFLICT (digest) DO NOTHING RETURNING id
"""
"""Adds a text; returns no row if it is there already."""

RECORD = """
INSERT INTO audit
    (request, kind, item, reviewer, at, label, undoes, opinion_shown, model, versions)
VALUES (:request, :kind, :item, :reviewer, :at, :label, :undoes, :opinion_shown, :model, :versions)
"""
"""Appends an audit row."""

STANDING = "SELECT * FROM standing WHERE item = ? AND kind = 'decision' ORDER BY id"
"""Decisions on a text that were not undone, oldest first."""

VOTED = "SELECT 1 FROM standing WHERE item = ? AND reviewer = ? AND kind = 'decision'"
"""Whether a reviewer has decided a text."""

TOLD = "SELECT 1 FROM audit WHERE item = ? AND reviewer = ? AND kind = 'decision'"
"""Whether a reviewer has ever decided a text, and so was told the model's opinion."""

LAST = "SELECT * FROM standing WHERE reviewer = ? ORDER BY id DESC LIMIT 1"
"""What a reviewer did last and has not undone."""

HELD = """
SELECT item FROM queue
WHERE item = :held AND (:task IS NULL OR task = :task)
    AND NOT EXISTS (SELECT 1 FROM standing
        WHERE standing.item = queue.item AND standing.reviewer = :reviewer)
"""
"""The text on a reviewer's screen, if it is still theirs to decide."""

NEXT = """
SELECT item FROM queue
WHERE (:task IS NULL OR task = :task)
    AND item NOT IN (SELECT value FROM json_each(:others))
    AND NOT EXISTS (SELECT 1 FROM standing
        WHERE standing.item = queue.item AND standing.reviewer = :reviewer)
ORDER BY uncertainty DESC, item LIMIT 1
"""
"""The next text that a reviewer has neither decided nor skipped."""

SKIPPED = """
SELECT queue.item FROM queue JOIN standing ON standing.item = queue.item
WHERE (:task IS NULL OR task = :task) AND standing.reviewer = :reviewer
    AND queue.item NOT IN (SELECT value FROM json_each(:others))
GROUP BY queue.item HAVING SUM(kind = 'decision') = 0
ORDER BY MAX(standing.id) LIMIT 1
"""
"""The text that a reviewer skipped longest ago."""

PROGRESS = """
SELECT items.task, COUNT(*) FILTER (WHERE decision != 'review') AS stripped,
    COUNT(*) FILTER (WHERE decision = 'review' AND queue.item IS NULL) AS settled,
    COUNT(*) FILTER (WHERE queue.votes > 0) AS second,
    COUNT(*) FILTER (WHERE queue.votes = 0) AS open
FROM items LEFT JOIN queue ON queue.item = items.id GROUP BY items.task ORDER BY MIN(items.id)
"""
"""Numbers of texts by task."""

VOTES = """
SELECT standing.item, standing.label, items.task, items.label AS said
FROM standing JOIN items ON items.id = standing.item
WHERE kind = 'decision' ORDER BY standing.id
"""
"""All decisions that were not undone, oldest first."""

REVIEWED = """
SELECT * FROM items WHERE (:task IS NULL OR task = :task) AND decision = 'review' AND EXISTS
    (SELECT 1 FROM standing WHERE standing.item = items.id AND standing.kind = 'decision')
ORDER BY id
"""
"""Texts that a reviewer has decided."""

AUDIT = """
SELECT audit.* FROM audit JOIN items ON items.id = audit.item
WHERE (:task IS NULL OR task = :task) ORDER BY audit.id
"""
"""The audit, oldest first."""
