"""The other leg: a relay whose upstream is a relay comes back to it after every cut between the two.

    client → near relay → a proxy that cuts → far relay → upstream

What the client reads is byte for byte what it would have read, and the upstream is asked once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.support.cutting_http import BEFORE_HEAD, Asked, CuttingProxy, Fate, Way
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.samples import SAMPLES, Sample, rest
from tests.support.scripted import ScriptedUpstream, stream
from tests.support.site import served_by
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import APIS, Api

pytestmark = pytest.mark.slow

each_api = pytest.mark.parametrize("api", APIS)
# Threads: the waits that the far relay's `retry:` asks for go on side by side.
AT_ONCE = 128


@dataclass
class Chain:
    upstream: ScriptedUpstream
    far: RelayProcess
    line: CuttingProxy
    near: RelayProcess
    fates: dict[str, Callable[[int], Fate]] = field(default_factory=dict)
    """By model, what becomes of the first, second … request of the near relay."""

    def fate(self, asked: Asked) -> Fate:
        known = self.fates.get(asked.model or asked.headers.get("x-model", ""))
        if known is None:
            return Fate()
        model = asked.headers.get("x-model", asked.model)
        return known(sum(one.headers.get("x-model", one.model) == model for one in self.line.asked()) - 1)

    def read(self, sample: Sample, model: str, *fates: Fate) -> RawStream:
        """The near relay's answer, read to its end; each request on the line has one of these fates, those beyond them
        none."""
        self.fates[model] = lambda n: fates[n] if n < len(fates) else Fate()
        self.upstream.on(model, *stream(*sample.frames))
        headers = {**sample.headers(), "x-model": model}
        return open_stream(self.near.url + sample.path, headers=headers, body=sample.body(model))

    def check(self, sample: Sample, model: str, *fates: Fate) -> tuple[str, bool, int]:
        """The model, was the answer the one of an uncut stream, and how often was the upstream asked."""
        answer = self.read(sample, model, *fates)
        name = stream_id(answer)
        return model, rest(answer) == sample.expected(name), len(self.upstream.calls_of(model))


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    limits = {"limits": {"streams_per_owner": 10000}, "drain": {"timeout": "0s"}}
    with (
        ScriptedUpstream() as upstream,
        RelayProcess({**served_by(upstream), **limits}) as far,
        CuttingProxy(far.url) as line,
    ):
        near_config = {"upstreams": [{"name": "far", "base_url": f"{line.url}/v1"}], **limits}
        with RelayProcess(near_config) as near:
            made = Chain(upstream, far, line, near)
            line.fate = made.fate
            # Its first answer says that it is a relay.
            made.check(SAMPLES["chat"], "first")
            yield made


def many(chain: Chain, sample: Sample, cases: list[tuple[str, tuple[Fate, ...]]]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(lambda case: chain.check(sample, case[0], *case[1]), cases))
    assert [one for one in found if one[1:] != (True, 1)] == []


@each_api
@pytest.mark.parametrize("how", ["fin", "rst", "clean"])
def test_cut_anywhere(chain: Chain, api: Api, how: Way) -> None:
    sample = SAMPLES[api]
    length = len(rest(chain.read(sample, f"length-{api}-{how}")))
    offsets = sorted({BEFORE_HEAD, 0, *range(1, length, 41), length - 3, length - 1})
    many(chain, sample, [(f"{api}-{how}-{offset}", (Fate(cut_at=offset, how=how),)) for offset in offsets])


@each_api
def test_cut_again_and_again(chain: Chain, api: Api) -> None:
    sample = SAMPLES[api]
    ways: tuple[Way, ...] = ("fin", "rst", "clean")
    cases = []
    for number, (step, how) in enumerate(itertools.product((0, 90, 400, 900), ways)):
        cases.append((f"again-{api}-{number}", tuple(Fate(cut_at=step, how=how) for _ in range(3))))
    many(chain, sample, cases)
