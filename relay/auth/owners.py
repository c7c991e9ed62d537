"""Whose a stream is: what stands for a credential in the log, on every replica the same.

A credential is never stored. Its HMAC with the deployment's secret is: the secret of the settings, or one that the
replicas share through their store. Where there was no credential at all, a stream belongs to nobody: nobody who comes
back is taken for who began it, and only a ticket opens it.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable
from enum import Enum

from relay.protocol.errors import StoreUnavailable
from relay.store.directory import Directory, new_secret

logger = logging.getLogger(__name__)


NOBODY = b"\0nobody"
"""The identity of who shows no credential. No credential is this: none holds a NUL."""


def of_key(owner: str) -> bytes:
    """The identity of who shows a key of the relay's. No header can hold a NUL: no credential of the other mode is
    this."""
    return b"\0owner\0" + owner.encode()


class _TicketHolder:
    """In a credential's place: a ticket for just the stream asked for was shown, and checked."""


TICKET_HOLDER = _TicketHolder()
Principal = bytes | _TicketHolder
"""Who asks for a stream: the identity of a credential, or the holder of a ticket for it."""


class Use(Enum):
    """What a digest with the deployment's secret is for."""

    TICKET = "ticket"
    KEY = "idempotency key"
    REQUEST = "request"
    CLAIM = "claim"
    RETRY = "retry"
    NAME = "stream name"


_NO_NAMES: frozenset[str] = frozenset()


class Owners:
    """One per replica. `given` is the secret of the settings, None where the replicas share one."""

    def __init__(self, directory: Directory, given: bytes | None) -> None:
        self._directory = directory
        self._take(given or new_secret())
        self._is_given = given is not None
        self.secret_known = self._is_given
        """Is what stands for a credential here what stands for it on every replica?"""
        self.names: Callable[[], frozenset[str]] = lambda: _NO_NAMES
        """Those of the owners of the relay's keys; another set where they have changed."""
        self._named: tuple[frozenset[str], dict[str, str]] = _NO_NAMES, {}

    def shown(self, owner: str) -> str:
        """An owner in a line of the log: by name where the relay's keys name it, else the begin of its HMAC."""
        names = self.names()
        if self._named[0] is not names:
            self._named = names, {self.owner(of_key(name)): name for name in names}
        return self._named[1].get(owner, owner[:12])

    def _take(self, secret: bytes) -> None:
        """`hmac.digest` looks the algorithm up and derives two keys each time: here that is done once for all."""
        self._secret = secret
        self._mac = hmac.new(secret, digestmod="sha256")
        # No identity begins with two NULs: it is a header's value, or `\0owner\0…`.
        self._macs = {use: hmac.new(secret, b"\0\0" + _parts(use.value.encode()), "sha256") for use in Use}

    async def share_secret(self) -> None:
        """Also asked now and then: a store that came back empty gets the same secret again, so that replicas that
        start later know the owners of what runs. Raises StoreUnavailable."""
        if self._is_given:
            return
        secret = await self._directory.share_secret(self._secret, shared=self.secret_known)
        if self.secret_known and secret != self._secret:
            logger.warning("the deployment has an older secret; who made streams here since may not find them again")
        if secret != self._secret:
            self._take(secret)
        self.secret_known = True

    async def know_secret(self) -> None:
        """Have the secret that the replicas share. Raises StoreUnavailable."""
        if not self.secret_known:
            await self.share_secret()

    async def of_credential(self, identity: bytes) -> str:
        """The owner that a credential's identity stands for; for NOBODY one that has no stream, each time another.
        Raises StoreUnavailable."""
        await self.know_secret()
        return self.owner(identity if identity != NOBODY else NOBODY + secrets.token_bytes(16))

    async def of_principal(self, principal: Principal) -> str | None:
        """The owner who asks; None with a ticket. Raises StoreUnavailable."""
        return None if isinstance(principal, _TicketHolder) else await self.of_credential(principal)

    async def of_new_stream(self, identity: bytes, *, may_degrade: bool) -> str:
        """The owner of a stream that begins, which an unreachable store need not hinder where streams may be relayed
        without a log: it is known to this replica alone then. Raises StoreUnavailable."""
        if not self.secret_known:
            try:
                await self.share_secret()
            except StoreUnavailable:
                if not may_degrade:
                    raise
        return self.owner(identity)

    def owner(self, identity: bytes) -> str:
        """As in version 0.1, whose streams have such owners; to be called once the secret is known."""
        mac = self._mac.copy()
        mac.update(identity)
        return mac.hexdigest()

    def digest(self, use: Use, *parts: bytes) -> str:
        """What stands for secrets in a name, or signs them; to be called once the secret is known. No two uses have a
        digest in common, whatever their parts are, and none has one with an owner."""
        mac = self._macs[use].copy()
        mac.update(_parts(*parts))
        return mac.hexdigest()


def _parts(*parts: bytes) -> bytes:
    """Each says its length."""
    return b"".join([len(part).to_bytes(8) + part for part in parts])


def owns(asking: str | None, owner: str) -> bool:
    """Is a stream of `owner` the asker's? With a ticket (None) it is."""
    return asking is None or hmac.compare_digest(asking, owner)
