"""Real servers for tests: one Valkey, one behind TLS, a Sentinel group, a Cluster.

Each is a context manager that yields a store with its `url` and its `servers`, on free loopback ports or a
unix socket. Whatever a test does to the servers (kill, pause, an exception), each is ended by its pid at the
end. A server that does not start, or a wait that takes too long, raises. With a `guard` they are servers as
`deploy/redis` has them (see `guarded`).
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.store.embedded import server_binary
from tests.support.processes import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.guarded import Guard

START_TIMEOUT = 15.0

_SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    "daemonize": "no",
    "enable-debug-command": "yes",  # DEBUG SLEEP and its like are faults to play
    "repl-diskless-sync-delay": "0",
    "shutdown-timeout": "0",
}


class Server:
    """One Valkey process. `restart` uses the same port and directory."""

    def __init__(
        self,
        directory: Path,
        settings: dict[str, str],
        *,
        port: int = 0,
        unix_socket: Path | None = None,
        config_file: Path | None = None,
        program: Sequence[str] | None = None,
        url: str | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port
        self.unix_socket = unix_socket
        self._command = list(program or [str(server_binary())])
        if config_file is not None:
            self._command += [str(config_file), "--sentinel"]
        else:
            place = {"port": str(port), "dir": str(directory)}
            if unix_socket is not None:
                place["unixsocket"] = str(unix_socket)
            for name, value in {**_SETTINGS, **place, **settings}.items():
                self._command += [f"--{name}", value]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = url or (f"unix://{unix_socket}" if unix_socket is not None else f"redis://127.0.0.1:{port}")
        # One new try, for a connection that a restart has broken; the default's many hide a dead server.
        self._client = redis.Redis.from_url(
            self.url, socket_timeout=5, retry=Retry(NoBackoff(), 1), decode_responses=True
        )

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    def client(self) -> redis.Redis:
        """One client per server, decoding, closed with it; it reconnects after a restart."""
        return self._client

    def command(self, *words: str | int) -> Any:
        return self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    def start(self, *, wait: bool = True) -> None:
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(self._answers, START_TIMEOUT, f"a server in {self.directory}")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            log = (self.directory / "server.log").read_text(errors="replace")
            raise RuntimeError(f"The server in {self.directory} has ended:\n{log[-2000:]}")
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it in order; paused or not."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def restart(self) -> None:
        """Start it again, ending it first if it runs: empty, unless it has an append-only file."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """It keeps its connections and answers nothing, like a blackhole."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._client.close()
        self.stop()


@dataclass
class Store:
    """Servers that are one store, and the address that a relay is given."""

    url: str
    servers: list[Server] = field(default_factory=list)


@contextmanager
def valkey_server(
    directory: Path, *, appendonly: bool = False, unix: bool = False, config: Sequence[tuple[str, str]] = ()
) -> Iterator[Store]:
    """One server; `config` is pairs of a Valkey setting and its value."""
    with ExitStack() as stack:
        settings = {"appendonly": "yes" if appendonly else "no", **dict(config)}
        if unix:
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-"))  # a test's own may not bind
            server = Server(directory, settings, unix_socket=Path(short) / "valkey.sock")
        else:
            server = Server(directory, settings, port=free_port())
        stack.callback(server.close)
        server.start()
        yield Store(server.url, [server])


@contextmanager
def valkey_tls(directory: Path) -> Iterator[Store]:
    """A server that TCP reaches only through TLS, with a certificate of a private CA.

    The wheel's Valkey is built without TLS ("Failed finding TLS support"), so a real TLS terminator stands in
    front of it; the server itself listens on a unix socket only.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    directory.mkdir(parents=True, exist_ok=True)
    authority_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(authority_file))
    with valkey_server(directory, unix=True) as store:
        socket_path = store.servers[0].unix_socket
        assert socket_path is not None
        port = free_port()
        with _tls_terminator(port, context, socket_path):
            yield Store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority_file}", store.servers)


@contextmanager
def _tls_terminator(port: int, context: ssl.SSLContext, backend: Path) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tls-terminator")
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        pipes.add(task)
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(str(backend))
            try:
                await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))
            finally:
                inner_writer.close()
        except OSError:
            pass  # the server is down: the client sees its connection closed
        finally:
            writer.close()
            pipes.discard(task)

    async def start() -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        for task in list(pipes):
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(START_TIMEOUT)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(stop(server), loop).result(START_TIMEOUT)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass
class SentinelStore(Store):
    """A primary, its replica and one sentinel, which is enough to decide (quorum 1)."""

    name: str = "relay"

    @property
    def sentinel(self) -> Server:
        return self.servers[-1]

    def primary(self) -> Server:
        """The server that the sentinel names."""
        _, port = self.sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(port))

    def replica(self) -> Server:
        primary = self.primary()
        return next(server for server in self.servers[:2] if server is not primary)

    def failover(self, timeout: float = 20.0) -> None:
        """Promote the replica; return when the sentinel names it and it takes writes.

        The old primary goes on taking writes until the sentinel turns it into a replica, a moment later:
        `wait_settled` waits for that.
        """
        wanted = self.replica()
        self.sentinel.command("SENTINEL", "FAILOVER", self.name)
        wait_until(
            lambda: self.primary() is wanted and wanted.client().info("replication")["role"] == "master",
            timeout,
            "the failover",
        )

    def wait_settled(self, timeout: float = 30.0) -> None:
        """Return when the replica follows the primary and the sentinel knows it."""

        def settled() -> bool:
            replica = self.replica()
            replication = replica.client().info("replication")
            return (
                replication["role"] == "slave"
                and replication["master_port"] == self.primary().port
                and replication["master_link_status"] == "up"
                and any(
                    known["port"] == replica.port and known["flags"] == "slave"
                    for known in self.sentinel.client().sentinel_slaves(self.name)
                )
            )

        wait_until(settled, timeout, "the replica")


@contextmanager
def valkey_sentinel(directory: Path, guard: Guard | None = None) -> Iterator[SentinelStore]:
    make = guard.server if guard else Server
    with ExitStack() as stack:
        primary = make(directory / "primary", {}, port=free_port())
        follow = {"replicaof": f"127.0.0.1 {primary.port}"}
        replica = make(directory / "replica", follow, port=free_port())
        port = free_port()
        config_file = directory / "sentinel.conf"
        name = SentinelStore.name
        config_file.write_text(
            f"""port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor {name} 127.0.0.1 {primary.port} 1
sentinel down-after-milliseconds {name} 500
sentinel failover-timeout {name} 3000
"""
        )
        if guard:
            sentinel = guard.sentinel(directory / "sentinel", config_file, name, port=port)
            url = guard.url(f"127.0.0.1:{port}/{name}", form="+sentinel")
        else:
            sentinel = Server(directory / "sentinel", {}, port=port, config_file=config_file)
            url = f"redis+sentinel://127.0.0.1:{port}/{name}"
        store = SentinelStore(url, [primary, replica, sentinel])
        for server in store.servers:
            stack.callback(server.close)
        primary.start(wait=False)
        replica.start()
        wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", START_TIMEOUT)
        sentinel.start()
        # By default it asks for roles every ten seconds, lets a returned primary be for eight, and takes
        # up to a second to reconnect after a failover: longer than `down-after`, so it would fail over again.
        # While the primary is down it asks its replicas every second, and believes them for 5 pings' time.
        sentinel.command("SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "PING-PERIOD", 300)
        store.wait_settled(START_TIMEOUT)
        yield store


@dataclass
class ClusterStore(Store):
    """Three primaries without replicas, each with a third of the slots; `moved` is those that are elsewhere by now."""

    moved: dict[int, Server] = field(default_factory=dict)

    def wait_ok(self, timeout: float = START_TIMEOUT) -> None:
        """Return when every node knows every node and all slots are served."""

        def ok(server: Server) -> bool:
            info = server.command("CLUSTER", "INFO").split()
            return "cluster_state:ok" in info and f"cluster_known_nodes:{len(self.servers)}" in info

        wait_until(lambda: all(ok(server) for server in self.servers), timeout, "the cluster")

    def of_key(self, key: str) -> Server:
        """The server that holds the key."""
        slot = int(self.servers[0].command("CLUSTER", "KEYSLOT", key))
        return self.moved.get(slot, self.servers[slot * len(self.servers) // 16384])


def cluster_settings(bus: int) -> dict[str, str]:
    return {
        "cluster-enabled": "yes",
        "cluster-port": str(bus),  # by default port + 10000, which may be taken
        "cluster-announce-ip": "127.0.0.1",
        "cluster-node-timeout": "2000",
    }


@contextmanager
def valkey_cluster(directory: Path, guard: Guard | None = None) -> Iterator[ClusterStore]:
    make = guard.server if guard else Server
    with ExitStack() as stack:
        servers: list[Server] = []
        buses: list[int] = []
        for number in range(3):
            buses.append(free_port())
            servers.append(make(directory / f"node{number}", cluster_settings(buses[-1]), port=free_port()))
            stack.callback(servers[-1].close)
            servers[-1].start(wait=False)
        bounds = [-(-16384 * number // 3) for number in range(4)]
        for number, server in enumerate(servers):
            server.wait_ready()
            server.command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                servers[0].command("CLUSTER", "MEET", "127.0.0.1", server.port, buses[number])
        address = f"127.0.0.1:{servers[0].port}"
        url = guard.url(address, form="+cluster") if guard else f"redis+cluster://{address}"
        store = ClusterStore(url, servers)
        store.wait_ok()
        yield store
