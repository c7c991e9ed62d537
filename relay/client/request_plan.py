"""Which requests a transport covers, and what it sends for them. Works on the requests of either library.

A request to a server that has not proved to be a relay goes out as it came. Only from the first `Relay-Stream-Id` of
that address on (scheme, host, port and path in front of `/v1`) its streaming POSTs get an `Idempotency-Key`, unless
they have one, and may be repeated when they die before their answer begins. The same request again, from the SDK's own
retry, then has the same key and the rest of the same tries.
"""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from relay.client.events import ANY, KEY_IN_FLIGHT, MAX_REFUSAL_TIME, PATHS, asks_for_stream
from relay.client.policy import Policy, RetryBudget

Address = tuple[str, str, int | None, str]

# Nothing of the request has left: the SDK repeats these by itself, and nothing was paid for.
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError")
# What stands in front of a relay says so when the relay that it leads to has gone.
_GATEWAY = (502, 503, 504)
_BY_ID = re.compile(r"(.*)/streams/(st_[A-Za-z0-9_-]+)")
_RETRIEVE = re.compile(r"(.*)/v1/responses/[^/]+")
_MAX_LOST = 1000
# Seconds: a time-out of nothing at all would fail before it looks.
_MIN_TIMEOUT = 0.01
STOP_TIMEOUT = 5.0
"""Seconds that whoever closes a response waits for its generation's stop."""
_OF_A_BODY = (
    *("content-type", "content-length", "content-encoding", "transfer-encoding"),
    *("last-event-id", "idempotency-key", "prefer"),
)


class RequestPlan:
    """One streaming request: what to send for it, and what may be repeated."""

    def __init__(
        self,
        known: KnownRelays,
        request: Any,
        api: str,
        prefix: str,
        *,
        requested_event_id: str | None,
        first_number_known: bool = True,
    ) -> None:
        headers = request.headers
        url = request.url
        self.api = api
        self.address: Address = (url.scheme, url.host, url.port, prefix)
        self.requested_event_id = requested_event_id
        self.first_number_known = first_number_known
        self.budget = RetryBudget(known.policy)
        self._http = known.http
        self._known = known
        self._request = request
        self._policy = known.policy
        self._rest_of_path = url.raw_path[len(prefix.encode()) :]
        self._addresses = known.addresses(self.address)
        self._asked_timeout: dict[str, Any] = dict(request.extensions.get("timeout", {}))
        self._timeout: dict[str, Any] = {}
        self._heartbeat: float | None = None
        self._is_post = request.method == "POST"
        self._is_relay = known.is_known(self.address)
        self._repeatable = self._is_relay
        self._lost = False
        # A key of the SDK's user does what ours would; a resume generates nothing.
        self._needs_key = self._is_post and "idempotency-key" not in headers
        self._own_key: str | None = None
        if self._is_relay and self._needs_key and requested_event_id is None:
            lost = known.take_lost(self._digest())
            self._own_key, self.budget = lost or (_new_key(), self.budget)
            self._lost = lost is not None

    def initial_request(self, fresh: Mapping[str, str]) -> Any:
        """The request to begin with; the headers `fresh` take the place of its own."""
        added = dict(fresh)
        if self._own_key is not None:
            added["Idempotency-Key"] = self._own_key
        if self._is_relay:
            added["Accept-Encoding"] = "identity"
        return self._copy(added, dict(self._asked_timeout))

    def request_without_key(self, fresh: Mapping[str, str]) -> Any:
        """The request as it came, for a relay that cannot honour a key; it may not be repeated after that."""
        self._own_key = None
        self._repeatable = False
        return self._copy(dict(fresh), dict(self._asked_timeout))

    def resume_request(self, stream: str, last_event_id: str | None, fresh: Mapping[str, str]) -> Any:
        """The request that goes on after an event.

        Args:
            stream: the stream's id.
            last_event_id: goes into `Last-Event-ID` (WHATWG HTML, section 9.2.4); None: as it was at first.
            fresh: headers that take the place of the request's own.
        """
        added = {**fresh, "Accept-Encoding": "identity"}
        rest_of_path = self._rest_of_path
        if last_event_id is not None:
            added["Last-Event-ID"] = last_event_id
            if not self._is_post:
                rest_of_path = f"/streams/{stream}".encode()
        if self._needs_key:
            # Where something on the way drops Last-Event-ID, the key joins what it began, once for all resumes.
            self._own_key = self._own_key or _new_key()
            added["Idempotency-Key"] = self._own_key
        return self._copy(added, {**self._asked_timeout, "read": self.read_timeout()}, rest_of_path)

    def stop_request(self, stream: str, fresh: Mapping[str, str]) -> Any:
        """The request that ends the generation, with the credentials of the stream's own; it takes `STOP_TIMEOUT`
        seconds for each of its steps."""
        scheme, host, port, prefix = self._addresses[0]
        query = self._rest_of_path.partition(b"?")[2]
        path = f"{prefix}/streams/{stream}".encode() + (b"?" + query if query else b"")
        url = self._request.url.copy_with(scheme=scheme, host=host, port=port, raw_path=path)
        headers = self._http.Headers(self._request.headers.raw)
        headers.update(fresh)
        for name in _OF_A_BODY:
            headers.pop(name, None)
        headers["Host"] = url.netloc.decode("ascii")
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), STOP_TIMEOUT)
        extensions = {**self._request.extensions, "timeout": timeout}
        return self._http.Request("DELETE", url, headers=headers, extensions=extensions)

    def on_stream_confirmed(self, heartbeat: float | None) -> None:
        """The response is a relay's stream, so silence is judged by its heartbeat from here on.

        Args:
            heartbeat: seconds between the relay's signs of life, None where it announces none.
        """
        self._heartbeat = heartbeat or self._heartbeat
        self._timeout["read"] = self.read_timeout()

    def limit_refusal_time(self) -> None:
        """Read a refusal's body for at most `MAX_REFUSAL_TIME` seconds."""
        read = self._timeout.get("read")
        self._timeout["read"] = MAX_REFUSAL_TIME if read is None else min(read, MAX_REFUSAL_TIME)

    def read_timeout(self) -> float | None:
        """Seconds without a byte after which a connection to this stream is dead, None for never."""
        least = 0.0 if self._heartbeat is None else 2 * self._heartbeat + 1
        limits = (self._asked_timeout.get("read"), self._policy.silence)
        found = [max(limit, least) for limit in limits if limit is not None]
        if (remaining := self.budget.remaining) is not None:
            found.append(max(remaining, _MIN_TIMEOUT))
        return min(found, default=None)

    def may_repeat_after_error(self, error: Exception) -> bool:
        """May the request be sent again after it died of this before its answer began?"""
        never_sent = type(error).__name__ in _NEVER_SENT
        self._lost = self._lost or not never_sent
        if isinstance(error, self._http.TimeoutException) and not never_sent:
            return False  # the caller's own, and they know why
        if len(self._addresses) > 1:
            self.next_address()
            return never_sent or self._repeatable
        return self._lost and self._repeatable

    def may_repeat_after_refusal(self, status: int, code: str | None) -> bool:
        """A gateway's refusal after a loss, or a key that cannot be joined yet: the SDK's own retry would have another
        key, and may pay twice."""
        if self._repeatable and self.requested_event_id is None and status == 409 and code == KEY_IN_FLIGHT:
            return True
        if not (self._lost and self._repeatable and status in _GATEWAY):
            return False
        self.next_address()
        return True

    def needs_error_code(self, status: int) -> bool:
        """Does it matter which code this refusal has?"""
        keyless = status == 503 and self._own_key is not None
        return keyless or (status == 409 and self._repeatable and self._is_post)

    def may_drop_key(self, status: int, code: str | None) -> bool:
        """A relay whose store is away streams without a log, but it cannot honour a key."""
        return status == 503 and code == "store_unavailable" and self._own_key is not None and not self._lost

    def remember_lost(self) -> None:
        """What was lost is not found again: the same request, while the tries' time lasts, is the SDK's retry of it."""
        if self._lost and self._own_key is not None:
            self._known.remember_lost(self._digest(), self._own_key, self.budget)

    def next_address(self) -> None:
        """What comes next goes to the next base URL, where there are several."""
        self._addresses.append(self._addresses.pop(0))

    def redirect(self, request: Any, response: Any) -> Any | None:
        """The request that a 307 or 308 within one origin asks for (RFC 9110, sections 15.4.8 and 15.4.9).

        None for any other response, also for a redirect to another origin, which would get the credential.
        """
        location = response.headers.get("location")
        if response.status_code not in (307, 308) or location is None:
            return None
        try:
            url = request.url.join(location)
        except self._http.InvalidURL:
            return None
        here = request.url
        if (url.scheme, url.host, url.port) != (here.scheme, here.host, here.port):
            return None
        return self._http.Request(
            request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
        )

    def _copy(self, added: dict[str, str], timeout: dict[str, Any], rest_of_path: bytes | None = None) -> Any:
        request = self._request
        headers = self._http.Headers(request.headers.raw)
        headers.update(added)
        url = request.url
        address = self._addresses[0]
        if address != self.address or rest_of_path is not None:
            scheme, host, port, prefix = address
            raw_path = prefix.encode() + (self._rest_of_path if rest_of_path is None else rest_of_path)
            url = url.copy_with(scheme=scheme, host=host, port=port, raw_path=raw_path)
            headers["Host"] = url.netloc.decode("ascii")
        self._timeout = timeout
        extensions = {**request.extensions, "timeout": timeout}
        # `stream=`, because `content=` would add headers of its own.
        return self._http.Request(request.method, url, headers=headers, stream=request.stream, extensions=extensions)

    def _digest(self) -> bytes:
        request = self._request
        credentials = [request.headers.get(name, "") for name in ("authorization", "x-api-key")]
        known = "\0".join([str(request.url), *credentials]).encode()
        return hashlib.sha256(known + b"\0" + request.content).digest()


class KnownRelays:
    """What a transport knows of the servers it has talked to. Threads may share it."""

    def __init__(self, http: Any, policy: Policy, base_urls: Iterable[str] = ()) -> None:
        """Args:
            http: the library's module.
            policy: of the transport.
            base_urls: relays by the user's word, with the path in front of `/v1`.

        Raises ValueError for a base URL that is none.
        """
        self.http = http
        self.policy = policy
        self._bases = [self._address(base) for base in base_urls]
        self._relays: set[Address] = set(self._bases)
        self._lost: dict[bytes, list[tuple[str, RetryBudget, float]]] = {}
        self._lock = threading.Lock()

    def plan(self, request: Any) -> RequestPlan | None:
        """The plan for a request, None for one that is none of this transport's business."""
        path: str = request.url.path
        event_id: str | None = request.headers.get("last-event-id")
        if request.method == "GET":
            return self._plan_get(request, path, event_id)
        suffix = next((known for known in PATHS if path.endswith(known)), None)
        if request.method != "POST" or suffix is None:
            return None
        try:
            body: bytes = request.content
        except self.http.RequestNotRead:
            return None  # a body that is made while it is sent cannot be sent twice
        if not asks_for_stream(body):
            return None
        return RequestPlan(self, request, PATHS[suffix], path.removesuffix(suffix), requested_event_id=event_id)

    def _plan_get(self, request: Any, path: str, event_id: str | None) -> RequestPlan | None:
        query = parse_qs(request.url.query.decode("ascii", "replace"))
        if found := _BY_ID.fullmatch(path):
            event_id = event_id or query.get("last_event_id", [None])[-1]
            return RequestPlan(self, request, ANY, found[1], requested_event_id=event_id)
        found = _RETRIEVE.fullmatch(path)
        if found is None or query.get("stream", [""])[-1].lower() != "true":
            return None
        from_start = "starting_after" not in query
        return RequestPlan(self, request, "responses", found[1], requested_event_id=None, first_number_known=from_start)

    def is_known(self, address: Address) -> bool:
        """Is this the address of a relay, by the policy, by the user's word, or by what it has answered?"""
        return self.policy.assume_relay or address in self._relays

    def add(self, plan: RequestPlan) -> None:
        """The address of this plan has answered with a resumable stream."""
        self._relays.add(plan.address)

    def addresses(self, address: Address) -> list[Address]:
        """The addresses to try in turn, this one first."""
        return [address, *(base for base in self._bases if base != address)]

    def remember_lost(self, digest: bytes, key: str, budget: RetryBudget) -> None:
        """Keep the key and the rest of the tries of a lost request, for `max_elapsed` seconds."""
        now = self.policy.clock()
        with self._lock:
            kept = {one: [lost for lost in many if lost[2] > now] for one, many in self._lost.items()}
            self._lost = {one: many for one, many in list(kept.items())[-_MAX_LOST:] if many}
            self._lost.setdefault(digest, []).append((key, budget, now + self.policy.max_elapsed))

    def take_lost(self, digest: bytes) -> tuple[str, RetryBudget] | None:
        """The key and the rest of the tries of the same request, where it was lost a moment ago."""
        now = self.policy.clock()
        with self._lock:
            for lost in self._lost.get(digest, []):
                if lost[2] > now:
                    self._lost[digest].remove(lost)
                    return lost[0], lost[1]
        return None

    def _address(self, base: str) -> Address:
        url = self.http.URL(base)
        if url.scheme not in ("http", "https") or not url.host or url.query:
            raise ValueError(f"{base!r} is no base URL of a relay, such as https://relay.example.")
        prefix = url.path.rstrip("/").removesuffix("/v1")
        return (url.scheme, url.host, url.port, prefix)


def _new_key() -> str:
    return f"relay-client-{uuid.uuid4()}"
