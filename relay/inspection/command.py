"""What `relay streams ls | show | tail | stop | top` do; their flags are in `relay.inspection.arguments`."""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from relay.config import Settings, parse_duration
from relay.encryption import Tampered
from relay.inspection import text
from relay.inspection.view import View, Wanted
from relay.protocol import sse
from relay.protocol.end_mark import sent_by_relay
from relay.protocol.errors import EncryptionKeyMissing, StoreUnavailable
from relay.protocol.ids import is_logged, is_stream_id, parse_event_id
from relay.store.reaching import reach
from relay.store.stories import Sight

_CLEAR = "\x1b[H\x1b[J"
# One stream and look costs the store 4 to 5 µs: so many streams a second are a hundredth of its core.
_SECONDS_PER_STREAM = 1 / 2000
_LEAST = 0.1


async def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """The exit status: 0, or 1 where there is no such stream, no store, or no key for what is encrypted."""
    wanted = getattr(arguments, "id", None)
    if wanted is not None and (refusal := _refusal(wanted)):
        return _failed(refusal)
    try:
        async with reach(settings) as log:
            view = await View.open(log, settings)
            return await _ACTIONS[arguments.action](view, arguments)
    except StoreUnavailable as error:
        why = error.__cause__ or error
        return _failed(
            f"the store cannot be reached ({why}); give the settings of the relays (--config, the environment, "
            "or --store and --data-dir), and see that one runs where the store is embedded"
        )
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0


def _refusal(given: str) -> str:
    stream = _stream(given)
    if not is_stream_id(stream):
        shown = text.printable(given)
        return f"{shown!r} is no stream's id; use the value of Relay-Stream-Id, or an id from `relay streams ls`"
    if not is_logged(stream):
        return f"{stream} was relayed without a log, as its id says; look for it in the replicas' own logs"
    return ""


def _named(given: str) -> str:
    """Of an address (`Location`, `Relay-Stream-Url`) the id in it."""
    return urlsplit(given).path.rpartition("/streams/")[2] if "/streams/" in given else given


def _stream(given: str) -> str:
    given = _named(given)
    position = parse_event_id(given)
    return given if position is None else position.stream


def _failed(message: str) -> int:
    print(f"relay: {message}", file=sys.stderr)
    return 1


def _print_json(value: Any) -> None:
    print(orjson.dumps(value).decode(), flush=True)


# -- several streams ----------------------------------------------------------------------------------------------


def _wanted(arguments: argparse.Namespace, **more: Any) -> Wanted:
    return Wanted(owner=arguments.owner, model=arguments.model, upstream=arguments.to, **more)


async def _ls(view: View, arguments: argparse.Namespace) -> int:
    try:
        since = parse_duration(arguments.since)
    except ValueError as error:
        return _failed(f"--since: {error}")
    wanted = _wanted(arguments, state=arguments.state, since=since, limit=max(arguments.limit, 1))
    found = await view.streams(wanted)
    if arguments.json:
        for sight in found:
            _print_json(text.as_json(view, sight))
    else:
        print("\n".join(text.table(view, found)))
    return 0


async def _top(view: View, arguments: argparse.Namespace) -> int:
    try:
        interval = parse_duration(arguments.interval)
    except ValueError as error:
        return _failed(f"--interval: {error}")
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, over.set)
    wanted, before, looks = _wanted(arguments), _Rates(), 0
    while True:
        sights = await view.live(wanted)
        rates = before.then(sights, loop.time())
        sights.sort(key=lambda sight: rates[sight.stream], reverse=True)
        if arguments.json:
            rows = [text.as_json(view, sight, rates[sight.stream]) for sight in sights]
            _print_json(
                {"streams": len(sights), "events_per_second": round(sum(rates.values()), 1), "busiest": rows[:100]}
            )
        else:
            _draw(view, sights, rates)
        looks += 1
        if looks == arguments.count:
            return 0
        try:
            async with asyncio.timeout(max(interval, _LEAST, len(sights) * _SECONDS_PER_STREAM)):
                await over.wait()
            return 0
        except TimeoutError:
            pass


class _Rates:
    """Events per second between two looks; over a stream's whole life at the first one."""

    def __init__(self) -> None:
        self._at = 0.0
        self._events: dict[str, int] = {}

    def then(self, sights: Sequence[Sight], now: float) -> dict[str, float]:
        passed = max(now - self._at, 0.001)
        rates = {
            sight.stream: max(sight.events - self._events[sight.stream], 0) / passed
            if sight.stream in self._events
            else text.events_per_second(sight)
            for sight in sights
        }
        self._at, self._events = now, {sight.stream: sight.events for sight in sights}
        return rates


def _draw(view: View, sights: Sequence[Sight], rates: dict[str, float]) -> None:
    size = shutil.get_terminal_size()
    readers = sum(number or 1 for sight in sights for number in sight.readers.values())
    lost = sum(sight.state == "lost" for sight in sights)
    first = (
        f"{len(sights)} streams run, {sum(rates.values()):.0f} events/s, {readers} readers, "
        f"on {len({sight.replica for sight in sights})} replicas" + (f", {lost} of them lost" if lost else "")
    )
    lines = [first, "", *text.table(view, sights[: max(size.lines - 4, 1)], rates)]
    if sys.stdout.isatty():
        print(_CLEAR + "\n".join(line[: size.columns] for line in lines), flush=True)
    else:
        print("\n".join(lines), flush=True)


# -- one stream ---------------------------------------------------------------------------------------------------


async def _find(view: View, arguments: argparse.Namespace) -> Sight | None:
    stream = _stream(arguments.id)
    sight = await view.find(stream)
    if sight is None:
        _failed(
            f"the store does not know {stream}: it is from before what is kept (streams.retention and "
            "streams.tombstone), or of another store; look for it in the replicas' logs"
        )
    return sight


async def _show(view: View, arguments: argparse.Namespace) -> int:
    if (sight := await _find(view, arguments)) is None:
        return 1
    story = await view.story(sight)
    if arguments.json:
        _print_json({**text.as_json(view, sight), "story": story})
    else:
        print("\n".join(text.description(view, sight, story)))
    return 0


async def _stop(view: View, arguments: argparse.Namespace) -> int:
    if (sight := await _find(view, arguments)) is None:
        return 1
    was_over = bool(sight.outcome)
    after = sight if was_over else await view.stop(sight)
    if after is None or not after.outcome:
        return _failed(
            f"the replica that runs {sight.stream} ({text.printable(sight.replica)}) did not answer; try again, or "
            "wait until its lease is over, after which others end the stream"
        )
    if arguments.json:
        _print_json({**text.as_json(view, after), "stopped": not was_over})
    else:
        print(f"{after.stream}  {'had ended' if was_over else 'ended'}: {after.outcome}")
    return 0


async def _tail(view: View, arguments: argparse.Namespace) -> int:
    if (sight := await _find(view, arguments)) is None:
        return 1
    position = parse_event_id(_named(arguments.id))
    n = 0 if position is None else position.n
    try:
        async for page in view.pages(sight, n):
            for frame in page.frames:
                n += 1
                _print_frame(frame, f"{sight.stream}.{n}", as_json=arguments.json)
            if page.gap:
                return _failed(f"events after {sight.stream}.{n} are not in the store any more")
            if page.end is not None:
                if page.end.closing:
                    _print_frame(page.end.closing, f"{sight.stream}.{n}e", as_json=arguments.json)
                told = "by the relay" if sent_by_relay(page.end.outcome) else "by its upstream"
                print(f"relay: ended {told}: {text.printable(page.end.outcome)}", file=sys.stderr)
    except EncryptionKeyMissing as error:
        return _failed(
            f"{sight.stream} is encrypted under key {error.key}; run this with the settings of the replicas and their "
            "variable of keys (store.encryption_env)"
        )
    except Tampered:
        return _failed(f"what follows {sight.stream}.{n} in the store is not what a relay has put there")
    return 0


def _print_frame(frame: bytes, event_id: str, *, as_json: bool) -> None:
    if not as_json:
        content = re.sub(r"\r\n?", "\n", frame.decode("utf-8", "replace"))
        print(text.printable_lines(content), end="", flush=True)
        return
    for event in sse.Parser(max(len(frame), 1)).feed(frame):
        _print_json(
            {
                "id": event_id,
                "event": event.type.decode("utf-8", "replace"),
                "data": event.data.decode("utf-8", "replace"),
            }
        )


_ACTIONS = {"ls": _ls, "top": _top, "show": _show, "stop": _stop, "tail": _tail}
