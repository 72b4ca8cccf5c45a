"""The review store: its queue, its audit, and what it refuses."""

import contextlib
import json
import random
import sqlite3
import threading

import pytest
from review_app import entry

import moecl_jax
from moecl_jax.errors import UserError
from moecl_jax.service.agreement import settled_label
from moecl_jax.service.reviews import ConflictError, NotFoundError, ReviewStore, uncertainty


@pytest.fixture
def store(tmp_path):
    opened = ReviewStore(tmp_path / "reviews.db")
    yield opened
    opened.close()


def texts_seen(store, reviewer="An", task=None):
    """The texts in the order of the queue; each is skipped."""
    seen = []
    while (item := store.next_item(reviewer, task)) and item["text"] not in seen:
        seen.append(item["text"])
        store.skip(item["id"], reviewer=reviewer, request=f"skip-{reviewer}-{item['id']}")
    return seen


def decide(store, item, label, reviewer="An", request=None):
    request = request or f"{reviewer}-{item}-{label}-request"
    return store.decide(item, label, reviewer=reviewer, request=request, opinion_shown=False)


def rows(store):
    with store.snapshot() as db:
        return [dict(row) for row in db.execute("SELECT * FROM audit ORDER BY id")]


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ({"a": 0.5, "b": 0.5}, 1.0),
        ({"a": 1.0, "b": 0.0}, 0.0),
        ({"a": 0.2, "b": 0.7, "c": 0.1}, 0.5),
        ({"a": 1.0}, 0.0),
    ],
)
def test_uncertainty_is_one_less_the_margin(probabilities, expected):
    assert uncertainty(probabilities) == pytest.approx(expected)


def test_the_queue_is_ordered_by_uncertainty_then_age(store):
    firsts = {"sure": 0.99, "older": 0.6, "newer": 0.4, "unsure": 0.5}
    store.add([entry(text, first=first) for text, first in firsts.items()])
    store.add([entry("clear", first=0.5)])
    assert texts_seen(store) == ["unsure", "older", "newer", "sure"]
    # Those that were skipped come again, the one that was skipped first before the others.
    assert store.next_item("An")["text"] == "unsure"
    assert store.next_item("An", "topics") is None


def test_a_task_is_filtered(store):
    store.add([entry("a", first=0.5), entry("b", "topics", first=0.9)])
    assert texts_seen(store, task="topics") == ["b"]


def test_two_reviewers_do_not_get_the_same_text(store):
    store.add([entry("a", first=0.5), entry("b", first=0.6)])
    assert store.next_item("An")["text"] == "a"
    assert store.next_item("Bo")["text"] == "b"
    assert store.next_item("An")["text"] == "a"
    assert store.next_item("Cy") is None
    decide(store, 1, "ham")
    assert store.next_item("An") is None
    assert store.next_item("Cy") is None  # "a" is settled, and Bo has "b" before them


def test_a_text_stays_on_the_screen_until_it_is_decided_or_skipped(store):
    store.add([entry("a", first=0.6), entry("b", "topics", first=0.9)])
    assert store.next_item("An")["text"] == "a"
    store.add([entry("more uncertain", first=0.5)])
    assert store.next_item("An")["text"] == "a"
    assert store.next_item("An", "topics")["text"] == "b"
    assert store.next_item("An", "topics")["text"] == "b"
    decide(store, 1, "ham")
    store.undo(reviewer="An", request="undo-request")
    assert store.next_item("An")["text"] == "a"
    store.skip(1, reviewer="An", request="skip-request")
    assert store.next_item("An")["text"] == "more uncertain"


def test_a_text_is_added_once_with_its_task_and_context(store):
    texts = [entry("a"), entry("a", "topics"), entry("a", context={"from": "x"})]
    assert store.add(texts) == (3, 0)
    assert store.add([*texts, entry("b")]) == (1, 3)


def test_who_disagrees_with_the_model_is_followed_by_a_second_reviewer(store):
    store.add([entry("a", first=0.9)])
    assert decide(store, 1, "spam")["settled"] is None
    assert store.next_item("An") is None
    assert store.progress()["tasks"]["mail"]["second"] == 1
    assert store.next_item("Bo")["text"] == "a"
    assert decide(store, 1, "spam", "Bo")["settled"] == "spam"
    assert store.next_item("Cy") is None
    counts = {"stripped": 0, "settled": 1, "second": 0, "open": 0}
    assert store.progress()["tasks"] == {"mail": counts}


def test_kappa_is_of_first_and_second_reviewers(store):
    pairs = [("spam", "spam")] * 3 + [("spam", "ham")] + [("ham", "ham")] * 2
    for number, (first, second) in enumerate(pairs, 1):
        said = 0.9 if first == "spam" else 0.1  # the model always says the other
        store.add([entry(f"text {number}", first=said)])
        decide(store, number, first)
        decide(store, number, second, "Bo")
    store.add([entry("agreed", first=0.9)])
    decide(store, 7, "ham")
    found = store.progress()
    assert (found["pairs"], found["model_pairs"]) == (6, 7)
    # p_o = 5/6; p_e = (4 * 3 + 2 * 3) / 36 = 1/2
    assert found["kappa"] == pytest.approx((5 / 6 - 1 / 2) / (1 / 2))
    # Reviewer and model: p_o = 1/7, p_e = (3 * 5 + 4 * 2) / 49
    assert found["model_kappa"] == pytest.approx((1 / 7 - 23 / 49) / (26 / 49))


def test_an_undo_is_a_further_row_and_the_text_is_to_be_decided_again(store):
    store.add([entry("a", first=0.9), entry("b", first=0.8)])
    decide(store, 1, "ham")
    store.skip(2, reviewer="An", request="skip-request")
    undone = store.undo(reviewer="An", request="undo-request-1")
    assert (undone["undoes"], undone["undone"]["text"]) == (2, "b")
    undone = store.undo(reviewer="An", request="undo-request-2")
    assert (undone["undoes"], undone["undone"]["text"], undone["settled"]) == (1, "a", None)
    with pytest.raises(NotFoundError, match="nothing to undo"):
        store.undo(reviewer="An", request="undo-request-3")
    assert [row["kind"] for row in rows(store)] == ["decision", "skip", "undo", "undo"]
    again = decide(store, 1, "spam", request="again-request")
    assert (again["label"], again["opinion_shown"]) == ("spam", True)  # told after the first
    assert not rows(store)[0]["opinion_shown"]
    assert store.progress()["tasks"]["mail"]["second"] == 1


def test_undo_takes_back_ones_own_steps_alone(store):
    store.add([entry("a", first=0.9)])
    decide(store, 1, "ham")
    with pytest.raises(NotFoundError):
        store.undo(reviewer="Bo", request="undo-request")


def test_a_repeated_request_is_recorded_once(store):
    store.add([entry("a", first=0.9)])
    first = decide(store, 1, "ham", request="decision-request")
    assert decide(store, 1, "ham", request="decision-request") == first
    skipped = store.skip(1, reviewer="Bo", request="skip-request")
    assert store.skip(1, reviewer="Bo", request="skip-request") == skipped
    undone = store.undo(reviewer="An", request="undo-request")
    assert store.undo(reviewer="An", request="undo-request") == undone
    assert [row["kind"] for row in rows(store)] == ["decision", "skip", "undo"]
    with pytest.raises(ConflictError, match="something else"):
        decide(store, 1, "spam", request="decision-request")
    with pytest.raises(ConflictError, match="something else"):
        decide(store, 1, "ham", "Bo", request="decision-request")


def test_what_does_not_go_is_refused(store):
    store.add([entry("a", first=0.9), entry("clear b", first=0.9)])
    decide(store, 1, "ham")
    with pytest.raises(ConflictError, match="decided text 1 already"):
        decide(store, 1, "spam")
    with pytest.raises(ConflictError, match="decided by the model"):
        decide(store, 2, "spam")
    with pytest.raises(UserError, match="no label 'egg'; this task has ham, spam"):
        decide(store, 1, "egg", "Bo")
    with pytest.raises(NotFoundError, match="no text 9"):
        decide(store, 9, "ham")
    with pytest.raises(UserError, match="surrogate"):
        store.add([entry("good"), entry("bad", context={"from": "\ud800"})])
    assert len(rows(store)) == 1
    assert store.add([entry("good")]) == (1, 0)  # nothing of the refused ones was kept


def test_the_audit_says_who_when_what_the_model_said_and_versions(store):
    store.add([entry("a", first=0.9)])
    decide(store, 1, "spam", request="decision-request")
    (row,) = rows(store)
    assert (row["reviewer"], row["label"], row["opinion_shown"]) == ("An", "spam", 0)
    assert row["at"].endswith("+00:00") and len(row["at"]) == len(
        "2026-01-01T00:00:00.000000+00:00"
    )
    assert json.loads(row["model"])["probabilities"]["ham"] == 0.9
    versions = {"checkpoint": "7", "thresholds": "abc", "moecl_jax": moecl_jax.__version__}
    assert json.loads(row["versions"]) == versions


@pytest.mark.parametrize("change", ["UPDATE {} SET id = 2", "DELETE FROM {}"])
@pytest.mark.parametrize("table", ["audit", "items"])
def test_rows_are_only_ever_appended(store, table, change):
    store.add([entry("a", first=0.9)])
    decide(store, 1, "ham")
    with sqlite3.connect(store.path) as db, pytest.raises(sqlite3.IntegrityError, match="append"):
        db.execute(change.format(table))
    db.close()


def test_a_commit_is_on_the_disk_before_a_call_returns(store):
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"x" * 500])
def test_a_file_that_is_no_store_is_refused(tmp_path, content):
    (tmp_path / "file.db").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.db: the reviews cannot be read"):
        ReviewStore(tmp_path / "file.db")


def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE notes (id); PRAGMA user_version = 1;")
    content = path.read_bytes()
    with pytest.raises(UserError, match=r"no reviews of version 1 \(.*tables notes\)"):
        ReviewStore(path)
    assert path.read_bytes() == content


def test_another_version_and_a_missing_folder_are_refused(tmp_path, store):
    with pytest.raises(UserError, match="unable to open"):
        ReviewStore(tmp_path / "none" / "file.db")
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(UserError, match="no reviews of version 1"):
        ReviewStore(store.path)


def test_threads_share_a_store(store):
    store.add([entry(f"text {number}", first=0.9) for number in range(40)])

    def work(name):
        while (item := store.next_item(name)) is not None:
            decide(store, item["id"], "ham", name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ABCD"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["item"] for row in rows(store)) == list(range(1, 41))


def test_the_queue_is_what_the_audit_says_after_any_steps(store):
    generator = random.Random(0)
    models = {}
    for number in range(1, 13):
        task = generator.choice(["mail", "topics"])
        kept = entry(f"text {number}", task)
        store.add([kept])
        models[number] = kept.answer
    log = []  # (reviewer, item, label) of what stands
    for step in range(600):
        reviewer, request = generator.choice("ABCD"), f"request-{step}"
        action = generator.choice(["decide", "decide", "decide", "skip", "undo"])
        mine = [entry for entry in log if entry[0] == reviewer]
        item = generator.randint(1, 12)
        label = generator.choice(list(models[item]["probabilities"]))
        if action == "undo" and mine:
            assert store.undo(reviewer=reviewer, request=request)["item"] == mine[-1][1]
            last = len(log) - 1 - [entry[0] for entry in log][::-1].index(reviewer)
            del log[last]
        elif action == "skip":
            store.skip(item, reviewer=reviewer, request=request)
            log.append((reviewer, item, None))
        elif action == "decide" and not any(one[1] == item and one[2] for one in mine):
            decide(store, item, label, reviewer, request)
            log.append((reviewer, item, label))
    waiting = {}
    for item, said in models.items():
        votes = [label for _, which, label in log if which == item and label]
        if settled_label(said["label"], votes) is None:
            waiting[item] = len(votes)
    with store.snapshot() as db:
        assert dict(db.execute("SELECT item, votes FROM queue").fetchall()) == waiting
    assert len(log) > 20 and waiting
