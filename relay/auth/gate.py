"""The gate: who asks, what they may ask for, and how often.

In `passthrough` mode whoever comes is let in, and is who their credential says: the upstream judges it. In `keys` mode
only the relay's own keys are good, they end here, and what goes upstream goes with the relay's credential. Then all
callers are one account to the upstream, so nothing is passed through by which one could see or change what is kept
there for another, unless the key's `paths` say so.

Rates and concurrency are counted on each replica by itself (each worker is one), in bounded memory.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from relay.auth import sources
from relay.auth.keyring import Key, Keyring
from relay.auth.owners import NOBODY, of_key
from relay.auth.rates import Buckets
from relay.config import LimitSettings, UpstreamSettings
from relay.config.units import Rate, parse_rate
from relay.protocol import credentials
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import BadRequest, InvalidApiKey, PathNotAllowed, TooManyRequests, UnsupportedMediaType
from relay.protocol.headers import Headers
from relay.upstream.routing import Route, route_model

# What an upstream answers from the request alone.
_STATELESS = frozenset(
    (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/moderations"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/responses/compact"),
        ("POST", "/v1/responses/input_tokens"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/models"),
    )
)
_MODELS = "/v1/models/"
# One plain segment; a `/` of a model's name is encoded in it.
_A_MODEL = re.compile(r"/v1/models/(?:[A-Za-z0-9._:@~+=-]|%2[Ff]|%3[Aa]|%40)+")
# What a body of the responses API can name that only the upstream which made it has.
_KEPT_UPSTREAM = ("previous_response_id", "conversation")


def takes_json(method: str, path: str) -> bool:
    """Does this endpoint take JSON and nothing else?"""
    return method == "POST" and (method, path) in _STATELESS


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `identity` is what the owner of streams is derived from, NOBODY where no credential was shown; `shown`
    is the credential; `key` is None in `passthrough` mode."""

    identity: bytes
    shown: bytes
    key: Key | None = None

    @property
    def can_come_back(self) -> bool:
        """Can who asks be known again, without a ticket?"""
        return self.identity != NOBODY

    def onward(self, headers: Headers) -> Headers:
        """The head as it may go upstream: without the relay's key, wherever a client has put it."""
        key = self.key
        if key is None:
            return headers
        return [item for item in headers if self.shown not in item[1]]

    @property
    def restricted(self) -> bool:
        """Only some models."""
        return self.key is not None and self.key.models != ("*",)

    @property
    def is_checked(self) -> bool:
        """What was checked has to be what goes upstream, so no object of its body has a member twice."""
        return self.key is not None

    def route(self, upstreams: list[UpstreamSettings], api: str | None, model: str, body: JsonObject) -> Route:
        """Where its request goes. Raises ModelNotFound."""
        self.check_models([model])
        return route_model(upstreams, api, model, bound=any(map(body.get, _KEPT_UPSTREAM)))

    def check_models(self, named: Sequence[str]) -> None:
        """Raises ModelNotFound, in the same words for a model that it may not ask for as for one that nobody serves: a
        key does not tell what others may use."""
        if self.key is not None and self.restricted:
            for model in named:
                if not self.key.may_ask_for(model):
                    route_model([], None, model)

    def check_unnamed(self, path: str) -> None:
        """A request in which no model was found to check. Raises BadRequest where only some may be asked for: upstream
        there may be a default, or a body that names one in another form."""
        if self.key is not None and self.restricted and not self.key.may_use(path):
            raise BadRequest("`model` is missing. Name the model as a string, in a JSON body.", code="missing_model")

    def check_unread(self, path: str) -> None:
        """A body that is not read as JSON. Raises UnsupportedMediaType: upstream it may be, and then names what nobody
        has checked."""
        if self.key is not None and not self.key.may_use(path):
            raise UnsupportedMediaType

    def check_path(self, method: str, path: str, target: str) -> None:
        """`target` is the path as it was sent, encoded. Raises PathNotAllowed, ModelNotFound."""
        key = self.key
        if key is None:
            return
        if "%" not in path:  # encoded twice, it may be another path to the upstream
            if (method, path) in _STATELESS or key.may_use(path):
                return
            if method == "GET" and _A_MODEL.fullmatch(target) and path.startswith(_MODELS):
                self.check_models([path.removeprefix(_MODELS)])
                return
        raise PathNotAllowed(
            f"This key may not use {method[:20]} {path[:200]}: upstream it would act for all keys of this relay. Ask "
            "the relay's operator to allow it with the key's `paths`."
        )


class Gate:
    """One per replica. `keyring` is None in `passthrough` mode; there `credential_headers` tell callers apart, too."""

    def __init__(
        self,
        limits: LimitSettings,
        keyring: Keyring | None,
        buckets: Buckets | None = None,
        credential_headers: Sequence[str] = (),
        applications: Sequence[UpstreamSettings] = (),
    ) -> None:
        self._sources = list(dict.fromkeys(tuple(upstream.owner) for upstream in applications if upstream.owner))
        self._keyring = keyring
        self._further = frozenset(name.lower().encode() for name in credential_headers)
        self._buckets = Buckets() if buckets is None else buckets
        self._busy: Counter[bytes] = Counter()
        self.unpaid: set[bytes] = set()
        """Whose body is being read on trust."""
        self._open = parse_rate(limits.open_rate) if limits.open_rate else None
        self._resume = parse_rate(limits.resume_rate) if limits.resume_rate else None
        self._replay = parse_rate(limits.replay_rate) if limits.replay_rate else None

    def caller(self, headers: Headers, query: str = "") -> Caller:
        """Raises InvalidApiKey."""
        if self._keyring is None:
            shown = credentials.shown(headers, self._further, query)
            return Caller(shown or NOBODY, shown)
        shown = credentials.shown(headers, any_name=False)
        key = self._keyring.find(shown)
        if key is None:
            raise InvalidApiKey
        return Caller(of_key(key.owner), shown, key)

    def caller_of(self, upstream: UpstreamSettings, headers: Headers, query: str) -> Caller:
        """Who asks an application. Raises InvalidApiKey."""
        if not upstream.owner:
            return self.caller(headers, query)
        return Caller(sources.identity(upstream.owner, headers), b"")

    def callers(self, headers: Headers, query: str) -> list[Caller]:
        """All that who asks for a stream may be: by a credential, and to each application. Raises InvalidApiKey where
        it is nothing of all that."""
        found = [Caller(sources.identity(each, headers), b"") for each in self._sources]
        found = [caller for caller in found if caller.can_come_back]
        try:
            own = self.caller(headers, query)
        except InvalidApiKey:
            if not found:
                raise
        else:
            if own.can_come_back or not found:
                found.insert(0, own)
        return found

    def acquire(self, caller: Caller) -> Slot:
        """Let one request go upstream; the slot is to be released when it is over. Raises TooManyRequests."""
        slot = Slot(self, caller)
        slot.pay()
        return slot

    def admit(self, caller: Caller, *, may_join: bool) -> Slot:
        """Let one request's body be read, and what it asks for go upstream. Raises TooManyRequests.

        Who `may_join` what is there, which costs nothing, is let in all the same: one body at a time, and without a
        place, for which it is to `pay` once it is known that it joins nothing.
        """
        slot = Slot(self, caller)
        try:
            slot.pay()
        except TooManyRequests:
            if not may_join or caller.identity in self.unpaid:
                raise
            slot.owe()
        return slot

    def _limits(self, caller: Caller) -> list[tuple[str, bytes, Rate | None]]:
        limits: list[tuple[str, bytes, Rate | None]] = []
        if self._open is not None:
            limits.append(("limits.open_rate", _bucket(b"o", caller.identity), self._open))
        if (key := caller.key) is not None:
            limits.append(("this key's `rate`", b"k" + key.digest[:16], key.rate))
        return limits

    def pay(self, caller: Caller) -> bytes | None:
        """Count one request; whose place it takes, None where places are not counted. Raises TooManyRequests."""
        key = caller.key
        counted = key is not None and key.concurrency is not None
        if key is not None and key.concurrency is not None and self._busy[key.digest] >= key.concurrency:
            raise TooManyRequests(
                f"This key has as many requests in progress as its `concurrency` allows ({key.concurrency}). Wait for "
                "one to end, or stop a stream.",
                headers={"retry-after": "1"},
            )
        if limits := self._limits(caller):
            self._wait_for(*limits)
        for _, name, rate in limits:
            if rate is not None:
                self._buckets.take(name, rate)
        if key is None or not counted:
            return None
        self._busy[key.digest] += 1
        return key.digest

    def refund(self, caller: Caller) -> None:
        for _, name, rate in self._limits(caller):
            if rate is not None:
                self._buckets.give_back(name, rate)

    def leave(self, digest: bytes) -> None:
        self._busy[digest] -= 1
        if not self._busy[digest]:
            del self._busy[digest]

    def charge_resume(self, identity: bytes) -> None:
        """Let one request ask for a stream that is there. Raises TooManyRequests."""
        if self._resume is not None:
            name = _bucket(b"r", identity)
            self._wait_for(("limits.resume_rate", name, self._resume))
            self._buckets.take(name, self._resume)

    def charge_replay(self, identity: bytes, events: int) -> None:
        """Let so many events be read once more, however many they are, if all before them are paid for. Raises
        TooManyRequests."""
        if self._replay is not None and events:
            name = _bucket(b"p", identity)
            self._wait_for(("limits.replay_rate", name, self._replay))
            self._buckets.take(name, self._replay, events)

    def _wait_for(self, *limits: tuple[str, bytes, Rate | None]) -> None:
        waits = [(self._buckets.wait(name, rate), what, rate) for what, name, rate in limits if rate is not None]
        longest, what, rate = max(waits, key=lambda wait: wait[0], default=(0.0, "", None))
        if longest > 0 and rate is not None:
            raise TooManyRequests(
                f"This is more than {what} allows ({rate.text}). Try again after Retry-After.",
                code="rate_limit_exceeded",
                headers={"retry-after": str(math.ceil(longest))},
            )


class Slot:
    """One request in progress."""

    __slots__ = ("_caller", "_digest", "_gate", "_owes", "_paid")

    def __init__(self, gate: Gate, caller: Caller, digest: bytes | None = None, *, paid: bool = False) -> None:
        self._gate = gate
        self._caller = caller
        self._paid = paid
        self._owes = False
        self._digest = digest

    @property
    def counted(self) -> bool:
        return self._digest is not None

    def pay(self) -> None:
        """Once or more often. Raises TooManyRequests."""
        if not self._paid:
            self._digest = self._gate.pay(self._caller)
            self._paid = True

    def owe(self) -> None:
        self._owes = True
        self._gate.unpaid.add(self._caller.identity)

    def body_read(self) -> None:
        """Another body may be read on trust."""
        if self._owes:
            self._owes = False
            self._gate.unpaid.discard(self._caller.identity)

    def refund(self) -> None:
        """Nothing went upstream for it, and that was not its sender's fault."""
        if self._paid:
            self._paid = False
            self._gate.refund(self._caller)
        self.release()

    def hand_over(self) -> Slot:
        """The request goes on without who has asked: its place is another's to release."""
        (digest, paid), self._digest, self._paid = (self._digest, self._paid), None, False
        return Slot(self._gate, self._caller, digest, paid=paid)

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Once or more often."""
        if self._owes:
            self.body_read()
        digest, self._digest = self._digest, None
        if digest is not None:
            self._gate.leave(digest)


def _bucket(kind: bytes, identity: bytes) -> bytes:
    """What is kept of a caller beside its count: of one length, whatever was sent, and no credential."""
    return kind + hashlib.sha256(identity).digest()[:16]
