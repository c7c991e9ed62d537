"""A store and the registries of three replicas in this process, with a client and another reader: what a replay of the
model's traces makes its moves with.

Two registries share the store. What they send there waits until the trace has a move for it; then it is executed by the
real scripts, and its reply is delivered, held or lost as the move says. The third one ends streams whose lease lapsed.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from relay.config import Settings
from relay.metrics import Metrics
from relay.protocol.apis import DIALECTS
from relay.protocol.ends import State as Stage
from relay.protocol.errors import PositionUnknown, StoreBehind, StoreUnavailable, StreamNotFound
from relay.protocol.ids import EventId, new_stream_id
from relay.protocol.outcomes import Cause, Ending
from relay.store import scripts
from relay.store import topology as store_topology
from relay.store.log import Log
from relay.streams import tail as tail_module
from relay.streams.account import Request
from relay.streams.ingest import UpstreamIngest
from relay.streams.producer import Producer
from relay.streams.reader import Reader
from relay.streams.registry import Registry
from relay.upstream.answer_headers import AnswerHeaders
from relay.upstream.client import Body, Response
from relay.upstream.decoding import Sink
from relay.upstream.routing import route_model
from tests.model.simulated import Node, Pending, Server, Topology
from tests.model.state import COMPLETED, FORCED, TOLD, Rules, State
from tests.model.virtual import VirtualLoop
from tests.support.entries import in_full

OUTCOMES = {COMPLETED: Ending.COMPLETED.value, TOLD: Ending.STOPPED.value, FORCED: Cause.PRODUCER_LOST.value}
CODES = {scripts.OK: "OK", scripts.MISMATCH: "MISMATCH", scripts.FENCED: "FENCED", scripts.GONE: "GONE"}
OWNER = "owner"
# No lease lapses and nothing is checked by itself: the trace says when.
LEASE = 1e6
SETTINGS = Settings.model_validate(
    {
        "upstreams": [{"name": "u", "base_url": "http://127.0.0.1:9"}],
        "streams": {
            "lease": LEASE,
            "abandon_after": "never",
            "max_duration": 1e6,
            "upstream_idle_timeout": 1e6,
            "upstream_stall_timeout": 1e6,
        },
    }
)
ANSWERS: dict[type[Exception], str] = {
    StreamNotFound: "404",
    PositionUnknown: "410",
    StoreBehind: "503",
    StoreUnavailable: "503",
}


class UpstreamBody(Body):
    """An upstream's answer that arrives when the trace says so."""

    def __init__(self) -> None:
        self.sink: Sink | None = None

    def push_to(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def aclose(self) -> None: ...


def _event(n: int, rules: Rules) -> bytes:
    """Event n of an upstream. The last one says that it is, or that the end of the body may be the stream's."""
    if n == rules.events and rules.terminal:
        return b"data: [DONE]\n\n"
    reason = b'"stop"' if n == rules.events else b"null"
    return b'data: {"choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":%b}]}\n\n' % (n, reason)


def _number(frame: bytes, rules: Rules) -> int | None:
    """Which of the upstream's events a frame is, None where it is the relay's own."""
    if (text := re.search(rb'"content":"(\d+)"', frame)) is not None:
        return int(text[1])
    return rules.events if rules.terminal and re.search(rb"^id: \S+\d\n(retry: \d+\n)?data: \[DONE\]", frame) else None


class Replica:
    """A registry with a node of its own."""

    def __init__(self, server: Server, metrics: Metrics, held: bool = True) -> None:
        self.node = Node(server) if held else Node(server, frozenset())
        self.topology = Topology(self.node)
        self.log = Log(cast(store_topology.Topology, self.topology), SETTINGS.streams, SETTINGS.store)
        self.registry = Registry(SETTINGS, self.log, metrics)
        self.subscriptions = server.subscriptions[-1]

    def take_read(self, after: int) -> Pending | None:
        """The read of a page after a position that waits."""
        return self.node.take("read", lambda pending: int(pending.command[5]) == after)


class Connection:
    """The client's, or another reader's."""

    def __init__(self) -> None:
        self.attach: asyncio.Task[Any] | None = None
        self.reader: Reader | None = None
        self.replica: Replica | None = None
        self.look: Pending | None = None

    def close(self) -> None:
        if self.attach is not None and not self.attach.done():
            self.attach.cancel()
        if self.reader is not None:
            self.reader.close()
        self.attach = self.reader = self.replica = self.look = None


class Mismatch(AssertionError):
    """The code has done something else than the model."""


class NotReplayable(Exception):
    """The code shares one read where the model has two, which can then not be told different things; or what it has
    sent cannot have waited for as long as the model's trace lasts."""


class Harness:
    """One run. `compare` says what is different from a state of the model."""

    def __init__(self, loop: VirtualLoop, metrics: Metrics, rules: Rules) -> None:
        self._loop = loop
        self._rules = rules
        self.server = Server()
        self.a, self.b, self.c = (Replica(self.server, metrics, held) for held in (True, True, False))
        # B leaves it to the third one to end streams: there it is a move of its own.
        self.b.node.query.up_since = None
        self._stream = new_stream_id()
        self._names = self.a.log.names
        self._body = UpstreamBody()
        self._producer: Producer | None = None
        self._sent = self._unsent = 0
        self._ends = False
        self._late: Pending | None = None
        self._page: Pending | None = None
        self._client, self._other = Connection(), Connection()
        self._seen = 0
        self._last: tuple[int, bool] = (0, False)
        self._answer = ""  # what the last resume was answered
        self._move = ""
        self._paused = False

    @property
    def producer(self) -> Producer:
        assert self._producer is not None
        return self._producer

    async def begin(self, with_client: bool, with_other: bool) -> None:
        """The stream is made on A."""

        async def call(_: object) -> Response:
            return Response(200, AnswerHeaders([(b"content-type", b"text/event-stream")]), self._body)

        route = route_model(SETTINGS.upstreams, "chat", "m")
        request = Request("req_1", self._loop.time(), "m", None)
        self._producer = self.a.registry.begin(
            self._stream, DIALECTS["chat"], route, owner=OWNER, request=request, hide_usage=False, call=call
        )
        making = asyncio.ensure_future(self._producer.ensure_created())  # its client's patience is over
        await self._release(self.a.node, "create")
        await making
        ingest = self._body.sink
        assert isinstance(ingest, UpstreamIngest)
        ingest._state = Stage.BEGUN  # the model's only event may be the last one, and [DONE] alone is no answer
        if with_client:
            self._client.reader = self.a.registry.lookup.first_reader(self.producer)
            self._client.replica = self.a
        if with_other:
            await self._other_comes()
            await self._subscribe()
            await self._take_page()

    async def end(self) -> None:
        """Let go of everything. What is cancelled once may still want to write its end."""
        for replica in (self.a, self.b, self.c):
            replica.node.up = replica.node.dead = True  # whatever is sent waits for ever
        while tasks := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await self._loop.settle()

    # -- what a move needs ------------------------------------------------------------------------------------

    async def _release(self, node: Node, kind: str) -> Any:
        """Have a command executed and answered."""
        await self._loop.settle()
        pending = node.take(kind)
        if pending is None:
            raise Mismatch(f"nothing waits to {kind}: {[p.kind for p in node.pending]}")
        reply = pending.deliver()
        await self._loop.settle()
        return reply

    def _arrive(self) -> None:
        """What the upstream has sent reaches the producer: the model's appends hold all of it."""
        sink = self._body.sink
        if sink is None or self._paused or self.a.node.dead:
            return
        while self._unsent:
            self._sent, self._unsent = self._sent + 1, self._unsent - 1
            sink.data_received(_event(self._sent, self._rules))
        if self._ends:
            self._ends = False
            sink.eof_received(None)

    async def _append(self) -> Pending:
        """The append that waits, of all that there is."""
        self._arrive()
        await self._loop.settle()
        for pause in (0.0, 0.6):
            if pause:  # it tries again in a moment
                await self._loop.advance(pause)
            while (pending := self.a.node.take("append")) is not None:
                if self._is_whole(pending):
                    return pending
                pending.fail()
                await self._loop.settle()
        raise Mismatch("nothing waits to be appended")

    def _is_whole(self, pending: Pending) -> bool:
        _, expected, outcome, _, count = pending.command[7:12]
        writer = self.producer.writer
        ends = as_text(outcome) == writer.outcome
        return int(expected) + int(count) - bool(outcome) == writer.last and ends

    async def _read(self) -> bytes | None:
        """What the client's connection gives it next. Raises Lost, StoreUnavailable."""
        reader, replica = self._client.reader, self._client.replica
        assert reader is not None
        assert replica is not None
        task = asyncio.ensure_future(reader.read())
        await self._loop.settle()
        if not task.done():
            self._check_own_read(replica, reader.cursor)
        while not task.done() and (read := replica.take_read(reader.cursor)) is not None:
            read.deliver()
            await self._loop.settle()
        if not task.done():
            task.cancel()
            await self._loop.settle()
            raise Mismatch("the client waits")
        return task.result()

    def _check_own_read(self, replica: Replica, after: int) -> None:
        feed = self._feed
        if replica is self.b and feed is not None and feed.live and feed.fetching and feed.top == after:
            raise NotReplayable

    def _take(self, data: bytes, most: int | None = None) -> None:
        """The client reads frames: events are contiguous, and each has its id."""
        for frame in data.split(b"\n\n")[:-1][:most]:
            found = re.search(rb"^id: (\S+)\.(\d+)(e?)$", frame, re.M)
            if found is not None:
                if found[1].decode() != self._stream:
                    raise Mismatch(f"an id of another stream: {found[0]!r}")
                self._last = (int(found[2]), bool(found[3]))
            n = _number(frame, self._rules)
            if n is not None:
                self._check(("event", n), ("event", self._seen + 1))
                self._seen = n

    @property
    def _feed(self) -> tail_module.TailFeed | None:
        return self.b.registry._tail._feeds.get(self._stream)

    async def _subscribe(self) -> None:
        self.b.subscriptions.confirm(self._names.log(self._stream))
        await self._loop.settle()
        feed = self._feed
        assert feed is not None
        pages = [] if self._page is None else [self._page]  # of a tail that is no more: nobody may take it for his
        self._page = self.b.take_read(feed.top)
        if self._page is None:
            raise Mismatch("the tail does not read after it has subscribed")
        self._page.execute()
        for page in pages:
            page.deliver()

    async def _take_page(self) -> None:
        assert self._page is not None
        self._page.deliver()
        self._page = None
        await self._loop.settle()

    async def _other_comes(self) -> None:
        feed = self._feed
        top = int(self._edit("HGET", self._names.meta(self._stream), "top"))
        n = feed.base if feed is not None and feed.live else top
        self._other.close()
        self._other.attach = asyncio.ensure_future(self.b.registry.lookup.attach(EventId(self._stream, n), OWNER, None))
        await self._release(self.b.node, "status")
        while (pending := self.b.node.take("status")) is not None:
            pending.deliver()
            await self._loop.settle()

    def _edit(self, *command: Any) -> Any:
        return self.server.client.execute_command(*command)

    # -- what there is -------------------------------------------------------------------------------------------

    @staticmethod
    def _check(found: object, wanted: object) -> None:
        if found != wanted:
            raise Mismatch(f"the code: {found!r}, the model: {wanted!r}")

    def compare(self, s: State) -> None:
        """The log, the producer, B's tail and the client."""
        self._check(self._log(), (s.log, s.end, s.fenced))
        if s.process != "dead":
            writer = self.producer.writer
            self._check(("state", writer.state), ("state", s.mode))
            if s.mode in ("writing", "ahead"):
                self._check(("shown", writer.feed.top), ("shown", s.shown))
        feed, real = s.feed, self._feed
        if feed is not None:
            assert real is not None
            self._check(
                ("feed", real.top, real.end is not None, real.closed), ("feed", feed.top, bool(feed.end), feed.closed)
            )
        elif real is not None and real.live:
            raise Mismatch("a feed that nobody reads")
        self._check(("seen", self._seen, self._last), ("seen", s.seen, (s.last, s.last_end)))
        connected = self._client.reader is not None or self._client.attach is not None
        self._check(("connected", connected), ("connected", s.at in ("A", "B", "log", "looked", "opening")))

    def _log(self) -> tuple[tuple[int, ...] | None, str, bool]:
        top, outcome, fence = self._edit("HMGET", self._names.meta(self._stream), "top", "end", "fence")
        if top is None:
            return None, "", False
        entries = self._edit("XRANGE", self._names.log(self._stream), "-", "+")
        contents = (content for _, (field, content) in entries if field == b"f")
        events = [_number(frame, self._rules) for frame in in_full(self._stream, contents)]
        marks = [as_text(content).partition("\n")[0] for _, (field, content) in entries if field == b"end"]
        self._check(marks, [] if outcome is None else [as_text(outcome)])
        self._check(int(top), len(events))
        end = next((name for name, known in OUTCOMES.items() if known == marks[0]), "") if marks else ""
        return cast(tuple[int, ...], tuple(events)), end, bool(fence != b"1")


def as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
