"""client → near relay → a proxy that cuts → far relays on one store → upstream, and what becomes of random cuts.

    python -m tests.upstream.chain [--cuts 1000] [--seed 1]

Each stream is cut one to three times: before its head, inside an event or after one, by a FIN, a RST, a proper end
that is none, or a silence for ever, and each time the near relay comes back to the one far replica or the other. The
client's bytes are compared with an uncut stream's, and the upstream has to be asked once.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate, Way
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.samples import SAMPLES, Sample, rest
from tests.support.scripted import ScriptedUpstream, stream
from tests.support.site import served_by
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server
from tests.support.streams import APIS

AT_ONCE = 128
"""Threads: the waits that the far relay's `retry:` asks for go on side by side."""
WAYS: tuple[Way, ...] = ("fin", "rst", "clean", "hang")
LIMITS = {"limits": {"streams_per_owner": 10000}, "drain": {"timeout": "0s"}}


@dataclass
class Chain:
    """`far` are replicas of one relay."""

    upstream: ScriptedUpstream
    far: Sequence[RelayProcess]
    line: CuttingProxy
    near: RelayProcess
    fates: dict[str, Callable[[int], Fate]] = field(default_factory=dict)
    """By model, what becomes of the first, second … request of the near relay."""

    def fate(self, asked: Asked) -> Fate:
        """What becomes of a request on the line."""
        known = self.fates.get(asked.model or asked.headers.get("x-model", ""))
        if known is None:
            return Fate()
        return known(self.requests(asked.headers.get("x-model", asked.model)) - 1)

    def requests(self, model: str) -> int:
        """How many requests of the near relay there were for a model."""
        return sum(one.headers.get("x-model", one.model) == model for one in self.line.asked())

    def read(self, sample: Sample, model: str, *fates: Fate) -> RawStream:
        """The near relay's answer, read to its end; each request on the line has one of these fates, those beyond them
        none."""
        self.fates[model] = lambda n: fates[n] if n < len(fates) else Fate()
        self.upstream.on(model, *stream(*sample.frames))
        headers = {**sample.headers(), "x-model": model}
        return open_stream(self.near.url + sample.path, headers=headers, body=sample.body(model), timeout=90)

    def check(self, sample: Sample, model: str, *fates: Fate) -> tuple[str, bool, int]:
        """The model, was the answer the one of an uncut stream, and how often was the upstream asked."""
        answer = self.read(sample, model, *fates)
        name = stream_id(answer)
        return model, rest(answer) == sample.expected(name), len(self.upstream.calls_of(model))

    def many(self, cases: Sequence[tuple[Sample, str, tuple[Fate, ...]]]) -> list[tuple[str, bool, int]]:
        """Those of many streams at once that were not as they have to be."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = list(threads.map(lambda case: self.check(case[0], case[1], *case[2]), cases))
        return [one for one in found if one[1:] != (True, 1)]


@contextmanager
def linked(
    upstream: Mapping[str, Any], replicas: int, **streams: Any
) -> Iterator[tuple[Sequence[RelayProcess], CuttingProxy, RelayProcess]]:
    """Replicas of a far relay in front of this upstream, the line to them, and the near relay; `streams` are settings
    of the far one."""
    with ExitStack() as stack:
        store = {}
        if replicas > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-chain-")))
            store = {"store": {"url": stack.enter_context(valkey_server(folder, unix=True)).url}}
        config = {"upstreams": [upstream], **LIMITS, **store, "streams": streams}
        far = [stack.enter_context(RelayProcess(config)) for _ in range(replicas)]
        line = stack.enter_context(CuttingProxy(*(relay.url for relay in far)))
        near_config = {"upstreams": [{"name": "far", "base_url": f"{line.url}/v1"}], **LIMITS}
        yield far, line, stack.enter_context(RelayProcess(near_config))


@contextmanager
def chained(
    replicas: int = 1, heartbeat: str = "15s", *, lease: str = "10s", behind_a_relay: bool = False
) -> Iterator[Chain]:
    """`heartbeat` and `lease` are the far relays'; the upstream may stand behind one more relay."""
    with ExitStack() as stack:
        upstream = stack.enter_context(ScriptedUpstream())
        url = upstream.url
        if behind_a_relay:
            url = stack.enter_context(RelayProcess({**served_by(upstream), **LIMITS})).url
        of_far = {"name": "scripted", "base_url": url}
        far, line, near = stack.enter_context(linked(of_far, replicas, heartbeat=heartbeat, lease=lease))
        chain = Chain(upstream, far, line, near)
        line.fate = chain.fate
        # Its first answer says that it is a relay.
        chain.check(SAMPLES["chat"], "first")
        yield chain


def drawn(dice: random.Random, length: int, replicas: int) -> tuple[Fate, ...]:
    """One to three cuts of a stream of so many bytes, each at any of them."""
    # A silence takes twice the far relays' heartbeat to be found, and one before the head is an upstream's own.
    cuts = []
    for _ in range(dice.randint(1, 3)):
        at = BEFORE_HEAD if dice.random() < 0.1 else dice.randrange(length)
        how = dice.choice(WAYS[:3] if at == BEFORE_HEAD else WAYS)
        cuts.append(Fate(cut_at=at, how=how, to=dice.randrange(replicas)))
    return (*cuts, Fate(to=dice.randrange(replicas)))


def soak(chain: Chain, cuts: int, seed: int) -> tuple[int, list[tuple[str, bool, int]]]:
    """How many connections were cut, at least so many, and the streams that were not as they have to be."""
    dice = random.Random(seed)
    misses: list[tuple[str, bool, int]] = []
    done, numbers = 0, itertools.count()
    lengths = {api: len(rest(chain.read(SAMPLES[api], f"length-{api}-{seed}"))) for api in APIS}
    while done < cuts:
        cases = []
        for _, api in zip(range(min(AT_ONCE, cuts - done)), itertools.cycle(APIS), strict=False):
            fates = drawn(dice, lengths[api], len(chain.far))
            cases.append((SAMPLES[api], f"soak-{seed}-{next(numbers)}", fates))
        misses += chain.many(cases)
        # Some of what was drawn lies behind the end of what was left of its stream.
        done += sum(chain.requests(model) - 1 for _, model, _ in cases)
    return done, misses


def main() -> int:
    given = argparse.ArgumentParser(prog="tests.upstream.chain", description=__doc__.partition("\n")[0])
    given.add_argument("--cuts", type=int, default=1000)
    given.add_argument("--seed", type=int, default=1)
    options = given.parse_args()
    began = time.monotonic()
    with chained(2, "500ms") as chain:
        done, misses = soak(chain, options.cuts, options.seed)
    print(f"{done} cuts in {time.monotonic() - began:.0f} s, {len(misses)} missed (seed {options.seed})")
    for miss in misses:
        print(*miss)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
