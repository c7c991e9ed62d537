"""What is played, out of one seed: the faults with their times, and the requests of every session. No I/O.

A session's request depends on the seed and the session's number alone, a fault's on the seed alone, so the same seed
gives the same of both however the run goes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from tests.torture.bounds import BOUNDS
from tests.torture.generation import Api, Ending, Spec
from tests.torture.timeline import STORE, line, replica

Kind = Literal["poster", "eventsource", "sdk", "keyed", "client", "detached", "agent"]

_REPLICA = {"pause": 5, "kill": 3, "drain": 3}
_LINE = {"blackhole": 4, "refuse": 3, "delay": 3, "drop": 3}
_FRONT = {"cut": 4}
_STORES = {
    "standalone": {"store_freeze": 4, "store_kill": 3, "store_tail": 3, "store_empty": 2},
    "sentinel": {"failover": 2, "failover_lossy": 3, "store_kill": 2, "store_freeze": 3, "sentinel_freeze": 2,
                 "replica_kill": 1},
    "cluster": {"slots_move": 6, "failover": 2, "failover_lossy": 2, "store_kill": 2, "store_freeze": 3,
                "replica_kill": 1},
}  # fmt: skip
# Faults come in storms, so many a second, and then there is a calm; seconds.
_RATE = 0.8
_STORM = (8.0, 16.0)
_CALM = (9.0, 12.0)
# Seconds; most of a run's streams are to be over before it is.
_LONGEST = 16.0
_ANY_STORE = {"scripts": 1, "connections": 2}


@dataclass(frozen=True)
class Fault:
    """What is done to what, at which second of the run; `lasts` is the time between doing and undoing."""

    at: float
    kind: str
    target: str
    lasts: float
    number: int

    def __str__(self) -> str:
        return f"{self.at:7.2f}  {self.target:10} {self.kind} for {self.lasts:.2f} s"


def schedule(seed: int, seconds: float, topology: str, replicas: int, workers: int) -> list[Fault]:
    """Faults at random, each above or below one of the bounds; none begins in the last seconds."""
    dice = random.Random(f"faults {seed} {topology} {workers}")
    kinds = [(kind, "replica", weight) for kind, weight in _REPLICA.items()]
    kinds += [(kind, "line", weight) for kind, weight in _LINE.items()]
    kinds += [(kind, "front", weight) for kind, weight in _FRONT.items()]
    kinds += [(kind, STORE, weight) for kind, weight in (_STORES[topology] | _ANY_STORE).items()]
    if workers > 1:
        kinds += [("pause_worker", "replica", 3), ("kill_worker", "replica", 2)]
    found: list[Fault] = []
    free = {STORE: 0.0}
    at = 1.0
    storm = dice.uniform(*_STORM)
    while True:
        at += dice.expovariate(_RATE)
        if at > storm:
            # A quiet time, in which everything has to go on as if nothing had been.
            at = max(storm, *free.values()) + dice.uniform(*_CALM)
            storm = at + dice.uniform(*_STORM)
        if at > seconds - 3.0:
            return found
        kind, on, _ = dice.choices(kinds, weights=[weight for *_, weight in kinds])[0]
        number = dice.randrange(replicas)
        target = {"replica": replica(number), "line": line(number), "front": f"front {number}"}.get(on, STORE)
        lasts = _duration(dice, kind)
        # One thing at a time on each target, and not all replicas away at once.
        away = [t for t, until in free.items() if until > at and t.startswith(("replica", "line"))]
        if free.get(target, 0.0) > at or (on in ("replica", "line") and len(away) >= replicas - 1):
            continue
        free[target] = at + lasts + 1.0
        found.append(Fault(round(at, 2), kind, target, round(lasts, 2), len(found)))


def _duration(dice: random.Random, kind: str) -> float:
    if kind in ("cut", "scripts", "connections"):
        return 0.0
    if kind == "delay":  # of every byte, each way
        return dice.choice((0.05, 0.2, BOUNDS["command"] * 0.4, BOUNDS["command"] * 0.7))
    if kind == "slots_move":
        return dice.choice((0.1, 0.5, 1.5))
    if kind == "drop":
        return dice.uniform(0.1, 1.5)
    bound = dice.choice(sorted(BOUNDS.values()))
    return bound * (dice.uniform(0.2, 0.8) if dice.random() < 0.5 else dice.uniform(1.2, 2.2))


@dataclass(frozen=True)
class Request:
    """One session: what is asked for, how its client behaves, and what others do with its stream."""

    number: int
    kind: Kind
    spec: Spec
    owner: str
    hops: tuple[int, ...] = ()
    """After so many events of its own its client hangs up and comes back."""
    leaves_after: int | None = None
    """After so many events its client does not come back."""
    slow_at: int | None = None
    """Before this event it reads nothing for a while."""
    watchers: tuple[int, ...] = ()
    """Others who read the stream, each from behind this event."""
    stops_after: float | None = None
    """Somebody sends a DELETE so long after the beginning."""
    twins: int = 1
    """So many send the same request at once, with the same key, or in the same session."""
    by_ticket: bool = False
    seed: int = 0


def request(seed: int, number: int, topology: str) -> Request:
    dice = random.Random(f"session {seed} {number} {topology}")
    kinds: dict[Kind, int] = {
        "poster": 26,
        "eventsource": 20,
        "sdk": 14,
        "keyed": 18,
        "client": 14,
        "detached": 8,
        "agent": 20,
    }
    kind = dice.choices(list(kinds), weights=list(kinds.values()))[0]
    spec = _spec(dice)
    total = spec.events
    many = dice.choices((0, 1, 3, 20), (4, 3, 3, 1))[0]
    hops = tuple(sorted(dice.sample(range(1, total + 1), min(total, many))))
    watchers = tuple(dice.choice((0, 0, total // 3, total // 2)) for _ in range(dice.choices((0, 1, 2), (5, 3, 2))[0]))
    return Request(
        number,
        kind,
        spec,
        owner=f"owner-{dice.randrange(3)}",
        hops=hops if kind in ("poster", "eventsource", "keyed", "agent") else (),
        leaves_after=dice.randrange(1, total + 1) if dice.random() < 0.06 else None,
        slow_at=dice.randrange(1, total + 1) if dice.random() < 0.08 else None,
        watchers=watchers if kind not in ("sdk", "agent") or (kind == "sdk" and dice.random() < 0.5) else (),
        stops_after=dice.uniform(0.2, spec.seconds + 0.5) if dice.random() < 0.09 else None,
        twins=dice.choice((1, 1, 2, 3)) if kind in ("keyed", "agent") else 1,
        by_ticket=dice.random() < 0.5,
        seed=dice.randrange(1 << 30),
    )


def _spec(dice: random.Random) -> Spec:
    api: Api = dice.choice(("chat", "messages", "responses"))
    endings: dict[Ending, int] = {"complete": 74, "error": 8, "cut": 6, "reset": 4, "silent": 3, "refused": 5}
    ending = dice.choices(list(endings), weights=list(endings.values()))[0]
    shape = dice.random()
    if shape < 0.5:  # as a model talks
        events, pace, size, burst = dice.randrange(30, 250), dice.uniform(0.02, 0.12), 0, 1
    elif shape < 0.65:  # slowly
        events, pace, size, burst = dice.randrange(5, 25), dice.uniform(0.2, 0.9), 0, 1
    elif shape < 0.8:  # all at once, as from a cache
        events, pace, size, burst = dice.randrange(1, 300), 0.0, 0, dice.choice((1, 20, 300))
    elif shape < 0.9:  # large events
        events, pace, size, burst = dice.randrange(5, 30), dice.uniform(0.05, 0.3), 20_000, 1
    else:  # in bursts
        events, pace, size, burst = dice.randrange(60, 400), dice.uniform(0.2, 0.6), 40, dice.choice((5, 30))
    if pace:
        events = max(1, min(events, int(_LONGEST / pace) * burst))
    quiet = dice.random() < 0.2 or ending == "silent"
    return Spec(
        api,
        events,
        round(pace, 3),
        size,
        burst,
        ending,
        head_after=dice.choice((0.0, 0.0, 0.0, 0.05, 0.4, 2.2)) if ending != "refused" else dice.choice((0.0, 2.2)),
        silent_at=dice.randrange(1, events + 1) if quiet else 0,
        silent_for=round(dice.uniform(1.0, 4.5), 2) if quiet else 0.0,
    )
