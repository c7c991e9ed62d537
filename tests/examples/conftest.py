"""An example as it stands in `deploy/examples`, behind two replicas with its own settings, in a real Chromium.

A proxy stands for the load balancer: requests that begin an answer go to the first replica, all others to the second
one, as long as it runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.client_js import install as client_js
from tests.playground.browser import Browser, Page
from tests.sdk import install as sdk
from tests.support.cutting_http import Asked, CuttingProxy, Fate
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.stores import valkey_server
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
PACE = 0.08
"""Seconds between two words of an answer."""
BROKEN = ["Failed to load resource", "net::ERR_"]
"""What a browser logs of requests that fail, as they do where a replica is killed."""


def the_runner() -> ModuleType:
    """`deploy/examples/run.py`."""
    spec = importlib.util.spec_from_file_location("example_runner", EXAMPLES / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Chat:
    """One page of the example."""

    page: Page

    def open(self, url: str) -> None:
        """A page is only loaded again where more than the fragment of its address changes."""
        self.page.open("about:blank")
        self.page.open(url)
        self.until("document.getElementById('messages')")

    def reload(self) -> None:
        self.page.do("reload")
        self.until("document.getElementById('messages')")

    def until(self, condition: str, seconds: float = 30) -> None:
        look = f"() => ({condition}) ? done() : Date.now() > end ? fail('time is up') : setTimeout(look, 20)"
        begin = f"const end = Date.now() + {seconds * 1000}, look = {look}; look()"
        try:
            self.page.js(f"new Promise((done, fail) => {{ {begin} }})")
        except AssertionError as error:
            shown = self.page.js("document.body.innerText")
            raise AssertionError(f"{condition} did not come true: {error}\n{shown}") from None

    def until_text(self, text: str, seconds: float = 30) -> None:
        self.until(f"document.getElementById('messages').textContent.includes({json.dumps(text)})", seconds)

    def until_status(self, *status: str) -> None:
        self.until(f"{json.dumps(status)}.includes(document.getElementById('status').textContent)")

    @property
    def messages(self) -> str:
        return self.page.text("messages")

    @property
    def error(self) -> str:
        return self.page.text("error")


@dataclass
class Site:
    name: str
    backend: subprocess.Popen[bytes]
    replicas: tuple[RelayProcess, RelayProcess]
    browser: Browser
    others_to: int = 1
    """Which replica gets all that begins no answer."""
    chats: int = field(default=0)
    proxy: CuttingProxy = field(init=False)

    def fate(self, asked: Asked) -> Fate:
        begins = asked.body and "last-event-id" not in asked.headers
        return Fate(to=0 if begins and self.others_to else self.others_to)

    def fresh(self) -> Chat:
        """A page with a chat that nobody has begun, and no other page."""
        chat = Chat(self.browser.fresh())
        self.chats += 1
        chat.open(self.url)
        return chat

    @property
    def url(self) -> str:
        """The address of the newest chat."""
        return f"{self.proxy.url}/#chat-{self.name}-{self.chats}"

    def second_tab(self) -> Chat:
        self.browser.page(0).js("void window.open('about:blank')")
        chat = Chat(self.browser.page(1))
        chat.open(self.url)
        return chat


@contextmanager
def site(name: str, browser: Browser, folder: Path) -> Iterator[Site]:
    port = free_port()
    settings: dict[str, Any] = yaml.safe_load((EXAMPLES / name / "relay.yaml").read_text())
    del settings["bind"]
    settings["upstreams"][0]["base_url"] = f"http://127.0.0.1:{port}"
    settings["streams"] |= {"lease": "2s", "heartbeat": "500ms"}
    settings["drain"] = {"timeout": "1s"}
    with valkey_server(folder) as store, backend(name, port, folder) as process:
        settings["store"] = {"url": store.url}
        with RelayProcess(settings) as first, RelayProcess(settings) as second:
            found = Site(name, process, (first, second), browser)
            with CuttingProxy(first.url, second.url, fate=found.fate) as found.proxy:
                yield found


@contextmanager
def backend(name: str, port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Started by the example's own command, with the packages that the tests have."""
    own = EXAMPLES / name
    packages = sdk.python_generation("examples")
    environment = {**os.environ, "PACE": str(PACE), "PORT": str(port), "PYTHONPATH": str(packages)}
    if (own / "package.json").exists():
        own = node_project(own, folder)
    command = the_runner().backend(name, port, sys.executable)
    log = folder / "backend.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=own, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or answers(port), 30, "the backend answers")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def node_project(own: Path, folder: Path) -> Path:
    """A copy of the example beside the packages of the JavaScript client's tests, and the client as it is here."""
    project = folder / "project"
    shutil.copytree(own, project, ignore=shutil.ignore_patterns("node_modules", "relay-data"))
    modules = project / "node_modules"
    modules.mkdir()
    for package in (client_js.NODE / "node_modules").iterdir():
        (modules / package.name).symlink_to(package)
    shutil.copytree(ROOT / "relay" / "client" / "js", modules / "relay-streams")
    return project


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def chromium() -> str:
    needs(shutil.which("node"), "Node.js")
    needs(client_js.is_installed(), "the packages of tests/client_js: run tests/client_js/install.py")
    needs(sdk.is_installed("examples"), "the packages of deploy/examples: run tests/sdk/install.py")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    needs(found, "Chromium: apt-get install chromium")
    return str(found)


@pytest.fixture(scope="session")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(chromium, tmp_path_factory.mktemp("profile")) as found:
        yield found
