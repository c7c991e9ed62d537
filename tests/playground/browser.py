"""A real headless Chromium, driven step by step through `driver.mjs`.

It promises that a step that does not work within its time fails the test with the browser's own words, that everything
the pages logged, asked for or broke is kept, and that the browser ends with its user.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

_DRIVER = Path(__file__).with_name("driver.mjs")


class Browser:
    """Use it as a context manager."""

    def __init__(
        self, executable: str, profile: Path, *, scheme: str = "light", size: tuple[int, int] = (1280, 800)
    ) -> None:
        self._process = subprocess.Popen(
            ["node", str(_DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        viewport = {"width": size[0], "height": size[1]}
        self._launch = {"browser": executable, "profile": str(profile), "scheme": scheme, "size": viewport}

    def __enter__(self) -> Browser:
        self.tell(launch=self._launch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=15)  # the end of its input is the end of the browser
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise

    def tell(self, **command: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the driver has ended"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def page(self, number: int = 0) -> Page:
        """The page that was opened as this one, counted from 0; waited for."""
        self.tell(pages=number + 1)
        return Page(self, number)

    def troubles(self, *allowed: str) -> list[str]:
        """What the pages logged as an error or warning, and what they threw; without what holds an `allowed` text."""
        seen = self.tell(seen=True)
        found = [text for kind, text in seen["console"] if kind in ("error", "warning")] + seen["errors"]
        return [text for text in found if not any(part in text for part in allowed)]

    def fresh(self) -> Page:
        """Close every page for a new one, and forget what was kept."""
        self.tell(fresh=True)
        return Page(self, 0)

    def requests(self) -> list[tuple[str, str]]:
        """Method and address of every request so far."""
        return [(method, url) for method, url in self.tell(seen=True)["requests"]]


class Page:
    def __init__(self, browser: Browser, number: int) -> None:
        self._browser = browser
        self._number = number

    def do(self, call: str, *arguments: object) -> Any:
        return self._browser.tell(page=self._number, call=call, **{"with": arguments})

    def open(self, url: str) -> None:
        self.do("goto", url)

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            self.do("selectOption" if name == "api" else "fill", f"#{name}", value)

    def click(self, name: str) -> None:
        self.do("click", f"#{name}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.do("keyboard.press", key)

    def text(self, name: str) -> str:
        return str(self.do("textContent", f"#{name}"))

    def js(self, expression: str) -> Any:
        return self.do("evaluate", expression)

    def until(self, expression: str, seconds: float = 20) -> None:
        # The page's policy lets no text become code, so what looks is one expression, without the driver's help.
        look = f"() => ({expression}) ? resolve() : Date.now() > end ? reject('time is up') : setTimeout(look, 20)"
        begin = f"const end = Date.now() + {seconds * 1000}, look = {look}; look()"
        try:
            self.js(f"new Promise((resolve, reject) => {{ {begin} }})")
        except AssertionError as error:
            shown = {name: self.text(name) for name in ("state", "problem", "text", "events", "resumes", "rows")}
            raise AssertionError(f"{expression} did not come true: {error}\n{shown}") from None

    def until_state(self, state: str) -> None:
        self.until(f"document.body.dataset.state === {json.dumps(state)}")

    def until_text(self, text: str) -> None:
        """Wait until the answer's text ends with this one."""
        self.until(f"document.getElementById('text').textContent.endsWith({json.dumps(text)})")
