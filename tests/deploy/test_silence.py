"""A stream of 90 s with silences of 70 s, through proxies whose time-outs are shorter than that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.deploy.proxies import Envoy, Nginx, Proxy
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Pause, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream


@pytest.mark.timeout(180)
def test_a_silent_stream_of_ninety_seconds(upstream: ScriptedUpstream) -> None:
    """Plain nginx reads for 60 s at most (`proxy_read_timeout`), Envoy answers for 15 s at most (its route's
    `timeout`) where deploy/envoy does not say otherwise. The relay beats every 15 s, as by default."""
    script = stream(frame(1), Pause(70), frame(2), Pause(20), frame(3), DONE)
    upstream.on("silent", *script)
    with (
        RelayProcess({"upstreams": [{"name": "scripted", "base_url": upstream.url}]}) as relay,
        Nginx([relay.url], plain="") as plain,
        Nginx([relay.url]) as nginx,
        Envoy([relay.url]) as envoy,
        Envoy([relay.url], "relay_h2c") as envoy_h2c,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = list(pool.map(whole, (plain, nginx, envoy, envoy_h2c)))
    for answer in answers:
        assert answer.ended == "zero-chunk"
        assert answer.raw_body.count(b": hb\n") >= 4
    assert len(upstream.calls_of("silent")) == 4


def whole(front: Proxy) -> RawStream:
    body = {"model": "silent", "stream": True, "messages": []}
    with open_stream(front.url + PATH, headers={"authorization": "Bearer k"}, body=body, timeout=30) as answer:
        assert check(answer.events()) == (3, "done"), front
    return answer
