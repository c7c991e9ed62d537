"""Which ends, refusals and waits the faults of a run excuse. No I/O.

What a witness sees is judged on the spot (`oracle`); here is judged what can be told only by someone who knows what was
broken when. An excuse is no more than the promise leaves open:

* a stream ends with an error of the relay's where its producer was ended, or kept from its lease for long enough;
* a client is refused for good where events are missing in earnest: the store lost some and their producer was gone by
  then, or a producer was ended with events that the store had never taken;
* nothing that happens to the store alone ends a stream or costs an event of one whose producer lives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.torture.bounds import ABANDON, COMMAND, GRACE, HEARTBEAT, LEASE, STALL
from tests.torture.evidence import CallLike, Evidence, Found, StreamSeen, Wait
from tests.torture.timeline import MACHINE, STORE, gaps, line, merged, replica

UPSTREAM_ENDS = ("complete", "upstream_error")
_DEADLY = ("kill", "drain", "kill_worker")
# A lease is renewed every third of it, or oftener.
_LAPSE = 0.6 * LEASE
_REOPENED = 0.5
# An agent's retry looks for what it can join for a second.
_LOOKED = 1.5


def judge(evidence: Evidence) -> list[Found]:
    rules = (_ends, _two_ends, _refusals, _calls, _turns, _shared, _stops, _abandonment, _waits)
    return sorted((found for rule in rules for found in rule(evidence)), key=lambda found: found.at)


def expected_end(call: CallLike | None, stream: StreamSeen) -> str:
    """How the stream ends where nothing is broken."""
    spec = stream.spec if call is None else call.spec
    named = {"complete": "complete", "error": "upstream_error", "silent": "upstream_timeout"}
    return named.get(spec.ending, "upstream_refused" if spec.ending == "refused" else "upstream_disconnected")


def died(evidence: Evidence, call: CallLike | None, since: float, until: float) -> bool:
    """Was the stream's producer ended, or kept from its lease for so long that others may have ended its stream?"""
    if call is None:
        numbers = list(range(evidence.replicas))
        return any(_died(evidence, number, since, until) for number in numbers)
    return _died(evidence, call.replica, since, until)


def _died(evidence: Evidence, number: int, since: float, until: float) -> bool:
    timeline = evidence.timeline
    own = [r for r in timeline.of((replica(number), line(number), MACHINE), since - LEASE, until) if not r.harmless]
    if any(record.kind in _DEADLY and record.ended >= since for record in own):
        return True
    # A link that was cut or silent is opened again a moment after the fault; what was broken beside it adds to it.
    with_store = [(r.began, r.ended + _REOPENED) for r in [*own, *timeline.of((STORE,), since - LEASE, until)]]
    return any(
        end - begin >= _LAPSE and any(begin <= record.began <= end for record in own)
        for begin, end in merged(with_store)
    )


def _store_broke(evidence: Evidence, call: CallLike | None, since: float, until: float) -> bool:
    lines = range(evidence.replicas) if call is None else (call.replica,)
    return bool(evidence.timeline.of((STORE, *map(line, lines)), since - 1.0, until))


def _ends(evidence: Evidence) -> Iterator[Found]:
    for stream in evidence.streams.values():
        call = evidence.call(stream.id)
        for at, client, end in stream.ends:
            if end != expected_end(call, stream) and not _end_excused(evidence, stream, call, end, at):
                yield Found("end", f"{stream.id} ended with {end!r}; nothing that was broken explains it", client, at)


def _end_excused(evidence: Evidence, stream: StreamSeen, call: CallLike | None, end: str, at: float) -> bool:
    born = stream.born
    if end == "producer_lost":
        return died(evidence, call, born, at) or _lost_after_its_end(evidence, stream, call, at)
    if end in ("shutdown", "store_lost"):
        numbers = range(evidence.replicas) if call is None else (call.replica,)
        drained = evidence.timeline.of([replica(n) for n in numbers], born, at)
        return any(record.kind == "drain" for record in drained)
    if end == "stopped":
        return any(asked <= at for asked in stream.stop_asked)
    if end == "abandoned":
        return _unread(evidence, stream, call, at) >= 0.8 * ABANDON
    return False


def _unread(evidence: Evidence, stream: StreamSeen, call: CallLike | None, until: float) -> float:
    """The longest time that its producer can have thought nobody reads it."""
    seen = []
    for (begin, end), number in stream.reading:
        hidden = [line(number), replica(number), STORE]
        if call is not None and call.replica != number:
            hidden += [line(call.replica), replica(call.replica)]
        broken = (
            evidence.timeline.broken(hidden, begin, end, grace=1.0) if call is None or call.replica != number else []
        )
        seen += gaps(broken, begin, end)
    return max((end - begin for begin, end in gaps(seen, stream.born, until)), default=0.0)


def _two_ends(evidence: Evidence) -> Iterator[Found]:
    for stream in evidence.streams.values():
        ends = {end for _, _, end in stream.ends}
        last = max((at for at, _, _ in stream.ends), default=0.0)
        call = evidence.call(stream.id)
        excused = died(evidence, call, stream.born, last) or _lost_after_its_end(evidence, stream, call, last)
        if len(ends) > 1 and not excused:
            told = ", ".join(f"{client} {end!r} at {at:.2f}" for at, client, end in stream.ends)
            yield Found("two_ends", f"{stream.id}: {told}", stream.ends[-1][1], last)


def _refusals(evidence: Evidence) -> Iterator[Found]:
    for refusal in evidence.refusals:
        stream = evidence.streams.get(refusal.stream or "")
        what = f"{refusal.status} {refusal.code} from replica {refusal.replica} to {refusal.asked}"
        if refusal.status in (404, 410) and stream is not None:
            if refusal.asked != "DELETE" and refusal.wanted and (refusal.held or 0) >= refusal.wanted:
                held = f"though the log holds {refusal.held} events, and the client has {refusal.wanted}"
                yield Found("refused", f"{what} {held}", refusal.client, refusal.at)
            elif not _missing_excused(evidence, stream, refusal.at):
                call = evidence.call(stream.id)
                yield Found("refused", f"{what}; nothing can be missing ({call})", refusal.client, refusal.at)
        elif not evidence.timeline.of((MACHINE,), refusal.at - 3.0, refusal.at):
            yield Found("refused", what, refusal.client, refusal.at)


def _missing_excused(evidence: Evidence, stream: StreamSeen, at: float) -> bool:
    call = evidence.call(stream.id)
    if _lost_after_its_end(evidence, stream, call, at):
        return True
    return died(evidence, call, stream.born, at) and _store_broke(evidence, call, stream.born, at)


def _lost_after_its_end(evidence: Evidence, stream: StreamSeen, call: CallLike | None, at: float) -> bool:
    """May the store have lost some of it when its producer was done with it?"""
    if call is None or call.ended is None:
        return False
    losses = [r for r in evidence.timeline.of((STORE,), stream.born - 1.0, at) if r.loses]
    return any(call.ended <= loss.ended + 1.0 for loss in losses)


def _calls(evidence: Evidence) -> Iterator[Found]:
    unkeyed: dict[str, list[CallLike]] = defaultdict(list)
    keyed: dict[str, list[CallLike]] = defaultdict(list)
    for call in evidence.calls:
        if call.attempt.startswith("agent-"):
            continue
        if call.key is None:
            unkeyed[call.attempt].append(call)
        else:
            keyed[call.key].append(call)
    for calls in unkeyed.values():
        if len(calls) > 1:
            yield Found("posted_twice", "; ".join(map(str, calls)), calls[0].attempt, calls[1].began)
    for key, calls in keyed.items():
        for first, second in pairwise(calls):
            if (why := _paid_twice(evidence, first, second)) is not None:
                yield Found("paid_twice", f"key {key}: {why}: {first}; {second}", second.attempt, second.began)


def _turns(evidence: Evidence) -> Iterator[Found]:
    """A turn of an agent is asked for upstream once for each that has begun it, however often they are cut off."""
    turns: dict[str, list[CallLike]] = defaultdict(list)
    for call in evidence.calls:
        if call.attempt.startswith("agent-"):
            turns[call.attempt].append(call)
    for turn, calls in turns.items():
        twins = int(turn.split("-")[1])
        for n, call in enumerate(calls[twins:], twins):
            # Others read fewer of those that run than have begun the turn: one was there to be joined.
            running = sum(not _over(earlier, call.began) for earlier in calls[:n])
            if running >= twins and _calm(evidence, call.began):
                yield Found("turn_paid_twice", "; ".join(map(str, calls[: n + 1])), turn, call.began)


def _over(call: CallLike, at: float) -> bool:
    """What was sent to its end may have been taken to its end by a client's machine that the client has not read."""
    return any(when is not None and when < at for when in (call.ended, call.said_all))


def _calm(evidence: Evidence, at: float) -> bool:
    """Was nothing broken, or just taken up again? If not, who asks may have to do without what could be joined."""
    numbers = range(evidence.replicas)
    targets = [STORE, MACHINE, *map(replica, numbers), *map(line, numbers)]
    return evidence.timeline.clear(targets, at - _LOOKED, at, grace=GRACE) >= _LOOKED


def _shared(evidence: Evidence) -> Iterator[Found]:
    """Agents that ask for the same at once have an answer each."""
    for stream in evidence.streams.values():
        for ((_, first_end), first), ((second_began, _), second) in pairwise(sorted(stream.agents)):
            apart = first_end <= second_began + 0.1
            if first != second and not apart and _calm(evidence, second_began):
                yield Found("shared", f"{stream.id} is read by {first} and {second}", second, second_began)


def _paid_twice(evidence: Evidence, first: CallLike, second: CallLike) -> str | None:
    over = first.ended if first.said_all is None else first.said_all
    if over is None or over > second.began:
        return None if _apart(evidence, first, second.began) else "the first was still running"
    whole = not first.cancelled and first.spec.ending == "complete"
    lost = any(r.loses for r in evidence.timeline.of((STORE,), first.began - 1.0, second.began))
    if whole and not lost and not died(evidence, first, first.began, second.began):
        return "the first was whole"
    return None


def _apart(evidence: Evidence, first: CallLike, until: float) -> bool:
    """Could its replica not be told from one that is gone? It cannot reach the store, or it is paused and has lost its
    connections meanwhile, because the store was restarted."""
    timeline, number, since = evidence.timeline, first.replica, first.began - LEASE
    long = [r for r in timeline.of((line(number), replica(number)), since, until) if r.ended - r.began >= _LAPSE]
    cut = [r for r in timeline.of((STORE,), since, until) if r.kind not in ("store_freeze", "scripts", "slots_move")]
    return any(
        record.target == line(number) or any(r.began <= record.ended and r.ended >= record.began - LEASE for r in cut)
        for record in long
    )


def _stops(evidence: Evidence) -> Iterator[Found]:
    for stream in evidence.streams.values():
        call = evidence.call(stream.id)
        if call is None or not stream.stopped:
            continue
        since = min(stream.stopped)
        over = evidence.finished if call.ended is None else call.ended
        clear = evidence.timeline.clear(_around(call), since, over, grace=GRACE)
        if clear > LEASE + COMMAND + 1.0:
            yield Found(
                "not_stopped", f"DELETE of {stream.id} was answered 204 at {since:.2f}: {call}", call.attempt, over
            )


def _abandonment(evidence: Evidence) -> Iterator[Found]:
    for stream in evidence.streams.values():
        call = evidence.call(stream.id)
        if call is None or not call.cancelled or not stream.reading:
            continue
        last = max(end for (_, end), _ in stream.reading)
        over = evidence.finished if call.ended is None else call.ended
        clear = evidence.timeline.clear(_around(call), last, over, grace=GRACE)
        if clear > ABANDON + LEASE + 1.0:
            yield Found("not_abandoned", f"nobody has read {stream.id} since {last:.2f}: {call}", call.attempt, over)


def _around(call: CallLike) -> tuple[str, ...]:
    return (STORE, MACHINE, replica(call.replica), line(call.replica))


def _clear(evidence: Evidence, wait: Wait) -> float:
    """The longest part of a wait in which nothing was broken of what its client's replicas need."""
    if wait.mute:  # heartbeats need no store
        targets, grace = [MACHINE, *map(replica, wait.replicas)], 1.0
    else:
        numbers = wait.replicas | ({wait.producer} if wait.producer is not None else set())
        targets, grace = [STORE, MACHINE, *map(replica, numbers), *map(line, numbers)], GRACE
    return evidence.timeline.clear(targets, wait.since, wait.until, grace=grace)


def _waits(evidence: Evidence) -> Iterator[Found]:
    for wait in evidence.waits:
        clear = _clear(evidence, wait)
        span = f"{wait.since:.2f} to {wait.until:.2f}, {clear:.1f} s of it without a fault"
        if wait.mute and clear > HEARTBEAT + 1.5:
            yield Found("mute", f"not even a heartbeat from {sorted(wait.replicas)}, {span}", wait.client, wait.until)
        elif not wait.mute and clear > STALL:
            what = f"nothing came from {sorted(wait.replicas)} though there was something to come"
            yield Found("hang", f"{what}, {span}; its producer is {wait.producer}", wait.client, wait.until)


def longest_wait(evidence: Evidence) -> tuple[float, str]:
    """The longest time, outside all outages, that a client waited for what had been sent upstream; and whose."""
    return max(((_clear(evidence, wait), wait.client) for wait in evidence.waits if not wait.mute), default=(0.0, ""))


__all__ = ["UPSTREAM_ENDS", "died", "expected_end", "judge", "longest_wait"]
