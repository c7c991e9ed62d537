"""Relays that are gone without a word, or that refuse, as nginx meets them: another relay gets the request, no matter
how many are gone, what DNS says meanwhile, and what the request is; and no relay ever gets it twice."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.deploy.proxies import Nginx
from tests.support.names import Names, silent_peer
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import free_port
from tests.support.scripted import Gate, stream
from tests.support.site import Site, one_relay
from tests.support.sseclient import RawStream, open_stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

AUTH = {"authorization": "Bearer sk-one"}
GONE = [f"127.0.0.{n}" for n in range(2, 7)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with one_relay() as found:
        yield found


@pytest.fixture
def names() -> Iterator[Names]:
    with Names() as found:
        yield found


def port_of(site: Site) -> int:
    return int(site.relay.url.rpartition(":")[2])


def named(site: Site, names: Names, *more: tuple[str, str]) -> Nginx:
    """nginx as compose has it: one name, whose addresses are asked for again and again."""
    port = port_of(site)
    address = site.relay.url.removeprefix("http://")
    return Nginx(
        [site.relay.url],
        more=[
            (f"server {address} resolve", f"server relay.test:{port} resolve"),
            ("resolver 127.0.0.11 valid=5s", f"resolver {names.address} valid=1s"),
            *more,
        ],
    )


def post(front: Nginx, model: str, **headers: str) -> RawStream:
    return open_stream(front.url + PATH, headers={**AUTH, **headers}, body={"model": model, "stream": True}, timeout=20)


@pytest.mark.parametrize("refusing", [True, False])
def test_every_relay_is_tried_before_a_client_is_told_that_there_is_none(site: Site, refusing: bool) -> None:
    """Those that end or are gone have the fewest connections, so `least_conn` picks all of them first."""
    model = f"all-but-one-{refusing}"
    site.upstream.on(model, *stream(frame(1), DONE))
    port = port_of(site)
    gone = GONE if refusing else GONE[:3]
    with ExitStack() as stack:
        if not refusing:
            for address in gone:
                stack.enter_context(silent_peer(address, port))
        relays = [*(f"http://{address}:{port}" for address in gone), site.relay.url]
        # None is remembered as failed: each request meets all of them.
        front = stack.enter_context(Nginx(relays, more=[("resolve fail_timeout=1s", "resolve max_fails=0")]))
        for _ in range(6):
            with post(front, model) as answer:
                assert answer.status == 200
                assert check(answer.events()) == (1, "done")
    assert len(site.upstream.calls_of(model)) == 6


def test_a_request_outlives_the_list_of_relays_that_it_began_with(site: Site, names: Names) -> None:
    """A relay is gone, and the first requests after that wait for it; DNS drops it while they do. nginx then takes the
    list that they have for spent."""
    port = port_of(site)
    site.upstream.on("new-list", *stream(frame(1), DONE))
    names.addresses = ["127.0.0.1", "127.0.0.2"]
    with silent_peer("127.0.0.2", port), named(site, names) as front:
        wait_until(lambda: names.asked >= 2, 10, "nginx's first look")
        found: list[int] = []

        def ask() -> None:
            with post(front, "new-list") as answer:
                found.append(answer.status)
                assert check(answer.events()) == (1, "done")

        for round in range(4):
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            seen = names.asked
            wait_until(lambda seen=seen: names.asked > seen + 1, 10, "the list with both")  # type: ignore[misc]
            clients = [threading.Thread(target=ask) for _ in range(8)]
            names.addresses = ["127.0.0.1"] if round % 2 else ["127.0.0.1", "127.0.0.3"]
            for client in clients:
                client.start()
            for client in clients:
                client.join(30)
        assert found == [200] * 32
    assert len(site.upstream.calls_of("new-list")) == 32


def test_a_resume_survives_a_relay_that_is_gone(site: Site) -> None:
    site.upstream.on("resumed", *stream(frame(1), Gate("resumed"), frame(2), DONE))
    port = port_of(site)
    with silent_peer("127.0.0.2", port), Nginx([f"http://127.0.0.2:{port}", site.relay.url]) as front:
        with post(front, "resumed") as answer:
            first = answer.events(1)
        site.upstream.open("resumed")
        with post(front, "resumed", **{"last-event-id": str(first[0].id)}) as answer:
            assert answer.status == 200
            assert check(first + answer.events()) == (2, "done")
    assert len(site.upstream.calls_of("resumed")) == 1


@pytest.mark.parametrize("refused_first", [False, True])
def test_what_a_relay_got_is_never_sent_again(site: Site, refused_first: bool) -> None:
    """A relay that ends in the middle of a POST, and one that does not answer: 502 and 504, and one call each; also
    where another relay had refused the request before."""
    calls: list[bytes] = []

    class Hanging(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            calls.append(line)
            if b"/cut" in line:
                return
            self.rfile.read(1 << 16)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hanging) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            address = "http://{}:{}".format(*server.server_address)
            front = Nginx([site.relay.url], more=[("proxy_read_timeout 610s", "proxy_read_timeout 1s")])
            config = front.folder / "relay.conf"
            text = config.read_text()
            own = site.relay.url.removeprefix("http://")
            hanging = f"server {address.removeprefix('http://')} max_fails=0"
            refusing = f"server 127.0.0.1:{free_port()} max_fails=0; " if refused_first else ""
            with front:
                config.write_text(text.replace(f"server {own} resolve", refusing + hanging))
                front.reload()
                for path, status in (("/v1/cut", 502), ("/v1/silent", 504)) * 2:
                    begun = time.monotonic()
                    with open_stream(front.url + path, headers=AUTH, body={"model": "m"}, timeout=20) as answer:
                        assert answer.status == status
                    assert time.monotonic() - begun < 10
        finally:
            server.shutdown()
            serving.join()
    assert [line.split()[1] for line in calls] == [b"/v1/cut", b"/v1/silent"] * 2


def test_a_ticket_is_in_no_log(site: Site) -> None:
    """Neither of an answer nor of a failure."""
    with Nginx([site.relay.url]) as front:
        for path in ("/streams/st_none?ticket=SECRET", "/v1/models?key=SECRET"):
            with open_stream(front.url + path, "GET", AUTH) as answer:
                answer.read()
        wait_until(lambda: "/v1/models" in front.log(), 10, "the line")
        assert "/streams/st_none HTTP/1.1" in front.log()
        assert "SECRET" not in front.log()
    with Nginx([site.relay.url]) as front:
        text = (front.folder / "relay.conf").read_text()
        dead = f"127.0.0.1:{free_port()}"
        (front.folder / "relay.conf").write_text(text.replace(site.relay.url.removeprefix("http://"), dead))
        front.reload()
        with open_stream(front.url + "/streams/st_none?ticket=SECRET", "GET", AUTH) as answer:
            assert answer.status == 502
        wait_until(lambda: " 502 " in front.log(), 10, "the line")
        assert "SECRET" not in front.log()
