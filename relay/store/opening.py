"""What the entries of a log hold, once they are decrypted: each is a stream's own, at its own place, or nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from relay.encryption import ENCRYPTED, Binding, Cipher, Tampered
from relay.protocol.compact import COMPACT
from relay.protocol.end_mark import End, decode_end
from relay.protocol.errors import EncryptionKeyMissing

logger = logging.getLogger(__name__)


class EntryReader:
    """What a cipher opens. Raises EncryptionKeyMissing."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def contents(
        self, stream: str, after: int, entries: list[Any], binding: Binding
    ) -> tuple[list[bytes], End | None, bool]:
        """What the events after a position hold, the end mark after them, and whether the log will never hold more."""
        if not self._cipher.names and (plain := _plain(entries, after)):
            return plain, None, False
        contents: list[bytes] = []
        for entry_id, (field, content) in entries:
            n = int(entry_id.partition(b"-")[0])
            try:
                if field == b"end" and n == after + len(contents):
                    return contents, self.open_end(stream, entry_id, n, content, binding)[0], False
                content = self._open(stream, entry_id, n, field, content, binding)
            except Tampered:
                return contents, None, True
            if n != after + len(contents) + 1 or field == b"end":
                return contents, None, True
            contents.append(content)
        return contents, None, False

    def event(self, stream: str, entry: Any, binding: Binding) -> tuple[int, bytes]:
        """The number of one event, and what its entry holds; empty where no relay has put that there."""
        entry_id, (field, content) = entry
        n = int(entry_id.partition(b"-")[0])
        try:
            return n, self._open(stream, entry_id, n, field, content, binding)
        except Tampered:
            return n, b""

    def open_end(
        self, stream: str, entry_id: bytes, n: int, content: bytes, binding: Binding
    ) -> tuple[End, str | None]:
        """The end mark after event n, and the usage that it tells. Raises Tampered."""
        with self._told(stream, entry_id):
            text, usage = self._cipher.decrypt_end(stream, n, content, binding)
        return decode_end(text), usage

    def _open(self, stream: str, entry_id: bytes, n: int, field: bytes, content: bytes, binding: Binding) -> bytes:
        with self._told(stream, entry_id):
            return self._cipher.decrypt(stream, n, field, content, binding)

    @staticmethod
    @contextlib.contextmanager
    def _told(stream: str, entry_id: bytes) -> Iterator[None]:
        try:
            yield
        except EncryptionKeyMissing as error:
            logger.error(
                "stream %s: entry %s was encrypted under key %s; give this replica that key, too "
                "(store.encryption_env)",
                stream,
                entry_id.decode(),
                error.key,
            )
            raise
        except Tampered:
            logger.error("stream %s: entry %s is not what a relay has put there", stream, entry_id.decode())
            raise


def _plain(entries: list[Any], after: int) -> list[bytes]:
    """What they hold, where entries are the next events and nothing else, none of them encrypted; else none.

    Ids only rise, so the first and the last of them say that all are there.
    """
    if not entries or entries[0][0] != b"%d-0" % (after + 1) or entries[-1][0] != b"%d-0" % (after + len(entries)):
        return []
    contents = [content for _, (field, content) in entries if field == b"f"]
    heads = {content[: len(COMPACT)] for content in contents}
    encrypted = any(head[:1] == ENCRYPTED and head != COMPACT for head in heads)
    return [] if encrypted or len(contents) < len(entries) else contents
