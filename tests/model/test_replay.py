"""The relay's own code does what the model does: random runs of the model, and the traces that break its mutants."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.metrics import Metrics
from relay.streams.feed import Feed
from relay.streams.tail import Tail, TailFeed
from relay.streams.writer import LogWriter
from tests.model.explorer import Move
from tests.model.harness import Mismatch, NotReplayable
from tests.model.replay import Replay, patched
from tests.model.rules import Mutation
from tests.model.state import State
from tests.model.stream import StreamModel
from tests.model.test_stream_model import bounds_of, broken
from tests.model.virtual import VirtualLoop, virtual_loop

pytestmark = pytest.mark.slow

# More, for runs by hand: RELAY_MODEL_WALKS=5000.
WALKS = int(os.environ.get("RELAY_MODEL_WALKS", "150"))
_LENGTH = 60
_FAIR = 0.65  # how often a move is one that happens by itself

Choose = Callable[[list[Move[State]], list[Move[State]]], Move[State] | None]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualLoop]:
    logging.disable(logging.CRITICAL)  # what goes wrong on purpose
    patched(monkeypatch)
    with virtual_loop(monkeypatch) as virtual:
        yield virtual
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


def at_random(seed: int) -> Choose:
    """Any move, those that happen by themselves rather than others."""
    chance = random.Random(seed)

    def choose(fair: list[Move[State]], unfair: list[Move[State]]) -> Move[State] | None:
        if not fair and not unfair:
            return None
        return chance.choice(fair if fair and (not unfair or chance.random() < _FAIR) else unfair)

    return choose


def along(trace: list[Move[State]]) -> Choose:
    """The moves of a trace by their names, as far as there are such; then what happens by itself."""
    names = [name for name, _ in trace]
    chance = random.Random(0)

    def choose(fair: list[Move[State]], unfair: list[Move[State]]) -> Move[State] | None:
        if names:
            wanted = names.pop(0)
            for move in (*fair, *unfair):
                if move[0] == wanted:
                    return move
            names.clear()
        return chance.choice(fair) if fair else None

    return choose


async def replay(loop: VirtualLoop, metrics: Metrics, model: StreamModel, choose: Choose) -> list[str]:
    """The moves that were made. Raises Mismatch."""
    first = choose([], list(model.initial()))
    assert first is not None
    made, state = [first[0]], first[1]
    run = Replay(loop, metrics, model)
    try:
        await run.begin(state.at == "A", state.other)
        while len(made) < _LENGTH:
            move = choose(list(model.fair(state)), list(model.unfair(state)))
            if move is None:
                break
            made.append(move[0])
            state = move[1]
            await run.make(*move)
    except NotReplayable:
        pass
    except Exception as error:
        steps = "\n".join(f"  {i:2} {name}" for i, name in enumerate(made))
        raise Mismatch(f"{error!r}, after\n{steps}\n{state}") from error
    finally:
        await run.end()
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("events", [1, 2, 3])
@pytest.mark.parametrize("terminal", [False, True], ids=["body-ends", "terminal-event"])
def test_random_runs(loop: VirtualLoop, metrics: Metrics, events: int, terminal: bool) -> None:
    model = StreamModel(events=events, faults=3, terminal=terminal)
    moves = 0
    for seed in range(WALKS):
        made = loop.run_until_complete(replay(loop, metrics, model, at_random(seed)))
        moves += len(made)
    print(f"{WALKS} runs, {moves} moves")


def _trace(mutation: Mutation) -> tuple[StreamModel, list[Move[State]]]:
    """The true model, and what breaks the one with a mutation."""
    violation = broken(mutation).violation
    assert violation is not None
    return StreamModel(**bounds_of(mutation)), violation.trace


@pytest.mark.parametrize(
    "mutation",
    [mutation for mutation in Mutation if not bounds_of(mutation).get("takeover")],
    ids=lambda mutation: mutation.name.lower(),
)
def test_what_breaks_a_mutant_does_not_break_the_code(loop: VirtualLoop, metrics: Metrics, mutation: Mutation) -> None:
    model, trace = _trace(mutation)
    made = loop.run_until_complete(replay(loop, metrics, model, along(trace)))
    print("\n".join(made))


def _no_top(self: LogWriter, code: int, top: int) -> None:
    if code != 1:
        self._reply(code, top, 0)


def _feed_that_is_over(self: Tail, status: Any, abandon_after: float | None = None) -> TailFeed:
    feed = self._feeds.get(status.stream) or TailFeed(status)
    if status.stream not in self._feeds:
        self._feeds[status.stream] = feed
        self._background(self._open(feed))
    feed.readers += 1
    return feed


def _not_counted(self: Tail, status: Any, abandon_after: float | None = None) -> TailFeed:
    feed = _feed_that_is_over(self, status)
    feed.readers = 0
    return feed


@pytest.mark.parametrize(
    ("mutation", "patch"),
    [
        (Mutation.TOP_NOT_REPORTED, (LogWriter, "on_renewed", _no_top)),
        (Mutation.OVER_FEED_SHARED, (Tail, "enter", _feed_that_is_over)),
        (Mutation.FENCED_FEED_OPEN, (Feed, "close", lambda feed: None)),
        (Mutation.NEVER_AHEAD, (LogWriter, "on_store_away", lambda writer: None)),
        (Mutation.ATTACHING_NOT_COUNTED, (Tail, "enter", _not_counted)),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Mutation) else "",
)
def test_code_that_breaks_a_rule_is_told_from_the_model(
    monkeypatch: pytest.MonkeyPatch,
    loop: VirtualLoop,
    metrics: Metrics,
    mutation: Mutation,
    patch: tuple[type, str, Callable[..., Any]],
) -> None:
    model, trace = _trace(mutation)
    monkeypatch.setattr(*patch)
    with pytest.raises(Mismatch):
        loop.run_until_complete(replay(loop, metrics, model, along(trace)))
