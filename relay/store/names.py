"""What the relay's keys in the store are called. A stream's keys share one hash tag, so that a Cluster keeps them on
one shard; a log's name is its shard channel's, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """All begin with the prefix: an ACL needs no more than it, and two deployments can share a server."""

    prefix: str = "relay:"

    def log(self, stream: str) -> bytes:
        return f"{self.prefix}{{{stream}}}:log".encode()

    def meta(self, stream: str) -> bytes:
        return f"{self.prefix}{{{stream}}}:meta".encode()

    def stream(self, log: bytes) -> str:
        """The stream of a log's name."""
        return log[len(self.prefix) + 1 : -5].decode()

    def name_key(self, name: str) -> bytes:
        """Another name of a stream: an idempotency key, a response's id."""
        return f"{self.prefix}name:{{{name}}}".encode()

    def replica(self, replica: str) -> bytes:
        return f"{self.prefix}replica:{{{replica}}}".encode()

    @property
    def replicas(self) -> bytes:
        return f"{self.prefix}replicas".encode()

    @property
    def recent(self) -> bytes:
        """Streams that have ended, by the times of their ends."""
        return f"{self.prefix}recent".encode()

    @property
    def webhooks(self) -> bytes:
        return f"{self.prefix}webhooks".encode()

    @property
    def secret(self) -> bytes:
        return f"{self.prefix}secret".encode()

    @property
    def sealed_secret(self) -> bytes:
        """Of its own, for replicas of version 0.1 would take what is sealed for the secret itself."""
        return f"{self.prefix}secret:sealed".encode()
