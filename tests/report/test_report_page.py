"""The report in headless Chromium: its pictures are shown, and the browser reports no errors."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading

import pytest
from report_runs import realistic_sweep

from moecl_jax.report import report

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SECONDS = 300
SHOWN = {"Accuracy as the stream grows": 3, "Forgetting, task by task": 4}
FOLDED = {  # figures in each folded section of the page, over three orders
    "Accuracy matrices": 29,
    "The choice of the task": 15,
    "Loss curves": 29,
    "Gate weights": 6,
    "Discriminator accuracy": 3,
}
PICTURES = """
[...document.querySelectorAll('figure svg')].filter(svg => svg.checkVisibility()).map(svg => {
  const box = svg.getBoundingClientRect();
  const details = svg.closest('details'), section = svg.closest('section');
  return {
    section: section.querySelector('h3').textContent,
    summary: details ? details.querySelector('summary').textContent : '',
    named: svg.getAttribute('aria-labelledby').split(' ').every(
      id => svg.querySelector('#' + id)),
    width: box.width, height: box.height, top: box.top + scrollY, left: box.left,
    texts: [...svg.querySelectorAll('text')].filter(t => t.getBBox().width > 0).length,
    clipped: [...svg.querySelectorAll('text')].filter(t => {
      const b = t.getBoundingClientRect();
      return b.left < box.left - 1 || b.right > box.right + 1;
    }).map(t => t.textContent),
  };
})
"""
COLORS = """
(async () => {
  const image = await createImageBitmap(await (await fetch('data:image/png;base64,%s')).blob());
  const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
  canvas.drawImage(image, 0, 0);
  const pixels = new Uint32Array(
    canvas.getImageData(0, 0, image.width, image.height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  return [counts.size, 1 - Math.max(...counts.values()) / pixels.length];
})()
"""


class Browser:
    """A page of headless Chromium, controlled by its DevTools protocol over a pipe."""

    def __init__(self, process):
        self._process, self._count, self._session, self.events = process, 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._read()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url):
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, expression):
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def window(self, width, height, scheme="light"):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def colors(self, box=None):
        """Counts the colours of a screenshot, and the share of pixels without the commonest one."""
        clip = {}
        if box is not None:
            keys = {"x": "left", "y": "top", "width": "width", "height": "height"}
            clip = {"clip": {k: box[name] for k, name in keys.items()} | {"scale": 1}}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, **clip)["data"]
        assert base64.b64decode(shot).startswith(b"\x89PNG")
        return self.run(COLORS % shot)

    def _read(self):
        message = bytearray()
        while (byte := self._process.stdout.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            message += byte
        return json.loads(message)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report([realistic_sweep(folder / "sweep")], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = os.environ.get("MOECL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a headless Chromium: none of {', '.join(NAMES)} is installed")
    assert shutil.which(program), f"MOECL_CHROMIUM={program} is no program"
    folder = tmp_path_factory.mktemp("chromium")
    command = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    # Chromium's own sandbox does not start as root, nor in a container.
    command += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    # The protocol is read from file descriptor 3 and written to 4.
    shell = ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh"]
    with (folder / "stderr").open("wb") as errors, contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            shell + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        watchdog = threading.Timer(SECONDS, process.kill)  # without it, reading could wait for ever
        watchdog.start()
        stack.callback(watchdog.cancel)
        yield Browser(process)


def check(pictures):
    for picture in pictures:
        assert picture["width"] > 100 and picture["height"] > 80, picture
        assert picture["texts"] > 5 and picture["named"] and not picture["clipped"], picture


@pytest.mark.browser
def test_what_answers_first_is_shown_and_the_rest_folded(browser, page):
    browser.window(1280, 900)
    browser.open(page)
    pictures = browser.run(PICTURES)
    assert {name: sum(p["section"] == name for p in pictures) for name in SHOWN} == SHOWN
    assert len(pictures) == sum(SHOWN.values())
    check(pictures)
    for picture in (pictures[0], pictures[-2]):
        colors, drawn = browser.colors(picture)
        assert colors > 8 and drawn > 0.02, (picture, colors, drawn)
    # The first screen has the title, the outcome, the chart that answers, and where the table is.
    tops = browser.run(
        "['h1', '.outcome', 'figure', '.main h3'].map("
        "name => document.querySelector(name).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops) and tops[-1] < 800


@pytest.mark.browser
def test_folded_parts_open_and_have_pictures_too(browser, page):
    browser.window(1280, 900)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    pictures = browser.run(PICTURES)
    # In the third order one run is missing, which had a matrix and a loss curve.
    assert {name: sum(p["summary"] == name for p in pictures) for name in FOLDED} == FOLDED
    assert len(pictures) == sum(FOLDED.values()) + 3 + 12  # orders; tasks of all orders
    check(pictures)


@pytest.mark.browser
def test_a_wide_table_shows_on_a_phone_that_it_scrolls(browser, page):
    shows = "getComputedStyle(document.querySelector('.hint')).display"
    browser.window(1280, 900)
    browser.open(page)
    assert browser.run(shows) == "none"
    browser.window(390, 800)
    browser.open(page)
    assert browser.run(shows) == "block"
    box = "document.querySelector('.main .scroll')"
    assert browser.run(f"{box}.scrollWidth > {box}.clientWidth + 100")
    # The shadow at the right edge stays while the table moves, and so does the first column.
    assert browser.run(f"getComputedStyle({box}).backgroundAttachment").count("scroll") == 2
    head = f"{box}.querySelector('tbody th').getBoundingClientRect().left"
    before = browser.run(head)
    assert browser.run(f"{box}.scrollLeft = 80, {head}") == before


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_the_window_and_is_quiet(browser, page, width, scheme):
    browser.window(width, 900, scheme)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width
    title = browser.run("document.querySelector('h1').textContent")
    assert title == "per_task, mocl, moe_cl and 7 more on 4 tasks"
    table = browser.run("document.querySelector('table').innerText")
    assert "moe_cl" in table and "±" in table
    colors, drawn = browser.colors()
    assert colors > 20 and drawn > 0.03
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(14, 18, 23)"}[scheme]
    seen = {event["method"] for event in browser.events}
    assert not seen & {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
    asked = {
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {page}
