"""The keys that are good now. A key is found by its hash: 10,000 cost a request what one does.

Promises: no key is held, only hashes. A change of the files takes effect within a second and the time to read them;
what cannot be read changes nothing and is logged once. A file that is still being written is not taken for a whole
one: it must have stood still from one look to the next (replacing it by a rename is safer still).
"""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.config import SettingsError
from relay.config.auth import KeySettings
from relay.config.units import Rate, parse_rate
from relay.protocol.keys import digest, is_key

logger = logging.getLogger(__name__)

# How soon a key that was taken out stops working; the files are only looked at, and read where they have changed.
_CHECK_EVERY = 0.5

_Signs = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """`digest` is its SHA-256, `expires` Unix seconds."""

    digest: bytes
    owner: str
    models: tuple[str, ...]
    paths: tuple[str, ...]
    rate: Rate | None
    concurrency: int | None
    expires: float
    name: str = ""

    @property
    def label(self) -> str:
        """What it is called in a line of the log: nothing of it or of its hash stands there."""
        return self.name or "unnamed"

    def may_ask_for(self, model: str) -> bool:
        return self.models == ("*",) or _any_of(self.models).match(model) is not None

    def may_use(self, path: str) -> bool:
        return bool(self.paths) and _any_of(self.paths).match(path) is not None


@functools.lru_cache(maxsize=4096)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))


class Keyring:
    """`read` gives the keys as the settings have them now, `files` are what they come from."""

    def __init__(self, read: Callable[[], list[KeySettings]], files: Sequence[Path] = ()) -> None:
        self._read = read
        self._files = files
        self._seen = self._taken = self._signs()
        self._take(_by_digest(read()))

    def _take(self, keys: dict[bytes, Key]) -> None:
        self._keys = keys
        self.owners = frozenset(key.owner for key in keys.values())

    def find(self, credential: bytes) -> Key | None:
        """The key that a credential is; None for every other reason alike.

        The time of a look-up tells nothing: what is compared is the SHA-256 of what was sent, which its sender cannot
        choose bit by bit.
        """
        if not is_key(credential):
            return None
        key = self._keys.get(digest(credential))
        return key if key is not None and time.time() < key.expires else None

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            signs = self._signs()
            if signs != self._taken and signs == self._seen:
                self._taken = signs
                await self._read_again()
            self._seen = signs

    async def _read_again(self) -> None:
        try:
            self._take(await asyncio.to_thread(lambda: _by_digest(self._read())))
        except Exception as error:  # whatever is wrong with a file, the relay goes on with the keys that it has
            why = str(error) if isinstance(error, SettingsError) else type(error).__name__
            logger.error("the keys cannot be read again, those read before stay good: %s", why)
        else:
            logger.info("keys read again", extra={"fields": {"keys": len(self._keys)}})

    def _signs(self) -> _Signs:
        """What changes with the files. Kubernetes swaps a symbolic link on the way to them: the inode tells."""
        return tuple(map(_sign, self._files))


def _sign(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _by_digest(listed: list[KeySettings]) -> dict[bytes, Key]:
    keys = (
        Key(
            digest=bytes.fromhex(key.hash.partition(":")[2]),
            owner=key.owner,
            models=tuple(key.models),
            paths=tuple(key.paths),
            rate=parse_rate(key.rate) if key.rate else None,
            concurrency=key.concurrency,
            expires=key.expires.timestamp() if key.expires else float("inf"),
            name=key.name or "",
        )
        for key in listed
    )
    return {key.digest: key for key in keys}
