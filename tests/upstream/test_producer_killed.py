"""The far replica that generates is killed, behind a near relay on its client's side of the line.

    client → near relay → two far replicas on one store → upstream

Where that upstream can go on, the client reads what it would have read, from one call; where it cannot, what came and
then that the producer was lost, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.observe.scraped import scrape
from tests.support.background import BackgroundApi, events_of
from tests.support.cutting_http import Fate
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.samples import SAMPLES, Sample, error_of, masked
from tests.support.scripted import Gate, stream
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.streams import APIS, Api
from tests.support.waiting import wait_until
from tests.upstream.chain import Chain, chained, linked

pytestmark = pytest.mark.slow

each_api = pytest.mark.parametrize("api", APIS)

LEASE = "1s"
WITHIN = 60.0


@pytest.fixture(scope="module")
def going_on() -> Iterator[Chain]:
    with chained(2, "500ms", lease=LEASE, behind_a_relay=True) as made:
        yield made


@pytest.fixture(scope="module")
def ending() -> Iterator[Chain]:
    with chained(2, "500ms", lease=LEASE) as made:
        yield made


@dataclass
class Begun:
    """One client's stream: how many events it had read when the far replica died, and those."""

    model: str
    count: int
    read: RawStream
    first: list[RawEvent]

    @property
    def name(self) -> str:
        return stream_id(self.read)

    def rest(self) -> list[RawEvent]:
        """The events after those, up to a proper end."""
        with self.read:
            events = self.read.events()
            assert self.read.ended == "zero-chunk"
            return events


def joined(events: Sequence[RawEvent]) -> bytes:
    return masked(b"".join(event.raw for event in events))


@contextmanager
def killed_after_each_event(chain: Chain, sample: Sample, run: str) -> Iterator[list[Begun]]:
    """A stream for each of the sample's events but the last, whose client has read so many when the first far replica
    dies. Two more events are generated after `<model>-gap`, and the others after `<model>-after`."""
    with ExitStack() as stack:
        begun = []
        for count in range(1, len(sample.frames)):
            model = f"{run}-{sample.api}-{count}"
            before, gap, after = sample.frames[:count], sample.frames[count:][:2], sample.frames[count:][2:]
            chain.upstream.on(model, *stream(*before, Gate(f"{model}-gap"), *gap, Gate(f"{model}-after"), *after))
            chain.fates[model] = lambda n: Fate(to=min(n, 1))
            headers = {**sample.headers(), "x-model": model}
            url = chain.near.url + sample.path
            read = stack.enter_context(open_stream(url, headers=headers, body=sample.body(model), timeout=WITHIN))
            begun.append(Begun(model, count, read, read.events(count)))
        chain.far[0].kill()
        try:
            yield begun
        finally:
            chain.far[0].start()


def taken_over(relay: RelayProcess) -> float:
    return scrape(relay).value("relay_upstream_resumes_total", result="taken_over")


@each_api
def test_a_stream_goes_on_where_its_upstream_is_a_relay(going_on: Chain, api: Api) -> None:
    chain, sample = going_on, SAMPLES[api]
    before = taken_over(chain.far[1])
    with killed_after_each_event(chain, sample, "on") as begun:
        for cut in begun:
            chain.upstream.open(f"{cut.model}-gap")
        wait_until(lambda: taken_over(chain.far[1]) == before + len(begun), WITHIN, "the streams to be taken over")
        for cut in begun:
            chain.upstream.open(f"{cut.model}-after")
        for cut in begun:
            assert joined([*cut.first, *cut.rest()]) == sample.expected(cut.name), cut.model
            assert len(chain.upstream.calls_of(cut.model)) == 1


@each_api
def test_a_request_that_has_no_answer_yet_joins_what_it_began(going_on: Chain, api: Api) -> None:
    chain, sample, model = going_on, SAMPLES[api], f"unanswered-{api}"
    chain.upstream.on(model, Gate(model), *stream(*sample.frames))
    chain.fates[model] = lambda n: Fate(to=min(n, 1))
    headers, url = {**sample.headers(), "x-model": model}, chain.near.url + sample.path
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(open_stream, url, headers=headers, body=sample.body(model), timeout=WITHIN)
        wait_until(lambda: bool(chain.upstream.calls_of(model)), 20, "the upstream to be asked")
        chain.far[0].kill()
        try:
            chain.line.wait_for(lambda: chain.requests(model) > 1)
            chain.upstream.open(model)
            with asking.result() as read:
                assert joined(read.events()) == sample.expected(stream_id(read))
        finally:
            chain.far[0].start()
    assert len(chain.upstream.calls_of(model)) == 1


@each_api
def test_the_client_is_told_once_where_the_upstream_cannot_go_on(ending: Chain, api: Api) -> None:
    chain, sample = ending, SAMPLES[api]
    with killed_after_each_event(chain, sample, "over") as begun:
        for cut in begun:
            told = cut.rest()
            assert joined(cut.first) == sample.expected(cut.name, cut.count), cut.model
            assert error_of(api, told, cut.count - 1)[0] == "producer_lost", cut.model
            # To the near relay it is its upstream's own end, whose events have numbers.
            last = f"{cut.name}.{cut.count + len(told)}"
            assert told[-1].id == last
            headers = {**sample.headers(), "last-event-id": last}
            with open_stream(chain.near.url + sample.path, headers=headers, body=sample.body(cut.model)) as again:
                assert again.status == 204
            assert len(chain.upstream.calls_of(cut.model)) == 1


def test_a_response_goes_on_where_it_runs_in_the_background() -> None:
    sample, words = SAMPLES["responses"], 50
    with BackgroundApi() as api:
        upstream = {"name": "background", "base_url": api.url, "resume": "responses"}
        with linked(upstream, 2, heartbeat="500ms", lease=LEASE) as (far, line, near), ExitStack() as stack:
            line.fate = lambda asked: Fate(to=0 if far[0].returncode is None else 1)
            body = sample.body(f"{words}-100", background=True)
            reads = [
                stack.enter_context(
                    open_stream(near.url + sample.path, headers=sample.headers(), body=body, timeout=WITHIN)
                )
                for _ in range(5)
            ]
            begun = [
                Begun(f"after-{count}", count, read, read.events(count))
                for count, read in zip((1, 2, 5, 9, 14), reads, strict=True)
            ]
            far[0].kill()
            for cut in begun:
                generation = cut.first[0].json["response"]["id"]
                sent = events_of(generation, words)
                told = [b"id: %s.%d\n" % (cut.name.encode(), n) + event for n, event in enumerate(sent, start=1)]
                assert b"".join(event.raw for event in [*cut.first[1:], *cut.rest()]) == b"".join(told[1:])
            assert len(api.generations) == len(begun)
            assert taken_over(far[1]) == len(begun)
