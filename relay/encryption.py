"""Events at rest: each entry of a log is encrypted on its own with AES-256-GCM (NIST SP 800-38D).

An entry: version (1 byte), name of the server key (4), salt of its writer (8), ciphertext, tag (16). The key is
HKDF-SHA256 (RFC 5869) of a server key and the stream's id, the nonce is the salt and the entry's position, the
associated data its field: an entry can be decrypted only in its own stream, at its own place and in its own role.

Promises: no nonce is used for two texts (a writer draws 64 random bits, and what it encrypts at a position does
not change); what cannot be decrypted is never handed on.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from relay.protocol.errors import EncryptionKeyMissing

PLAIN = "none"
"""Among the keys: entries that are not encrypted are read, too; before the keys: nothing is encrypted."""

ENCRYPTED = b"\x01"
"""The version, with which what is encrypted begins, and no frame or outcome."""
_NAME = slice(1, 5)
_SALT = slice(5, 13)
_TEXT = 13
_STREAMS_KNOWN = 4096


class Tampered(Exception):
    """An entry is not what a relay has put in this place."""


class Encryptor:
    """Encrypts the entries of one stream, for one writer."""

    __slots__ = ("_aead", "_head", "_salt")

    def __init__(self, aead: AESGCM, name: bytes) -> None:
        self._aead = aead
        self._salt = os.urandom(8)
        self._head = ENCRYPTED + name + self._salt

    def head(self, content: bytes) -> bytes:
        """What stands before the first event: the stream's headers."""
        return self._head + self._aead.encrypt(self._salt + (0).to_bytes(4), content, b"headers")

    def end(self, n: int, content: bytes) -> bytes:
        """The end mark after event n."""
        return self._head + self._aead.encrypt(self._salt + (2 * n + 1).to_bytes(4), content, b"end")

    def events(self, first: int, frames: Sequence[bytes]) -> list[bytes]:
        """The events from number `first` on."""
        head, salt, encrypt = self._head, self._salt, self._aead.encrypt
        return [
            head + encrypt(salt + position.to_bytes(4), frame, b"f")
            for position, frame in zip(range(2 * first, 2 * (first + len(frames)), 2), frames, strict=True)
        ]


class Cipher:
    """The server's keys, as the settings give them: 32 bytes each in base64, separated by commas. The first
    encrypts, each of them decrypts. Raises ValueError, with a message that repeats none of them."""

    def __init__(self, keys: str = PLAIN) -> None:
        words = [word.strip() for word in keys.split(",")]
        self._keys: dict[bytes, bytes] = {}
        for place, word in enumerate(words, 1):
            if word == PLAIN:
                continue
            key = _key(word, place)
            if (name := _derived(key, b"relay key name")[:4]) in self._keys:
                raise ValueError(f"key {place} is there twice; take it out")
            self._keys[name] = key
        self._reads_plain = PLAIN in words
        self._encrypts_with = None if words[0] == PLAIN else next(iter(self._keys))
        self._of_stream = lru_cache(_STREAMS_KNOWN)(self._derive)

    @property
    def names(self) -> list[str]:
        """What tells the keys apart, as errors call them; the one that encrypts comes first."""
        return [name.hex() for name in self._keys]

    def encryptor(self, stream: str) -> Encryptor | None:
        """None where nothing is encrypted."""
        name = self._encrypts_with
        return None if name is None else Encryptor(self._of_stream(name, stream), name)

    def decrypt(self, stream: str, n: int, field: bytes, content: bytes) -> bytes:
        """What was put into a field of event n, or of the end mark after it. Raises Tampered, EncryptionKeyMissing."""
        if not content.startswith(ENCRYPTED):
            if self._reads_plain:
                return content
            raise Tampered
        name = content[_NAME]
        if name not in self._keys:
            raise EncryptionKeyMissing(name.hex())
        nonce = content[_SALT] + (2 * n + (field == b"end")).to_bytes(4)
        try:
            return self._of_stream(name, stream).decrypt(nonce, content[_TEXT:], field)
        except (InvalidTag, ValueError):
            raise Tampered from None

    def _derive(self, name: bytes, stream: str) -> AESGCM:
        return AESGCM(_derived(self._keys[name], b"relay log " + stream.encode()))


def _key(word: str, place: int) -> bytes:
    try:
        key = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ValueError(f"key {place} is not 32 bytes in base64; take what `openssl rand -base64 32` prints")
    return key


def _derived(key: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(key)
