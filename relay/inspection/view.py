"""The streams in a store as an operator looks at them: whose they are, which they are, and what happened to each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from relay.auth.owners import Owners, of_key
from relay.config import Settings
from relay.encryption import Binding
from relay.protocol.errors import EncryptionKeyMissing, StoreUnavailable
from relay.protocol.outcomes import Cause, Ending
from relay.store.link import StoreDown
from relay.store.log import Log, Page
from relay.store.pubsub import ShardSubscriptions
from relay.store.stories import STOP_BY_OPERATOR, Sight, Stories

# What the store is asked for together: little enough that nothing of a relay's waits for it.
_AT_ONCE = 200
_STOP_TRIES = 3
_STOP_TIMEOUT = 2.0
# Where no message says that there is more.
_LOOK_AGAIN = 2.0
_SHORTEST_OWNER = 6


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which streams: of an owner (a name, or the begin of what stands for a credential), of models and upstreams
    (patterns), in a state (`live`, `ended`, `failed`, `all`, or an outcome); ended since so many seconds; so many."""

    owner: str = ""
    model: str = "*"
    upstream: str = "*"
    state: str = "all"
    since: float = 0.0
    limit: int = 100


class View:
    """On a log. `names` are the owners of the relay's keys, by what stands for them in the log."""

    def __init__(self, log: Log, names: dict[str, str]) -> None:
        self._log = log
        self._stories = Stories(log.commands, log.names, log.settings)
        self._names = names

    @classmethod
    async def open(cls, log: Log, settings: Settings) -> View:
        """Raises StoreUnavailable."""
        try:
            await log.topology.refresh()
        except StoreDown as error:
            raise StoreUnavailable() from error
        return cls(log, await _names(log, settings))

    def owner(self, sight: Sight) -> str:
        """As the replicas' logs name it."""
        return self._names.get(sight.owner, sight.owner[:12])

    # -- which there are ------------------------------------------------------------------------------------

    async def streams(self, wanted: Wanted) -> list[Sight]:
        """Those that run first, the latest first; then those that have ended, the latest first."""
        now = await self._stories.now()
        replicas = list(await self._stories.replicas())
        running = await self._look(await self._stories.running(replicas), replicas, now)
        running.sort(key=lambda sight: (bool(sight.outcome), -(sight.ended or sight.born)))
        found = [sight for sight in running if self._is_wanted(sight, wanted, now)]
        if wanted.state != "live":
            known = {sight.stream for sight in running}
            recent = [stream for stream in await self._stories.recent(now - wanted.since) if stream not in known]
            for first in range(0, len(recent), _AT_ONCE):
                if len(found) >= wanted.limit:
                    break
                some = await self._look(recent[first : first + _AT_ONCE], replicas, now)
                found += [sight for sight in some if self._is_wanted(sight, wanted, now)]
        return found[: wanted.limit]

    async def live(self, wanted: Wanted) -> list[Sight]:
        """Those that run, in any order."""
        now = await self._stories.now()
        replicas = list(await self._stories.replicas())
        running = await self._look(await self._stories.running(replicas), replicas, now)
        return [sight for sight in running if not sight.outcome and self._is_wanted(sight, wanted, now)]

    async def find(self, stream: str) -> Sight | None:
        """One stream, None where the store does not know it."""
        now = await self._stories.now()
        found = await self._stories.look([stream], list(await self._stories.replicas()), now)
        return found[0] if found else None

    async def _look(self, streams: list[str], replicas: list[str], now: float) -> list[Sight]:
        found: list[Sight] = []
        for first in range(0, len(streams), _AT_ONCE):
            found += await self._stories.look(streams[first : first + _AT_ONCE], replicas, now)
        return found

    def _is_wanted(self, sight: Sight, wanted: Wanted, now: float) -> bool:
        mine = not wanted.owner or self.owner(sight) == wanted.owner
        if not mine and len(wanted.owner) >= _SHORTEST_OWNER:
            mine = sight.owner.startswith(wanted.owner)
        if wanted.state == "live":
            stands = not sight.outcome
        elif wanted.state == "ended":
            stands = bool(sight.outcome)
        elif wanted.state == "failed":
            stands = sight.outcome in list(Cause)
        else:
            stands = wanted.state in ("all", sight.state)
        return (
            mine
            and stands
            and (not sight.outcome or sight.ended >= now - wanted.since)
            and (fnmatchcase(sight.model, wanted.model) or fnmatchcase(sight.pattern, wanted.model))
            and fnmatchcase(sight.upstream, wanted.upstream)
        )

    # -- one stream -----------------------------------------------------------------------------------------

    async def story(self, sight: Sight) -> list[dict[str, Any]]:
        """What has happened to it, its begin and end among it: `at`, `what`, and more."""
        told = await self._stories.story(sight.stream)
        begun = {"at": sight.born, "what": "begun", "on": sight.replica, "request": sight.request}
        took_over = next((line.get("from") for line in told if line["what"] == "taken over" and line.get("from")), None)
        if took_over:
            begun["on"] = took_over
        lines = [{name: value for name, value in begun.items() if value}, *told]
        if sight.outcome:
            for line in lines:  # told by a replica a moment later than it was: no end is before its cause
                if line["what"] == "stop asked for" and sight.outcome == Ending.STOPPED:
                    line["at"] = min(line["at"], sight.ended)
            lines.append({"at": sight.ended, "what": "ended", "outcome": sight.outcome, "events": sight.events})
        return sorted(lines, key=lambda line: float(line["at"]))

    async def pages(self, sight: Sight, after: int) -> AsyncIterator[Page]:
        """Its events after one, as they come, to its end. Raises EncryptionKeyMissing, Tampered."""
        binding = Binding(sight.owner, sight.api)
        log = self._log.names.log(sight.stream)
        more = asyncio.Event()
        subscriptions = ShardSubscriptions(self._log.topology, lambda *_: more.set())
        try:
            await subscriptions.subscribe(log)
            while True:
                more.clear()
                page = await self._log.read(sight.stream, after, binding, shared=False)
                yield page
                after += len(page.frames)
                if page.end is not None or page.gap:
                    return
                if not page.full:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN):
                            await more.wait()
        finally:
            await subscriptions.close()

    async def stop(self, sight: Sight) -> Sight | None:
        """Have its replica stop it, in the operator's name. What it is then: without an outcome where nobody has heard;
        None where the store does not know it any more."""
        log = self._log.names.log(sight.stream)
        ended = asyncio.Event()
        subscriptions = ShardSubscriptions(self._log.topology, lambda *_: ended.set())
        found: Sight | None = sight
        try:
            await subscriptions.subscribe(log)
            # A replica of an earlier version does not know the first; it is asked as another replica would ask.
            for verb in (STOP_BY_OPERATOR,) * (_STOP_TRIES - 1) + ("stop",):
                await self._log.directory.tell(sight.replica, verb, sight.stream)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_TIMEOUT):
                        while (found := await self.find(sight.stream)) is not None and not found.outcome:
                            ended.clear()
                            await ended.wait()
                if found is None or found.outcome:
                    break
        finally:
            await subscriptions.close()
        return found


async def _names(log: Log, settings: Settings) -> dict[str, str]:
    """The owners of the relay's keys by what stands for them; none where the secret cannot be had."""
    if settings.auth.mode != "keys":
        return {}
    try:
        owners = Owners(log.directory, settings.auth.secret() or await log.directory.known_secret())
    except (LookupError, EncryptionKeyMissing):
        return {}
    return {owners.owner(of_key(key.owner)): key.owner for key in settings.auth.all_keys()}
