"""The embedded store is full: who reads loses nothing, new streams go by `store.outage`, what has ended is there, and
when there is room again nothing has to be started anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import PATHS, chat, data
from tests.support.waiting import wait_until

AUTH = {"authorization": "Bearer sk-one"}
END = (chat({}, "stop"), data("[DONE]"))
WAIT = 20.0


def ask(relay: RelayProcess, model: str) -> RawStream:
    body = {"model": model, "stream": True, "messages": []}
    return open_stream(relay.url + PATHS["chat"], headers=AUTH, body=body)


def read(relay: RelayProcess, name: str, after: int = 0) -> RawStream:
    return open_stream(f"{relay.url}/streams/{name}", "GET", {**AUTH, "last-event-id": f"{name}.{after}"})


def fill(client: redis.Redis) -> None:
    """To 300 KB above what the server may take, as the last one of several large appends does."""
    memory: Any = client.info("memory")
    client.setrange("pad:most", memory["maxmemory"] - memory["used_memory"] - 50_000, b"x")
    client.setrange("pad:rest", 350_000, b"x")


def messages(relay: RelayProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in relay.log().splitlines()]


@pytest.mark.parametrize("outage", ["degrade", "refuse"])
def test_a_full_store(outage: str, upstream: ScriptedUpstream, relays: Relays) -> None:
    words = [chat({"content": f"word-{n}"}) for n in range(4)]
    upstream.on("small", *stream(*words, *END))
    upstream.on("live", *stream(words[0], Gate("full"), *words[1:3], Gate("room"), words[3], *END))
    settings = {
        "upstreams": [{"name": "up", "base_url": upstream.url}],
        "store": {"max_memory": "5MiB", "outage": outage, "hold": "200ms"},
        "log": {"format": "json"},
        "drain": {"timeout": "1s"},
    }
    relay = relays.start(settings)
    client = redis.Redis.from_url(f"unix://{relay.config['store']['data_dir']}/valkey.sock")
    assert client.config_get("maxmemory") == {"maxmemory": str(5 << 20)}
    with ask(relay, "small") as small:
        ended = small.headers["relay-stream-id"]
        whole = small.read()
    with ask(relay, "live") as live:
        running = live.headers["relay-stream-id"]
        seen = live.events(1)
        fill(client)

        def full() -> bool:
            return any("its memory is full" in line["message"] for line in messages(relay))

        wait_until(full, WAIT, "the log's line")
        (line,) = [line for line in messages(relay) if "its memory is full" in line["message"]]
        assert "store.max_memory" in line["message"]
        with open_stream(f"{relay.url}/readyz?store=required", "GET") as ready:
            assert ready.status == 503
        with open_stream(f"{relay.url}/readyz", "GET") as ready:
            assert ready.status == 200

        # A stream that runs goes on, with its ids, and can be come back to.
        upstream.open("full")
        seen += live.events(2)
        assert [event.id for event in seen] == [f"{running}.{n}" for n in (1, 2, 3)]
        with read(relay, running, 1) as again:
            assert [event.id for event in again.events(2)] == [f"{running}.2", f"{running}.3"]
        # What has ended is there.
        with read(relay, ended) as replay:
            assert replay.read() == whole
        # New ones go by `store.outage`.
        with ask(relay, "small") as new:
            if outage == "refuse":
                assert (new.status, new.json["error"]["code"]) == (503, "store_unavailable")
                assert int(new.headers["retry-after"]) > 0
            else:
                assert new.headers["relay-resumable"] == "false"
                assert len(new.events()) == 6
        calls = len([call for call in upstream.calls if call.json["model"] == "small"])
        assert calls == (1 if outage == "refuse" else 2)

        # Room again, as when something has outlived `streams.retention`.
        client.delete("pad:most", "pad:rest")
        wait_until(lambda: any("use it again" in line["message"] for line in messages(relay)), WAIT, "the log's line")
        upstream.open("room")
        seen += live.events()
        assert [event.id for event in seen] == [f"{running}.{n}" for n in range(1, 7)]
    wait_until(lambda: client.hget(f"relay:{{{running}}}:meta", "end") == b"completed", WAIT, "its end in the store")
    with read(relay, running) as replay:
        assert replay.events() == seen
    # The reason was said once, and not for each try.
    assert sum("used memory" in line["message"] for line in messages(relay)) < 5
    with ask(relay, "small") as new:
        assert new.headers["relay-resumable"] == "true"
        new.read()


def test_a_quarter_by_default_and_no_limit_where_it_is_off(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstreams = [{"name": "up", "base_url": upstream.url}]
    for given, found in (({}, None), ({"max_memory": "off"}, 0)):
        relay = relays.start({"upstreams": upstreams, "store": dict(given)})
        socket = Path(relay.config["store"]["data_dir"]) / "valkey.sock"
        limit = int(redis.Redis.from_url(f"unix://{socket}").config_get("maxmemory")["maxmemory"] or -1)
        if found is None:
            total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
            assert 0 < limit <= total // 4 + 4096
        else:
            assert limit == found
