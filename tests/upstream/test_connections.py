"""Connections to upstreams: proxies, certificates, and idle connections that their upstream closes."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from yarl import URL

from relay.check import found_at, models_at
from relay.config import SettingsError, UpstreamSettings, load
from relay.protocol.errors import UpstreamUnreachable
from relay.upstream.client import UpstreamClient, body_of
from relay.upstream.connections import proxy_for
from tests.support.scripted import Head, ScriptedUpstream, json_response

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def settings(**more: object) -> UpstreamSettings:
    return UpstreamSettings(name="u", base_url="http://u", **more)


async def fetched(client: UpstreamClient, upstream: UpstreamSettings, url: str) -> bytes:
    response = await client.send(upstream, "POST", url, [], b"{}")
    try:
        return b"".join([chunk async for chunk in body_of(response)])
    finally:
        await body_of(response).aclose()


class TestProxy:
    ENVIRONMENT = (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
    )

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self.ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        ("given", "url", "proxy"),
        [
            ({}, "https://llm.example/v1/x", None),
            ({"HTTPS_PROXY": "http://p:3128"}, "https://llm.example/v1/x", "http://p:3128"),
            ({"HTTPS_PROXY": "http://p:3128"}, "http://llm.example/v1/x", None),
            ({"http_proxy": "p:3128"}, "http://llm.example/v1/x", "http://p:3128"),
            ({"ALL_PROXY": "http://p:1"}, "https://llm.example/v1/x", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, "https://llm.example/v1/x", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "llm.example:8443"}, "https://llm.example:8443/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "llm.example:8443"}, "https://llm.example/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}, "https://llm.example/v1/x", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x, *.example"}, "https://llm.example/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.example"}, "https://example/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.ample"}, "https://llm.example/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "LLM.Example."}, "https://llm.example/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "m.example."}, "https://llm.example/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "."}, "https://llm.example/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3:8443/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://llm.example/", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "[::1],fd00::/8"}, "https://[::1]:8443/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "[::1],fd00::/8"}, "https://[fd12::1]/", None),
            ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/99,/,"}, "https://10.1.2.3/", "http://p:1"),
        ],
    )
    def test_the_environment_says_which(
        self, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], url: str, proxy: str | None
    ) -> None:
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        found, auth = proxy_for(settings(), URL(url))
        assert (found, auth) == (None if proxy is None else URL(proxy), None)

    def test_an_upstream_s_own_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
        monkeypatch.setenv("NO_PROXY", "*")
        found, auth = proxy_for(settings(proxy="http://me:pass%40word@q:2"), URL("https://llm.example/"))
        assert found == URL("http://q:2")
        assert auth == "Basic " + base64.b64encode(b"me:pass@word").decode()

    @pytest.mark.parametrize("off", ["off", False])
    def test_it_can_be_none(self, monkeypatch: pytest.MonkeyPatch, off: object) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
        assert proxy_for(settings(proxy=off), URL("https://llm.example/")) == (None, None)

    def test_a_bad_one_is_refused_and_its_password_not_shown(self) -> None:
        with pytest.raises(SettingsError, match=r"upstreams\.0\.proxy") as told:
            load(flags={"upstreams": [{"name": "u", "base_url": "http://u", "proxy": "socks5://me:secret@p"}]})
        assert "secret" not in str(told.value)

    def test_one_of_the_environment_that_speaks_no_http_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@p:1080")
        with pytest.raises(UpstreamUnreachable, match=r"does not speak HTTP \(socks5\)\. Set the upstream's `proxy`"):
            proxy_for(settings(), URL("https://llm.example/"))
        assert proxy_for(settings(proxy="off"), URL("https://llm.example/")) == (None, None)

    def test_check_tells_of_the_one_that_stands_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:1")
        told = subprocess.run(
            [sys.executable, "-m", "relay", "check", "--upstream", "https://llm.example", "--store", "redis://127.0.0.1:1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "through the proxy http://127.0.0.1:1, which the environment names" in told.stdout
        assert "secret" not in told.stdout

    def test_the_request_goes_there_with_its_whole_address(self) -> None:
        asked: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(ANSWER)
            writer.close()

        async def call() -> bytes:
            async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                client = UpstreamClient()
                try:
                    proxied = settings(proxy=f"http://me:word@127.0.0.1:{port}")
                    return await fetched(client, proxied, "http://llm.invalid/v1/x?y=%2F")
                finally:
                    await client.close()

        assert asyncio.run(asyncio.wait_for(call(), 10)) == b"ok"
        assert asked[0].startswith(b"POST http://llm.invalid/v1/x?y=%2F HTTP/1.1\r\n")
        assert asked[0].count(b"Basic bWU6d29yZA==") == 1

    def test_one_that_says_nothing_of_a_tunnel_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("relay.upstream.client.CONNECT_TIMEOUT", 0.1)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async def call() -> None:
            async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
                proxied = settings(proxy=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
                client = UpstreamClient()
                try:
                    with pytest.raises(UpstreamUnreachable, match="ConnectionTimeoutError"):
                        await fetched(client, proxied, "https://llm.invalid/v1/x")
                finally:
                    await client.close()

        asyncio.run(asyncio.wait_for(call(), 10))


class TestIdleConnections:
    """What an upstream has closed, or may be about to close, carries no request: nothing is sent twice."""

    @staticmethod
    def ports(pause: float, *, keepalive: float, kept_upstream: float) -> list[int]:
        """The peer's port of each of two calls."""
        seen: list[int] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                try:
                    async with asyncio.timeout(kept_upstream):
                        await reader.readuntil(b"\r\n\r\n{}")
                except (TimeoutError, asyncio.IncompleteReadError):
                    writer.close()
                    return
                seen.append(writer.get_extra_info("peername")[1])
                writer.write(ANSWER)

        async def calls() -> None:
            async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
                client = UpstreamClient()
                for _ in range(2):
                    assert await fetched(client, settings(keepalive=keepalive), url) == b"ok"
                    await asyncio.sleep(pause)
                await client.close()

        asyncio.run(asyncio.wait_for(calls(), 10))
        return seen

    def test_one_is_used_again(self) -> None:
        first, second = self.ports(0.05, keepalive=5, kept_upstream=5)
        assert first == second

    def test_it_is_given_up_after_keepalive(self) -> None:
        first, second = self.ports(0.2, keepalive=0.1, kept_upstream=5)
        assert first != second

    def test_one_whose_end_has_come_but_was_not_read_is_not_used(self) -> None:
        """The process was busy as it came: nothing has been read since."""
        listener = socket.create_server(("127.0.0.1", 0))
        close, closed = threading.Event(), threading.Event()
        ports: list[int] = []

        def serve() -> None:
            for _ in range(2):
                connection, peer = listener.accept()
                with connection:
                    ports.append(peer[1])
                    while not connection.recv(4096).endswith(b"{}"):
                        pass
                    connection.sendall(ANSWER)
                    close.wait()
                closed.set()

        async def calls() -> None:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/x"
            client = UpstreamClient()
            assert await fetched(client, settings(), url) == b"ok"
            close.set()
            closed.wait()  # and the loop with it
            assert await fetched(client, settings(), url) == b"ok"
            await client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            asyncio.run(asyncio.wait_for(calls(), 10))
        finally:
            thread.join()
            listener.close()
        assert len(set(ports)) == 2


class TestCertificates:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, Path]:
        authority, other = trustme.CA(), trustme.CA()
        paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "other", "server", "client", "broken")}
        authority.cert_pem.write_to_path(paths["ca"])
        other.cert_pem.write_to_path(paths["other"])
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(paths["server"])
        authority.issue_cert("relay").private_key_and_cert_chain_pem.write_to_path(paths["client"])
        paths["broken"].write_text("nothing of the kind")
        return paths

    @staticmethod
    def call(files: dict[str, Path], upstream: UpstreamSettings, tunnel: bytes | None = None) -> bytes:
        """At a server that wants a certificate of its own authority; through a proxy that answers `tunnel` to CONNECT
        unless that is None."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files["ca"]))
        context.load_cert_chain(files["server"])
        context.verify_mode = ssl.CERT_REQUIRED

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(ANSWER)
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
            writer.close()

        tunnels: list[asyncio.Task[None] | None] = []

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tunnels.append(asyncio.current_task())
            method, address, _ = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
            assert method == b"CONNECT"
            assert tunnel is not None
            writer.write(tunnel)
            there = await asyncio.open_connection("127.0.0.1", int(address.rpartition(b":")[2]))
            await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

        async def fetch() -> bytes:
            async with (
                await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server,
                await asyncio.start_server(proxy, "127.0.0.1", 0) as between,
            ):
                client = UpstreamClient()
                to = upstream
                if tunnel is not None:
                    to = upstream.model_copy(
                        update={"proxy": f"http://127.0.0.1:{between.sockets[0].getsockname()[1]}"}
                    )
                try:
                    return await fetched(client, to, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x")
                finally:
                    await client.close()
                    for each in tunnels:
                        await each  # type: ignore[misc]

        return asyncio.run(asyncio.wait_for(fetch(), 10))

    def test_both_sides_prove_themselves(self, files: dict[str, Path]) -> None:
        assert self.call(files, settings(ca_file=files["ca"], client_cert=files["client"])) == b"ok"

    @pytest.mark.parametrize("more", [b"", b"content-length: 0\r\n", b"via: 1.1 x\r\nconnection: close\r\n"])
    def test_a_proxy_s_tunnel_leads_there(self, files: dict[str, Path], more: bytes) -> None:
        upstream = settings(ca_file=files["ca"], client_cert=files["client"])
        assert self.call(files, upstream, b"HTTP/1.1 200 Established\r\n" + more + b"\r\n") == b"ok"

    def test_a_proxy_that_makes_no_tunnel_is_told(self, files: dict[str, Path]) -> None:
        upstream = settings(ca_file=files["ca"], client_cert=files["client"])
        with pytest.raises(UpstreamUnreachable, match="ClientHttpProxyError"):
            self.call(files, upstream, b"HTTP/1.1 407 -\r\ncontent-length: 2\r\n\r\nno")

    def test_another_authority_s_upstream_is_not_believed(self, files: dict[str, Path]) -> None:
        with pytest.raises(UpstreamUnreachable):
            self.call(files, settings(ca_file=files["other"], client_cert=files["client"]))

    @pytest.mark.parametrize("name", ["ca_file", "client_cert"])
    @pytest.mark.parametrize("file", ["broken", "missing"])
    def test_a_file_that_cannot_be_used_stops_the_start(self, files: dict[str, Path], name: str, file: str) -> None:
        path = files.get(file, Path("missing.pem"))
        with pytest.raises(SettingsError, match=rf"{name} .*{path.name}: cannot be used .*; give a PEM file"):
            load(flags={"upstreams": [{"name": "u", "base_url": "https://u", name: str(path)}]})


class TestCheck:
    @pytest.mark.parametrize(
        ("status", "body", "words"),
        [
            (200, b'{"data":[{"id":"a"},{"id":"b"}]}', "ok, GET http://u/v1/models answers 200, 2 models"),
            (200, b"<html>", "no list of models: check that base_url"),
            (401, b"", "check the key in api_key_env"),
            (404, b"", "else check that base_url"),
        ],
    )
    def test_what_the_list_of_models_tells(self, status: int, body: bytes, words: str) -> None:
        assert words in found_at("http://u/v1/models", status, body, has_key=True)

    def test_without_a_key_a_refusal_is_none_of_the_relay_s_business(self) -> None:
        assert "which clients send" in found_at("http://u/v1/models", 403, b"", has_key=False)

    def test_a_redirect_is_told_with_where_it_leads(self, upstream: ScriptedUpstream) -> None:
        upstream.on_path("GET /v1/models", Head(301, {"location": "https://u.example/v1/models"}, "length"))

        async def checked() -> str:
            client = UpstreamClient()
            try:
                return await models_at(client, UpstreamSettings(name="a", base_url=upstream.url))
            finally:
                await client.close()

        told = asyncio.run(checked())
        assert "answers 301, a redirect to https://u.example, which is not followed: set its base_url" in told

    def test_an_application_is_asked_for_no_models(self, upstream: ScriptedUpstream) -> None:
        upstream.on_path("GET /app/", *json_response(404, {"error": "no such page"}))
        address = f"{upstream.url}/app"
        application = UpstreamSettings(name="a", base_url=address, apis=["sse"], paths=["/api"])

        async def checked() -> str:
            client = UpstreamClient()
            try:
                return await models_at(client, application)
            finally:
                await client.close()

        assert asyncio.run(checked()) == f"ok, GET {address}/ answers 404"
        assert [call.path for call in upstream.calls] == ["/app/"]
