"""What is nginx's own: a reload in mid-stream, and controls that show what each line in deploy/nginx is for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.proxies import Nginx
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, stream
from tests.support.site import BeatingSite, beating_relays
from tests.support.sseclient import RawStream, open_stream
from tests.support.waiting import wait_until

AUTH = {"authorization": "Bearer sk-one"}


@pytest.fixture(scope="module")
def site() -> Iterator[BeatingSite]:
    with beating_relays() as found:
        yield found


def post(front: Nginx, model: str, **more: object) -> RawStream:
    return open_stream(front.url + PATH, headers=AUTH, body={"model": model, "stream": True, "messages": [], **more})


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_reload_costs_no_stream_anything(site: BeatingSite) -> None:
    site.upstream.on("reloaded", *stream(frame(1), Gate("reloaded"), frame(2), frame(3), DONE))
    site.upstream.on("new", *stream(frame(1), DONE))
    with Nginx([site.often.url]) as front:
        with post(front, "reloaded") as answer:
            events = answer.events(1)
            old = front.workers()
            front.reload()
            wait_until(lambda: sum(alive(pid) for pid in old) == 1, 10, "the idle old workers' end")
            with post(front, "new") as other:
                assert check(other.events()) == (1, "done")
            site.upstream.open("reloaded")
            assert check(events + answer.events()) == (3, "done")
            assert answer.ended == "zero-chunk"
        wait_until(lambda: not any(alive(pid) for pid in old), 10, "the last old worker's end")


def test_a_replica_is_taken_out_by_a_reload(site: BeatingSite) -> None:
    """The rolling restart of deploy/README.md: its streams run on, new ones go elsewhere."""
    site.upstream.on("run-on", *stream(frame(1), Gate("run-on"), frame(2), DONE))
    site.upstream.on("elsewhere", *stream(frame(1), DONE))
    with Nginx([site.often.url, site.seldom.url]) as front:
        answers = [post(front, "run-on") for _ in range(4)]
        events = [answer.events(1) for answer in answers]
        config = front.folder / "relay.conf"
        address = site.seldom.url.removeprefix("http://")
        config.write_text(re.sub(rf"server {address} resolve[^;]*;", f"server {address} down;", config.read_text()))
        front.reload()
        here = [stream_is_on(site.often, answer) for answer in answers]
        assert sorted(here) == [False, False, True, True]
        for _ in range(4):
            with post(front, "elsewhere") as other:
                assert check(other.events()) == (1, "done")
                assert stream_is_on(site.often, other)
        site.upstream.open("run-on")
        for seen, answer in zip(events, answers, strict=True):
            assert check(seen + answer.events()) == (2, "done")
            answer.close()


def stream_is_on(relay: RelayProcess, answer: RawStream) -> bool:
    with open_stream(
        f"{relay.url}/streams/{answer.headers['relay-stream-id']}", "GET", {**AUTH, "accept": "application/json"}
    ) as status:
        return status.status == 200


def test_plain_nginx_refuses_a_long_prompt(site: BeatingSite) -> None:
    """The control of `client_max_body_size`."""
    with Nginx([site.often.url], plain="") as front, post(front, "long", prompt="x" * (2 << 20)) as answer:
        assert answer.status == 413
    assert site.upstream.calls_of("long") == []


@pytest.mark.parametrize("ignoring", [False, True])
def test_buffering_holds_events_back_where_the_relays_header_is_ignored(site: BeatingSite, ignoring: bool) -> None:
    """The control of the untimed proof in test_through_proxies.py: it can fail."""
    model = f"buffered-{ignoring}"
    site.upstream.on(model, *stream(frame(1), Gate(model), frame(2), DONE))
    plain = "proxy_http_version 1.0;" + (" proxy_ignore_headers X-Accel-Buffering;" if ignoring else "")
    with Nginx([site.seldom.url], plain=plain) as front:
        if not ignoring:
            with post(front, model) as answer:
                assert check(answer.events(1)) == (1, None)
                site.upstream.open(model)
            return
        with pytest.raises(TimeoutError):
            open_stream(front.url + PATH, headers=AUTH, body={"model": model, "stream": True}, timeout=2)


@pytest.mark.parametrize("often", [True, False])
def test_heartbeats_carry_a_silent_stream_over_the_read_timeout(site: BeatingSite, often: bool) -> None:
    model = f"silent-{often}"
    site.upstream.on(model, *stream(frame(1), Gate(model), frame(2), DONE))
    relay = site.often if often else site.seldom
    with Nginx([relay.url], plain="proxy_read_timeout 2s;") as front, post(front, model) as answer:
        events = answer.events(1)
        if often:
            beats = [next(iter(answer)) for _ in range(8)]
            assert all(beat.is_heartbeat for beat in beats)
            site.upstream.open(model)
        events += answer.events()
    assert check(events) == ((2, "done") if often else (1, None))
    assert (answer.ended == "zero-chunk") == often
