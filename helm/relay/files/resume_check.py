"""`helm test`: streams through the relay, cuts the connection, resumes on new ones, and compares byte for byte.

It promises to pass only where a client could have relied on the stream: every event carries its id, numbers have no
gap, each resume starts exactly after the event it names, all of them end alike, and the end answers 204.
Only the standard library may be used: it runs in the relay's image and with any other Python.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

URL = os.environ.get("CHECK_URL", "http://127.0.0.1:8080")
API = os.environ.get("CHECK_API", "chat")
MODEL = os.environ.get("CHECK_MODEL", "")
# Without a credential of the upstream's, one that nobody can guess: whoever holds it owns the stream.
KEY = os.environ.get("CHECK_KEY") or f"helm-test-{secrets.token_hex(16)}"
# How long the relay may take until it is ready: `helm test` may come right after an install without --wait.
READY = float(os.environ.get("CHECK_READY", "60"))
TIMEOUT = float(os.environ.get("CHECK_TIMEOUT", "120"))

PROMPT = "Count from 1 to 30, one number a line."
CUT_AFTER = 2
TURNS = [{"role": "user", "content": PROMPT}]
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
BODIES = {
    "chat": {"messages": TURNS},
    "messages": {"messages": TURNS, "max_tokens": 256},
    "responses": {"input": PROMPT},
}
TERMINAL = {"chat": b"data: [DONE]", "messages": b'"message_stop"', "responses": b'"response.completed"'}


class Failed(Exception):
    """What a client would have run into."""


def main() -> int:
    if not MODEL:
        print("FAILED: there is no model to ask; set test.model to one that an upstream of yours serves")
        return 2
    try:
        wait_ready()
        check()
    except (Failed, OSError, ValueError, http.client.HTTPException) as error:
        print(f"FAILED: {error or type(error).__name__}")
        return 1
    print("PASSED: the stream was cut and resumed without a hole or a repetition")
    return 0


def check() -> None:
    stream, begun = first_events()
    print(f"stream {stream}: {len(begun)} events, then the connection was cut")
    whole = resumed(stream, 0)
    for asked in (len(begun), 1):
        rest = resumed(stream, asked)
        if rest != whole[asked:]:
            raise Failed(f"after event {asked} came other events than when the stream was read from its start")
        print(f"resumed after event {asked}: {len(rest)} events, the same as from the start")
    if begun != whole[: len(begun)]:
        raise Failed("the resumed stream begins with other events than the one that was cut")
    if TERMINAL[API] not in whole[-1]:
        raise Failed(f"the stream ends without its terminal event; its last is {whole[-1][:300]!r}")
    outcome = status(stream).get("outcome")
    if outcome != "completed":
        raise Failed(f"the stream was resumed to its end, but it has failed: its outcome is {outcome}")
    connection, response = ask(f"{stream}.{len(whole)}")
    connection.close()
    if response.status != 204:
        raise Failed(f"a resume at the end answers {response.status}, not 204")


def wait_ready() -> None:
    """Pods may still start, and a Service without any refuses connections."""
    deadline = time.monotonic() + READY
    while True:
        try:
            connection = connect(min(TIMEOUT, 5.0))
            with closing(connection):
                connection.request("GET", "/readyz")
                told = f"/readyz answers {connection.getresponse().status}"
        except (OSError, http.client.HTTPException) as error:
            told = f"it cannot be reached: {error or type(error).__name__}"
        if told == "/readyz answers 200":
            return
        if time.monotonic() >= deadline:
            raise Failed(f"the relay was not ready within {READY:g} s; {told}")
        time.sleep(0.5)


def first_events() -> tuple[str, list[bytes]]:
    """The stream's id and its first events; the connection is cut before its end is read."""
    connection, response = ask(None)
    stream = response.headers.get("Relay-Stream-Id", "")
    if response.status != 200 or not stream:
        raise Failed(f"the answer is {response.status} {response.read(500)!r}, not a stream of the relay's")
    if response.headers.get("Relay-Resumable") != "true":
        raise Failed("the stream has no log (Relay-Resumable is not true); check the store and the upstream's `buffer`")
    found = []
    for block in numbered(response, stream, 0):
        found.append(block)
        if len(found) == CUT_AFTER:
            connection.close()
            return stream, found
    raise Failed(f"the stream ended after {len(found)} events; ask a model that says more")


def resumed(stream: str, after: int) -> list[bytes]:
    connection, response = ask(f"{stream}.{after}")
    with closing(connection):
        if response.status != 200:
            raise Failed(f"the resume after event {after} answers {response.status} {response.read(500)!r}")
        if response.headers.get("Relay-Stream-Id") != stream:
            raise Failed(f"the resume after event {after} is another stream, {response.headers.get('Relay-Stream-Id')}")
        return list(numbered(response, stream, after))


def status(stream: str) -> dict[str, object]:
    connection = connect()
    with closing(connection):
        connection.request("GET", f"/streams/{stream}", headers={**credential(), "Accept": "application/json"})
        shown: dict[str, object] = json.load(connection.getresponse())
        return shown


def ask(last_event_id: str | None) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """The POST of a client."""
    connection = connect()
    headers = {**credential(), "Content-Type": "application/json"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    body = json.dumps({"model": MODEL, "stream": True, **BODIES[API]})
    connection.request("POST", PATHS[API], body, headers)
    return connection, connection.getresponse()


def connect(timeout: float = TIMEOUT) -> http.client.HTTPConnection:
    """A connection of its own, which may reach any replica."""
    where = urlsplit(URL)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    return kind(where.netloc, timeout=timeout)


def credential() -> dict[str, str]:
    if API == "messages":
        return {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    return {"Authorization": f"Bearer {KEY}"}


def numbered(response: http.client.HTTPResponse, stream: str, after: int) -> Iterator[bytes]:
    """The events' bytes, heartbeats left out. Each must carry the next number; an end of the relay's own has none."""
    expected = after
    unnamed = b""
    for block in blocks(response):
        first, _, _ = block.partition(b"\n")
        if not first.startswith(b"id: "):
            if not block.startswith(b"event: ping\n"):
                unnamed = unnamed or block
            continue
        if first.decode() == f"id: {stream}.{expected}e":
            outcome = status(stream).get("outcome")
            raise Failed(f"the relay has ended the stream after event {expected}: its outcome is {outcome}")
        if unnamed:
            break
        expected += 1
        if first.decode() != f"id: {stream}.{expected}":
            raise Failed(f"event {expected} is called {first.decode()!r}")
        yield block
    if unnamed:
        raise Failed(f"event {expected + 1} has no id: {unnamed[:200]!r}")


def blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The blocks that end in a blank line, without comments."""
    block = b""
    for line in response:
        if line in (b"\n", b"\r\n"):
            if block:
                yield block
            block = b""
        elif not line.startswith(b":"):
            block += line


if __name__ == "__main__":
    sys.exit(main())
