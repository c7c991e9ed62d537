"""Servers as `deploy/redis` has them: its settings, its users, and TLS that asks clients for a certificate.

They are Redis, from the system: the wheel's Valkey is built without TLS. The users alone go on that, too.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from tests.support.processes import free_port, needs
from tests.support.stores import Server, Store

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "redis"
PASSWORD = "known-to-the-tests"


def login(user: str, password: str = PASSWORD) -> str:
    """What stands before the host in a URL."""
    return f"{user}:{password}@"


def shipped_users(directory: Path) -> Path:
    """The users of `deploy/redis`, each with PASSWORD."""
    text = (SHIPPED / "users.acl").read_text()
    users = directory / "users.acl"
    directory.mkdir(parents=True, exist_ok=True)
    users.write_text(text.replace("#" + "0" * 64, "#" + hashlib.sha256(PASSWORD.encode()).hexdigest()))
    return users


@contextmanager
def valkey_with_users(directory: Path) -> Iterator[Store]:
    """A Valkey without TLS that has these users; the relay is given a database with a number."""
    port = free_port()
    url = f"redis://{login('operator')}127.0.0.1:{port}/1"
    server = Server(directory / "server", {"aclfile": str(shipped_users(directory))}, port=port, url=url)
    try:
        server.start()
        yield Store(url.replace("operator", "relay"), [server])
    finally:
        server.close()


class Guard:
    """Makes servers of `deploy/redis/store.conf`, and certificates of one authority for them and their clients."""

    def __init__(self, directory: Path) -> None:
        needs(shutil.which("redis-server"), "a Redis built with TLS: apt-get install redis-server")
        self.users = shipped_users(directory)
        authority = trustme.CA()
        self.authority_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.authority_file))
        self._server, self.client = directory / "server.pem", directory / "client.pem"
        for file in (self._server, self.client):
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))

    @property
    def tls(self) -> dict[str, str]:
        """A server's settings, as names of files."""
        files = {"tls-cert-file": self._server, "tls-key-file": self._server, "tls-ca-cert-file": self.authority_file}
        return {name: str(file) for name, file in files.items()}

    def url(self, address: str, user: str = "relay", form: str = "", *, certificate: bool = True) -> str:
        """Where a client with, or without, a certificate reaches `address`."""
        client = f"&ssl_certfile={self.client}&ssl_keyfile={self.client}" if certificate else ""
        return f"rediss{form}://{login(user) if user else ''}{address}?ssl_ca_certs={self.authority_file}{client}"

    def server(self, directory: Path, settings: dict[str, str], *, port: int) -> Server:
        place = {"port": "0", "tls-port": str(port), "aclfile": str(self.users)}
        replication = {"masteruser": "replica", "masterauth": PASSWORD}
        directory.mkdir(parents=True, exist_ok=True)
        own = str(shutil.copy(SHIPPED / "store.conf", directory))  # Sentinel writes into it
        return Server(
            directory,
            {**place, **self.tls, **replication, **settings},
            port=port,
            program=["redis-server", own],
            url=self.url(f"127.0.0.1:{port}", "operator"),
        )

    def sentinel(self, directory: Path, config_file: Path, name: str, *, port: int) -> Server:
        lines = [f"{setting} {value}" for setting, value in self.tls.items()]
        lines += [f"tls-port {port}", "port 0", "tls-replication yes", "tls-auth-clients yes"]
        lines += [f"sentinel auth-user {name} sentinel", f"sentinel auth-pass {name} {PASSWORD}"]
        config_file.write_text("\n".join([config_file.read_text(), *lines, ""]))
        url = self.url(f"127.0.0.1:{port}", "")
        return Server(directory, {}, port=port, config_file=config_file, program=["redis-server"], url=url)


@contextmanager
def guarded_server(directory: Path) -> Iterator[Store]:
    """One server as `deploy/redis` has it."""
    guard = Guard(directory)
    server = guard.server(directory / "server", {}, port=free_port())
    try:
        server.start()
        yield Store(guard.url(f"127.0.0.1:{server.port}"), [server])
    finally:
        server.close()
