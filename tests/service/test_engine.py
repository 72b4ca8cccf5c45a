"""The queue and the thread behind it: shared batches, limits, failures, an orderly end."""

import asyncio
import threading

import pytest
from labellers import FakeLabeller

from moecl_jax.service.engine import Engine
from moecl_jax.service.limits import Limits, Refused


@pytest.fixture
def labeller():
    return FakeLabeller()


@pytest.fixture
def start(labeller):
    """Makes an engine with these limits, and closes it in the end."""
    engines = []

    def start(**limits):
        engine = Engine(labeller, limits=Limits(**limits))
        engines.append(engine)
        engine.start()
        return engine

    yield start
    labeller.open.set()
    for engine in engines:
        engine.close()


async def until(true):
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def held(engine, labeller, *texts):
    """A request whose batch is in work and does not end before `labeller.open` is set."""
    labeller.open.clear()
    before = len(labeller.batches)
    task = asyncio.ensure_future(engine.classify(list(texts)))
    await until(lambda: len(labeller.batches) > before)
    return task


def test_each_text_gets_its_own_answer(start):
    engine = start()

    async def go():
        return await asyncio.gather(
            engine.classify(["s1", "h1", "s2", "h2", "s3", "h3"], "news"),
            engine.classify(["h" * 101]),
        )

    several, [single] = asyncio.run(go())
    assert [answer["label"] for answer in several] == ["spam", "ham"] * 3
    assert {answer["task"] for answer in several} == {"news"}
    assert several[0] == {
        "task": "news",
        "label": "spam",
        "probabilities": {"ham": pytest.approx(0.1), "spam": 0.9},
        "decision": "review",
        "thresholds": None,
        "checkpoint": "first",
        "truncated": False,
        "error": None,
    }
    assert single["task"] == "mail"
    assert single["truncated"]


def test_requests_of_several_tasks_share_a_batch(start, labeller):
    engine = start()

    async def go():
        first = await held(engine, labeller, "a")
        others = [
            asyncio.ensure_future(engine.classify([text], task))
            for text, task in (("b", "news"), ("c", "mail"), ("d", None), ("e", "news"))
        ]
        await until(lambda: len(engine._queue) == 5)
        labeller.open.set()
        await asyncio.gather(first, *others)

    asyncio.run(go())
    assert labeller.batches[1] == [("b", "news"), ("c", "mail"), ("d", "mail"), ("e", "news")]
    assert len(labeller.batches) == 2


def test_a_batch_in_work_does_not_delay_the_event_loop(start, labeller):
    engine = start()

    async def go():
        task = await held(engine, labeller, "a")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        labeller.open.set()
        return await task

    assert len(asyncio.run(go())) == 1


def test_a_full_queue_refuses_a_request_as_a_whole(start, labeller):
    engine = start(queue_texts=5)

    async def go():
        first = await held(engine, labeller, "a", "b", "c")
        with pytest.raises(Refused) as caught:
            await engine.classify(["d", "e", "f"])
        second = asyncio.ensure_future(engine.classify(["d", "e"]))
        await until(lambda: len(engine._queue) == 5)
        labeller.open.set()
        await asyncio.gather(first, second)
        await engine.classify(["d", "e", "f"])
        return caught.value

    refused = asyncio.run(go())
    assert (refused.status, "3 texts wait, of at most 5" in refused.detail) == (503, True)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


def test_one_caller_cannot_take_the_whole_queue(start, labeller):
    engine = start(queue_texts=10, caller_texts=3)

    async def go():
        first = await held(engine, labeller, "a", "b")
        with pytest.raises(Refused) as caught:
            await engine.classify(["c", "d"])
        other = asyncio.ensure_future(engine.classify(["c", "d"], caller="other"))
        await until(lambda: len(engine._queue) == 4)
        labeller.open.set()
        await asyncio.gather(first, other)
        await engine.classify(["c", "d", "e"])  # what was answered counts no more
        return caught.value

    refused = asyncio.run(go())
    assert (refused.status, "Retry-After" in refused.headers) == (429, True)


def test_a_request_whose_time_is_over_is_told_so_and_leaves_the_queue(start, labeller):
    engine = start(answer_seconds=0.2)

    async def go():
        first = await held(engine, labeller, "a")
        with pytest.raises(Refused) as caught:
            await engine.classify(["late"])
        with pytest.raises(Refused):
            await first
        labeller.open.set()
        await until(lambda: len(engine._queue) == 0)
        await engine.classify(["b"])
        return caught.value

    refused = asyncio.run(go())
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert [("late", "mail")] not in labeller.batches
    assert len(labeller.batches) == 2


def test_a_failing_batch_fails_its_requests_alone(start, labeller):
    engine = start()

    async def go():
        labeller.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            await engine.classify(["a"] * 20)
        labeller.fails = False
        await until(lambda: len(engine._queue) == 0)
        assert len(labeller.batches) <= 2  # nobody waits for the rest
        return await engine.classify(["s"])

    assert asyncio.run(go())[0]["label"] == "spam"
    assert engine.alive
    assert len(engine._queue) == 0


def test_a_text_that_cannot_be_labelled_is_for_a_person(start):
    engine = start()
    answers = asyncio.run(engine.classify(["s", "unreadable", "broken", "h"], "news"))
    assert [answer["label"] for answer in answers] == ["spam", None, None, "ham"]
    assert [answer["error"] for answer in answers[1:3]] == [
        "cannot be read",
        "scores are not finite",
    ]
    assert {answer["decision"] for answer in answers} == {"review"}
    assert answers[1]["probabilities"] == answers[2]["probabilities"] == {}


def test_unknown_tasks_are_refused(start, labeller):
    engine = start()
    with pytest.raises(Refused, match="there is no task 'x' with labels; tasks are mail, news"):
        asyncio.run(engine.classify(["a"], "x"))
    labeller.choosing_problem = "no expert a task"
    with pytest.raises(Refused, match="name a task of mail, news"):
        asyncio.run(engine.classify(["a"]))


def test_closing_answers_whatever_was_accepted_and_refuses_the_rest(start, labeller):
    engine = start()

    async def go():
        accepted = [await held(engine, labeller, "a")]
        accepted += [asyncio.ensure_future(engine.classify([f"s{n}"] * 7)) for n in range(5)]
        await until(lambda: len(engine._queue) == 36)
        closing = threading.Thread(target=engine.close)
        closing.start()
        await until(lambda: engine.draining)
        with pytest.raises(Refused) as caught:
            await engine.classify(["late"])
        labeller.open.set()
        answers = await asyncio.gather(*accepted)
        closing.join()
        return answers, caught.value

    answers, refused = asyncio.run(go())
    assert [len(each) for each in answers] == [1, 7, 7, 7, 7, 7]
    assert all(answer["label"] for each in answers for answer in each)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    assert not engine.alive


def test_another_labeller_answers_from_the_next_batch_on(start, labeller):
    engine = start()
    other = FakeLabeller("second", tasks=("mail",))

    async def go():
        first = await held(engine, labeller, "a")
        waiting = asyncio.ensure_future(engine.classify(["b"], "mail"))
        gone = asyncio.ensure_future(engine.classify(["c"], "news"))
        await until(lambda: len(engine._queue) == 3)
        engine.switch(other)
        labeller.open.set()
        return await asyncio.gather(first, waiting, gone)

    answers = [answer for [answer] in asyncio.run(go())]
    assert [answer["checkpoint"] for answer in answers] == ["first", "second", "second"]
    assert [answer["error"] for answer in answers] == [None, None, "the task is gone"]
    assert other.batches == [[("b", "mail")]]


def test_many_requests_at_once_lose_nothing(start, labeller):
    engine = start(queue_texts=10_000, caller_texts=10_000)

    async def go():
        return await asyncio.gather(
            *(engine.classify([f"{'sh'[n % 2]}{n}"] * (1 + n % 5)) for n in range(400))
        )

    found = asyncio.run(go())
    assert [len(answers) for answers in found] == [1 + n % 5 for n in range(400)]
    for n, answers in enumerate(found):
        assert {answer["label"] for answer in answers} == {"ham" if n % 2 else "spam"}
    assert sum(map(len, labeller.batches)) == 1200
    assert len(labeller.batches) < 310
