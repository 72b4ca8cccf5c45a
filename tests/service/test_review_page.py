"""The reviewer's page in headless Chromium: by keyboard, in both languages, light and dark."""

import contextlib
import json
import os
import re
import shutil
import threading
import time

import pytest
import uvicorn
from review_app import entry, make

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
HOSTILE = (
    "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'>\n"
    "pay \u202eevil\u202c now\u200b, \ufeff或者 <b>中文</b> {kappa}"
)
CONTEXT = {"channel": "<i>chat</i>", "sent": "2026-01-02", "author": {"id": 7}}

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser():
    program = os.environ.get("MOECL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a headless Chromium: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=shutil.which(program), args=["--no-sandbox"]
        )
        yield opened
        opened.close()


@contextlib.contextmanager
def served(app):
    """The address of a service in a thread of this process."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Desk:
    """A reviewer at the page of a fresh service."""

    def __init__(self, browser, url, store, size="desktop", scheme="light", language="en"):
        width, height = SIZES[size]
        self.url, self.store = url, store
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, locale=language,
            accept_downloads=True,
        )  # fmt: skip
        self.page = self.context.new_page()
        self.complaints, self.asked = [], set()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))

    def open(self):
        self.page.goto(self.url)
        self.page.wait_for_selector("#card:not([hidden]), #empty:not([hidden])")
        self.settle()

    def settle(self):
        """Waits till nothing is being sent."""
        self.until(
            "!document.querySelector('main[aria-busy], aside[aria-busy]')"
            " && document.querySelector('#picture').childNodes.length > 0"
        )

    def until(self, expression):
        """Waits till an expression is true; Playwright's own waiting needs the policy lifted."""
        deadline = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.01)

    def press(self, key):
        self.page.keyboard.press(key)
        self.settle()

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def rows(self):
        with self.store.snapshot() as db:
            return [dict(row) for row in db.execute("SELECT * FROM audit ORDER BY id")]


KEY = "reviewer-key-0123456789"


@pytest.fixture
def open_desk(browser, tmp_path):
    """Opens the page of a service with some texts."""
    with contextlib.ExitStack() as stack:

        def opened(entries=(), *, keys=None, **options):
            app, store = make(tmp_path / "reviews.db", keys)
            stack.callback(store.close)
            store.add(list(entries))
            desk = Desk(browser, stack.enter_context(served(app)), store, **options)
            stack.callback(desk.context.close)
            if keys is None:
                desk.open()
            return desk

        yield opened


def mails(count):
    return [entry(f"Message {number}: shall we meet at noon?") for number in range(count)]


def test_twenty_texts_are_decided_by_twenty_keys_one_is_undone_and_they_are_exported(open_desk):
    desk = open_desk()
    page = desk.page
    page.click("#empty-add")
    page.fill("#content", "\n".join(f"Message {number}: see you at noon?" for number in range(25)))
    page.click("#add-now")
    desk.until("document.querySelector('#add-message').textContent.includes('25')")
    page.keyboard.press("Escape")
    desk.settle()
    seen = set()
    for number in range(20):
        seen.add(desk.text("#text"))
        desk.press("12"[number % 2])
    assert len(seen) == 20 and desk.text("#text") not in seen
    assert [row["label"] for row in desk.rows()] == ["ham", "spam"] * 10
    last = desk.rows()[-1]["item"]
    desk.press("u")
    assert desk.text("#about").endswith(f"text {last}")
    assert [row["kind"] for row in desk.rows()] == ["decision"] * 20 + ["undo"]
    page.click("#open-export")
    page.check("#unsettled")
    with page.expect_download() as download:
        page.click("#export-now")
    assert download.value.suggested_filename == "mail-task.jsonl"
    lines = [json.loads(line) for line in download.value.path().read_text("utf-8").splitlines()]
    assert len(lines) == 19 and last not in {line["id"] for line in lines}
    assert {line["label"] for line in lines} == {"ham", "spam"}
    page.check("input[value='label-studio']")
    with page.expect_download() as download:
        page.click("#export-now")
    assert len(json.loads(download.value.path().read_text("utf-8"))) == 19
    assert desk.complaints == []
    assert all(url.startswith((desk.url, "blob:")) for url in desk.asked)


def test_the_opinion_is_hidden_till_the_decision_or_shown_by_a_switch(open_desk):
    desk = open_desk([entry("a", first=0.9), entry("b", first=0.8), entry("c", first=0.95)])
    assert "80" not in desk.text("main") and not desk.page.is_visible("#opinion")
    desk.press("2")
    assert "The model said ham (80 %). A second reviewer" in desk.text("#outcome")
    desk.press("m")
    assert desk.text("#opinion") == "The model says ham (90 %)."
    desk.press("1")
    assert "The model said so too (90 %)" in desk.text("#outcome")
    desk.press("m")  # the next one's has been seen
    desk.press("1")
    assert [row["opinion_shown"] for row in desk.rows()] == [0, 1, 1]
    assert desk.page.is_visible("#empty") and "100 %" not in desk.text("#picture")


def test_a_key_is_asked_for_until_it_is_one(open_desk):
    desk = open_desk([entry("a", first=0.9)], keys={KEY: ("An", 2)})
    desk.page.goto(desk.url)
    for wrong in ("“reviewer-key-0123456789”", "reviewer-key-9876543210"):
        desk.page.wait_for_selector("#settings[open]")
        assert desk.text("#settings-message") == "The service asks for a key of a reviewer."
        desk.page.fill("#key", wrong)
        desk.page.click("#settings button.main")
    desk.page.wait_for_selector("#settings[open]")
    desk.page.fill("#key", KEY)
    desk.page.click("#settings button.main")
    desk.page.wait_for_selector("#card:not([hidden])")


def test_a_second_reviewer_settles_what_the_first_disputes(open_desk):
    desk = open_desk([entry("a", first=0.9)])
    desk.press("2")
    assert desk.page.is_visible("#empty")
    desk.page.click("#open-settings")
    desk.page.fill("#name", "安娜 B.")
    desk.page.click("#settings .main")
    desk.page.wait_for_selector("#card:not([hidden])")
    desk.settle()
    desk.press("2")
    assert [row["reviewer"] for row in desk.rows()] == ["local", "安娜 B."]
    assert "1 disputed texts" in desk.text("#agreement")
    assert "1 decided by reviewers" in desk.text("#legend")


def test_hostile_texts_are_shown_as_texts(open_desk):
    tags = "".join(chr(0xE0000 + ord(letter)) for letter in "ok")
    hostile = f"{HOSTILE} so\u00adft{tags} \u3164 x\u200d\ufe0f"
    desk = open_desk([entry(hostile, first=0.5, context=CONTEXT)])
    shown = desk.text("#text")
    assert "<script>window.hacked = true</script>" in shown and "\u202e" not in shown
    assert [mark.inner_text() for mark in desk.page.locator("#text .mark").all()] == [
        "U+202E", "U+202C", "U+200B", "U+FEFF", "U+00AD", "U+E006F", "U+E006B", "U+3164"
    ]  # fmt: skip
    assert "<i>chat</i>" in desk.text("#context") and '{"id":7}' in desk.text("#context")
    assert desk.page.evaluate("window.hacked") is None
    assert desk.complaints == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [60, 100_000])
def test_the_text_and_its_decisions_are_what_is_seen_first(open_desk, size, length):
    text = ("word " * (length // 5)).strip() if length > 100 else "x" * length
    desk = open_desk([entry(text, first=0.5, context=CONTEXT)], size=size)
    width, height = SIZES[size]
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#about", "#labels button:nth-child(1)", "#labels button:nth-child(2)"):
        box = desk.page.locator(selector).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, (selector, box)
    box = desk.page.locator("#card").bounding_box()
    assert box["y"] < height / 4
    sizes = desk.page.evaluate(
        """[...document.querySelectorAll('main *, header *')].filter(e => e.checkVisibility())
           .map(e => [parseFloat(getComputedStyle(e).fontSize), e.id])
           .sort((a, b) => b[0] - a[0])"""
    )
    assert sizes[0][1] == "text"


def test_keys_do_nothing_where_one_writes_or_when_they_are_switched_off(open_desk):
    desk = open_desk(mails(3))
    desk.page.click("#open-settings")
    desk.page.focus("#name")
    desk.press("1")
    desk.page.fill("#name", "")
    desk.page.uncheck("#one-key")
    desk.page.click("#settings .main")
    desk.settle()
    desk.press("1")
    desk.press("u")
    desk.page.focus("#task")
    desk.press("1")
    assert desk.rows() == []
    desk.page.click("#labels button:nth-child(1)")
    desk.settle()
    assert len(desk.rows()) == 1


def test_a_held_key_and_a_key_with_control_decide_nothing(open_desk):
    desk = open_desk(mails(3))
    desk.page.keyboard.press("Control+1")
    desk.page.keyboard.down("1")
    for _ in range(5):
        desk.page.keyboard.down("1")  # the keyboard repeats
    desk.page.keyboard.up("1")
    desk.settle()
    assert len(desk.rows()) == 1


def test_a_decision_is_sent_again_till_it_is_answered(open_desk):
    desk = open_desk(mails(2))
    sent = []

    def flaky(route):
        sent.append(route.request.post_data_json)
        if len(sent) == 1:
            route.abort()
        elif len(sent) == 2:
            route.fetch()  # it arrives, and its answer is lost
            route.abort()
        else:
            route.continue_()

    desk.page.route("**/decisions", flaky)
    desk.page.keyboard.press("1")
    desk.until("document.querySelector('#outcome').className === 'problem'")
    assert "Not saved yet" in desk.text("#outcome")
    desk.settle()
    assert len(sent) == 3 and sent[0] == sent[1] == sent[2]
    assert len(desk.rows()) == 1 and desk.text("#outcome").startswith("Saved: ham")


def test_tasks_are_filtered_and_skipped_texts_come_last(open_desk):
    texts = [entry("mail", first=0.5), entry("first", "topics", first=0.6),
             entry("second", "topics", first=0.9)]  # fmt: skip
    desk = open_desk(texts)
    assert desk.text("#text") == "mail"
    desk.page.select_option("#task", "topics")
    desk.until("document.querySelector('#text').innerText === 'first'")
    desk.settle()
    assert desk.page.locator("#labels button").count() == 3
    desk.press("s")
    assert desk.text("#text") == "second"
    desk.press("3")
    assert desk.text("#text") == "first"


def test_the_language_is_that_of_the_browser_and_can_be_changed(open_desk):
    desk = open_desk(mails(2), language="zh-CN")
    assert desk.page.evaluate("document.documentElement.lang") == "zh"
    assert desk.text("#open-add") == "添加文本" and "撤销" in desk.text("#undo")
    desk.press("1")
    assert desk.text("#outcome").startswith("已保存")
    desk.page.click("#language")
    desk.settle()
    assert desk.text("#open-add") == "Add texts"
    # No Chinese is left but the button back.
    assert re.findall("[\u4e00-\u9fff]+", desk.text("header")) == ["中文"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_violation(open_desk, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    texts = [entry(HOSTILE, first=0.5, context=CONTEXT), entry("b", "topics"), entry("clear c")]
    desk = open_desk(texts, size=size, scheme=scheme, language="en" if size == "phone" else "zh")

    def check(state):
        answer = axe.run(desk.page).response
        assert len(answer["passes"]) > 10, state
        serious = [
            (one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in answer["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], state

    check("a text")
    desk.press("m")
    desk.press("1")
    check("with the model's opinion")
    for name in ("add", "export", "settings"):
        desk.page.click(f"#open-{name}")
        check(name)
        desk.page.keyboard.press("Escape")
        desk.settle()
    desk.press("1")
    assert desk.page.is_visible("#empty")
    check("nothing waits")
    assert desk.complaints == []
