"""One client's way through its connections: each visit is one request at one replica, and what came of it.

A client keeps its whole history, tells its witness of everything, and gives up on a connection that is silent for
longer than a heartbeat allows. Which request is next is the session's business.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from typing import TYPE_CHECKING, Literal

from tests.torture.bounds import COMMAND, HEARTBEAT, PATIENCE
from tests.torture.evidence import Refusal, Wait
from tests.torture.generation import PATHS, Spec
from tests.torture.oracle import Event, Violation, Witness
from tests.torture.stores import log_top
from tests.torture.wire import Answer, Unanswered, ask

if TYPE_CHECKING:
    from tests.torture.world import World

SILENCE = 3 * HEARTBEAT + 1.0
HEAD_WAIT = PATIENCE + 2 * COMMAND + 1.5
_HISTORY = 1500
# A client that is slow on purpose reads nothing for so long: the relay's buffers fill, and nobody else waits.
_SLOW = 3.0

Result = Literal["read", "cut", "hop", "left", "nothing", "accepted", "again", "unanswered", "over"]
"""In this order: a clean end; a cut; hung up to come back; for good; 204; 202; refused for now; no answer; refused."""


class Client:
    """`done` says how it ended for this client, once it has."""

    def __init__(self, world: World, name: str, spec: Spec, owner: str, seed: int) -> None:
        self.world = world
        self.name = name
        self.spec = spec
        self.witness = Witness(spec, world.evidence.call_of)
        self.dice = random.Random(f"{seed} {name}")
        self.history: deque[str] = deque(maxlen=_HISTORY)
        self.done: str | None = None
        self.away = False
        """It does not want anything at the moment."""
        self.began = world.now()
        self.wanting_since: float | None = None
        self.attempt = ""
        """The request that may have begun a generation for it."""
        self.posts = 0
        self.visits = 0
        self.in_flight = False
        """The last answer was that another request with its key is in flight."""
        self.ticket_url: str | None = None
        self.hops: tuple[int, ...] = ()
        self.leaves_after: int | None = None
        self.slow_at: int | None = None
        self.at = 0
        """The replica that it asked last."""
        self._asked: set[int] = set()
        self._authorization = f"Bearer sk-{owner}"
        self._noted_first = 0
        self._noted_last = 0

    def note(self, text: str) -> None:
        self._note_events()
        self.history.append(f"{self.world.now():8.3f}  {text}")

    def _note_events(self) -> None:
        if self._noted_first:
            seen = f"events {self._noted_first} to {self._noted_last}"
            self.history.append(f"{self.world.now():8.3f}  {seen}")
            self._noted_first = 0

    def end(self, how: str) -> None:
        if self.done is None:
            self.done = how
            self.note(f"done: {how}")
            self._satisfied()

    def violated(self, violation: Violation) -> None:
        self.note(f"VIOLATION {violation}")
        self.world.violated(self, violation)
        self.end(f"violation: {violation.kind}")

    # -- what to send -------------------------------------------------------------------------------------

    def headers(self, **more: str | None) -> dict[str, str]:
        given = {name.replace("_", "-"): value for name, value in more.items() if value is not None}
        return {"authorization": self._authorization, **given}

    def body(self, key: str | None = None) -> bytes:
        """A POST that may begin a generation. One with a key is the same every time, as it has to be."""
        if key is None:
            self.posts += 1
            self.attempt = f"{self.name}/{self.posts}"
        else:
            self.attempt = key
        body = {"model": "m", "stream": True, "messages": [], "torture": self.spec.as_json()}
        return json.dumps({**body, "attempt": self.attempt, **({"key": key} if key else {})}).encode()

    def body_of_agent(self, turn: str) -> bytes:
        """The same request at every try, in another order."""
        self.attempt = turn
        body = {"model": "m", "stream": True, "messages": [turn], "torture": self.spec.as_json(), "attempt": turn}
        members = list(body.items())
        return json.dumps(dict(self.dice.sample(members, len(members)))).encode()

    @property
    def path(self) -> str:
        return PATHS[self.spec.api]

    def asks(self, number: int) -> None:
        self.at = number
        self.in_flight = False
        self._asked.add(number)
        self.visits += 1

    # -- one visit ----------------------------------------------------------------------------------------

    async def visit(
        self, method: str, target: str, headers: dict[str, str], body: bytes = b"", *, at: int | None = None
    ) -> Result:
        """One request, at any replica, and its answer to its end. Violations are told and end the client."""
        number = self.dice.randrange(len(self.world.fronts)) if at is None else at
        self.asks(number)
        asked = f"{method} {target.partition('?ticket')[0]}"
        asked += f" after {headers['last-event-id']}" if "last-event-id" in headers else ""
        self.note(f"replica {number}: {asked}")
        try:
            answer = await ask(self.world.fronts[number].port, method, target, headers, body, wait=HEAD_WAIT)
        except Unanswered as error:
            self.note(f"no answer: {error}")
            self.world.count("unanswered")
            return "unanswered"
        try:
            return await self._answered(answer, number, asked)
        except Violation as violation:
            self.violated(violation)
            return "over"
        finally:
            answer.close()

    async def _answered(self, answer: Answer, number: int, asked: str) -> Result:
        headers = answer.headers
        stream = headers.get("relay-stream-id")
        resumes = "after" in asked or asked.startswith("GET")
        if resumes and answer.status in (200, 204):
            self.world.count(f"resume {answer.status}")
        if answer.status == 200 and headers.get("content-type", "").startswith("text/event-stream"):
            if stream is None:
                raise Violation("answer", f"a stream without its id: {headers}")
            self.witness.answered(stream, resumable=headers.get("relay-resumable") == "true")
            self.ticket_url = headers.get("relay-stream-url", self.ticket_url)
            self.note(f"200 {stream} resumable={headers.get('relay-resumable')}")
            seen = self.world.seen(stream, self.spec, logged=self.witness.logged)
            began = self.world.now()
            try:
                return await self._read(answer, number)
            finally:
                seen.reading.append(((began, self.world.now()), number))
                if self.attempt.startswith("agent-") and not resumes:
                    seen.agents.append(((began, self.world.now()), self.name))
        if answer.status == 202 and stream is not None:
            self.witness.answered(stream, resumable=True)
            self.ticket_url = headers.get("relay-stream-url")
            self.world.seen(stream, self.spec, logged=True).detached = True
            self.note(f"202 {stream}")
            return "accepted"
        if answer.status == 204:
            self.note("204")
            self.witness.nothing_missing()
            return "nothing"
        return await self._refused(answer, number, asked)

    async def _refused(self, answer: Answer, number: int, asked: str) -> Result:
        body = await answer.read(HEAD_WAIT)
        if answer.ended != "clean":
            self.note(f"{answer.status}, and its body ended: {answer.ended}")
            return "unanswered"
        code = error_code(body)
        status = answer.status
        self.note(f"{status} {code}")
        self.world.count(f"refused {status} {code[:40]}")
        self.in_flight = status == 409
        if status == 503 or (self.in_flight and code == "idempotency_key_in_flight"):
            if "retry-after" not in answer.headers:
                raise Violation(
                    "no_retry_after", f"{status} {code} without Retry-After, from replica {number} to {asked}"
                )
            # Some clients do not wait for as long as they are asked to, and come while everybody else takes things up.
            patient = self.dice.random() < 0.5
            await self.pause(float(answer.headers["retry-after"]) if patient else self.dice.uniform(0.05, 0.5))
            return "again"
        if status == 429 and self.spec.ending == "refused" and "retry-after" in answer.headers:
            self.end("refused by the upstream")
            return "over"
        if status == 400 and code == "resume_not_supported" and not self.witness.logged:
            self.end("lost: not logged")
            return "over"
        await self.refused(number, status, code, asked)
        self.end(f"refused: {status} {code}")
        return "over"

    async def refused(self, number: int, status: int, code: str, asked: str) -> None:
        """A refusal for good, and what the log holds meanwhile."""
        stream, at = self.witness.stream, self.world.now()
        held = None if stream is None else await asyncio.to_thread(log_top, self.world.backend, stream)
        refusal = Refusal(at, self.name, stream, number, status, code, asked, self.witness.n, held)
        self.note(f"the log holds {held} events, the client has {self.witness.n}")
        self.world.evidence.refusals.append(refusal)

    async def _read(self, answer: Answer, number: int) -> Result:
        while True:
            events = await answer.events(SILENCE)
            if answer.ended is not None and not events:
                break
            for event in events:
                self.got(event)
                n = self.witness.n
                if self.leaves_after is not None and n >= self.leaves_after and self.witness.end is None:
                    self.end("left")
                    return "left"
                if self.hops and n >= self.hops[0]:
                    self.hops = tuple(hop for hop in self.hops if hop > n)
                    self.note("hangs up")
                    return "hop"
            if self.slow_at is not None and self.witness.n >= self.slow_at:
                self.slow_at = None
                self.note("reads nothing for a while")
                with self.not_wanting():
                    await asyncio.sleep(_SLOW)
        self.note(f"the connection ended: {answer.ended}, {answer.heartbeats} heartbeats")
        if answer.ended == "silent":
            since = self.world.at(answer.heard)
            wait = Wait(self.name, since, self.world.now(), frozenset((number,)), None, mute=True)
            self.world.evidence.waits.append(wait)
            return "cut"
        if answer.ended == "cut":
            self.world.count("cuts")
            return "cut"
        if answer.unfinished:
            raise Violation("truncation", f"a clean end inside {answer.unfinished[:80]!r}")
        self.witness.ended_cleanly()
        return "read"

    def got(self, event: Event) -> None:
        """One event has come. Raises Violation."""
        ended = self.witness.end
        n = self.witness.n
        try:
            self.witness.take(event)
        finally:
            self._satisfied()
        self.world.events += 1
        if self.witness.n > n:
            self._noted_first = self._noted_first or self.witness.n
            self._noted_last = self.witness.n
        else:
            self.note(f"{event.id}: {event.data[:120]!r}")
        if self.witness.end is not None and ended is None:
            self.note(f"the end: {self.witness.end}")
            assert self.witness.stream is not None
            seen = self.world.evidence.streams[self.witness.stream]
            seen.ends.append((self.world.now(), self.name, self.witness.end))

    # -- waiting ------------------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def not_wanting(self) -> _NotWanting:
        return _NotWanting(self)

    def check_waiting(self) -> None:
        """Called every moment: is there something to come for this client? What it waits for is what its upstream has
        sent, or the answer to its request."""
        if self.done is not None or self.away or not self._wants():
            self._satisfied()
        elif self.wanting_since is None:
            self.wanting_since = self.world.now()
            self._asked = {self.at}

    def _wants(self) -> bool:
        call = self.world.evidence.call(self.witness.stream)
        if call is None:
            calls = self.world.upstream.by_attempt.get(self.attempt)
            if not calls:
                return self.visits > 0
            call = calls[-1]
            if self.in_flight and call.ended is None:
                return False
        return call.sent > self.witness.n or call.ended is not None

    def _satisfied(self) -> None:
        since, self.wanting_since = self.wanting_since, None
        now = self.world.now()
        if since is not None and now - since > 0.5:
            call = self.world.evidence.call(self.witness.stream)
            wait = Wait(self.name, since, now, frozenset(self._asked), None if call is None else call.replica)
            self.world.evidence.waits.append(wait)


def error_code(body: bytes) -> str:
    """The code of a refusal, as every API of the relay has it."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"without a code: {body[:80]!r}"


class _NotWanting:
    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> None:
        self._client.away = True

    def __exit__(self, *_: object) -> None:
        self._client.away = False
