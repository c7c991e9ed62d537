"""What is kept at rest is encrypted, each piece on its own, with AES-256-GCM (NIST SP 800-38D).

An entry of a log: mark (1 byte), name of the key (4), salt of its writer (8), ciphertext, tag (16). The key is
HKDF-SHA256 (RFC 5869) of a server key and of the stream's id, its owner and its API; the nonce is the salt and the
entry's position, the associated data its field. So an entry can be decrypted only in its own stream, at its own place,
in its own role, and for the owner and the API for whom it was written, whatever the stream's hash says of them. An end
mark has the usage before the end.

An event in the compact form (`relay.protocol.compact`) has the number of its base between name and salt, in the clear
and bound to it, so that the store can send the base along. It has a name of its own for the same key: a replica that
does not know the form lacks it.

Version 0.1 bound its entries to the stream, and to no owner. Such are told by the key's name, of which each server key
has one for either form, and are still read: whoever is to be safe from them takes a new server key with the upgrade. A
replica of that version finds that it lacks the key of an entry in the new form, which sends readers to another replica.

Promises: no nonce is used for two texts (an encryptor draws 64 random bits, and what it is given for a position does
not change: `relay.streams.entries`); what cannot be decrypted is never handed on.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from relay.protocol.compact import BASE, COMPACT
from relay.protocol.errors import EncryptionKeyMissing

PLAIN = "none"
"""Among the keys: entries that are not encrypted are read, too; before the keys: nothing is encrypted."""

ENCRYPTED = b"\x01"
"""The mark with which what is encrypted begins, and no frame or outcome."""
_NAME = slice(1, 5)
_SALT = slice(5, 13)
_TEXT = 13
_COMPACT_SALT = slice(9, 17)
_COMPACT_TEXT = 17
_NONCE = 12
_MAC_CHARS = 64
_STREAMS_KNOWN = 4096


class Tampered(Exception):
    """An entry is not what a relay has put in this place."""


class Binding(NamedTuple):
    """What a stream's entries are bound to beside its id. It must be what was checked when a reader was let in, not
    what the store says later. Without one, nothing that is bound can be opened."""

    owner: str = ""
    api: str = ""


UNBOUND = Binding()


class Encryptor:
    """Encrypts the entries of one stream, for one writer."""

    __slots__ = ("_aead", "_compact_head", "_head", "_salt")

    def __init__(self, aead: AESGCM, name: bytes, compact_name: bytes) -> None:
        self._aead = aead
        self._salt = os.urandom(8)
        self._head = ENCRYPTED + name + self._salt
        self._compact_head = ENCRYPTED + compact_name

    def beside(self, field: bytes, content: bytes) -> bytes:
        """What stands beside the events, in a field of the stream's hash; with one encryptor one such."""
        return self._head + self._aead.encrypt(self._salt + (0).to_bytes(4), content, field)

    def end(self, n: int, content: bytes, usage: str = "") -> bytes:
        """The end mark after event n, and what was used by then."""
        text = b"%b\n%b" % (usage.encode(), content)
        return self._head + self._aead.encrypt(self._salt + (2 * n + 1).to_bytes(4), text, b"end")

    def event(self, n: int, entry: bytes) -> bytes:
        """Event n, in full or in the compact form."""
        nonce = self._salt + (2 * n).to_bytes(4)
        if not entry.startswith(COMPACT):
            return self._head + self._aead.encrypt(nonce, entry, b"f")
        base = entry[BASE]
        text = self._aead.encrypt(nonce, entry[BASE.stop :], b"compact" + base)
        return b"".join((self._compact_head, base, self._salt, text))


class Cipher:
    """The server's keys, as the settings give them: 32 bytes each in base64, separated by commas. The first
    encrypts, each of them decrypts. Raises ValueError, with a message that repeats none of them."""

    def __init__(self, keys: str = PLAIN) -> None:
        words = [word.strip() for word in keys.split(",")]
        self._keys: dict[bytes, bytes] = {}
        self._keys_of_0_1: dict[bytes, bytes] = {}
        self._compact_names: dict[bytes, bytes] = {}
        for place, word in enumerate(words, 1):
            if word == PLAIN:
                continue
            key = _key(word, place)
            if (name := _derived(key, b"relay bound key name")[:4]) in self._keys:
                raise ValueError(f"key {place} is there twice; take it out")
            self._keys[name] = _extracted(key)
            self._keys_of_0_1[_derived(key, b"relay key name")[:4]] = key
            self._compact_names[name] = _derived(key, b"relay compact key name")[:4]
        self.reads_plain = PLAIN in words
        self._encrypts_with = None if words[0] == PLAIN else next(iter(self._keys))
        self._of_stream = lru_cache(_STREAMS_KNOWN)(self._derive)
        self._of_compact = {compact: name for name, compact in self._compact_names.items()}
        self.compact_heads = COMPACT + b"".join(ENCRYPTED + name for name in self._of_compact)
        """What entries in the compact form begin with, five bytes each."""

    @property
    def names(self) -> list[str]:
        """What tells the keys apart, as errors call them; the one that encrypts comes first."""
        return [name.hex() for name in self._keys]

    @property
    def encrypts(self) -> bool:
        return self._encrypts_with is not None

    def encryptor(self, stream: str, binding: Binding) -> Encryptor | None:
        """None where nothing is encrypted."""
        name = self._encrypts_with
        if name is None:
            return None
        return Encryptor(self._of_stream(name, stream, binding), name, self._compact_names[name])

    def decrypt(self, stream: str, n: int, field: bytes, content: bytes, binding: Binding) -> bytes:
        """What was put into a field of event n, in the compact form where it is in that. Raises Tampered,
        EncryptionKeyMissing."""
        if not content.startswith(ENCRYPTED) or content.startswith(COMPACT):
            if self.reads_plain:
                return content
            raise Tampered
        if (name := self._of_compact.get(content[_NAME])) is not None:
            return self._decrypt_compact(name, stream, n, content, binding)
        nonce = content[_SALT] + (2 * n + (field == b"end")).to_bytes(4)
        try:
            return self._of_stream(content[_NAME], stream, binding).decrypt(nonce, content[_TEXT:], field)
        except (InvalidTag, ValueError):
            raise Tampered from None

    def _decrypt_compact(self, name: bytes, stream: str, n: int, content: bytes, binding: Binding) -> bytes:
        base, nonce = content[BASE], content[_COMPACT_SALT] + (2 * n).to_bytes(4)
        try:
            aead = self._of_stream(name, stream, binding)
            return COMPACT + base + aead.decrypt(nonce, content[_COMPACT_TEXT:], b"compact" + base)
        except (InvalidTag, ValueError):
            raise Tampered from None

    def decrypt_end(self, stream: str, n: int, content: bytes, binding: Binding) -> tuple[bytes, str | None]:
        """The end mark after event n, and the usage that is told with it, None where it is not. Raises Tampered,
        EncryptionKeyMissing."""
        text = self.decrypt(stream, n, b"end", content, binding)
        if content[_NAME] not in self._keys:  # plain, or in the form of version 0.1
            return text, None
        usage, _, end = text.partition(b"\n")
        return end, usage.decode()

    def _derive(self, name: bytes, stream: str, binding: Binding) -> AESGCM:
        if (key := self._keys.get(name)) is not None:
            return AESGCM(_expanded(key, b"entries", stream.encode(), binding.owner.encode(), binding.api.encode()))
        if (key := self._keys_of_0_1.get(name)) is not None:
            return AESGCM(_derived(key, b"relay log " + stream.encode()))
        raise EncryptionKeyMissing(name.hex())

    # -- what is no entry of a log --------------------------------------------------------------------------------

    def seal(self, use: bytes, content: bytes) -> bytes:
        """A content of a use of its own; as it is where nothing is encrypted."""
        if (name := self._encrypts_with) is None:
            return content
        nonce = os.urandom(_NONCE)
        return ENCRYPTED + name + nonce + AESGCM(_expanded(self._keys[name], use)).encrypt(nonce, content, use)

    def unseal(self, use: bytes, content: bytes) -> bytes:
        """Raises Tampered, EncryptionKeyMissing."""
        if not content.startswith(ENCRYPTED):
            raise Tampered
        if (key := self._keys.get(content[_NAME])) is None:
            raise EncryptionKeyMissing(content[_NAME].hex())
        at = _NAME.stop + _NONCE
        try:
            return AESGCM(_expanded(key, use)).decrypt(content[_NAME.stop : at], content[at:], use)
        except (InvalidTag, ValueError):
            raise Tampered from None

    def is_current(self, content: bytes) -> bool:
        """Is it under the key that encrypts now?"""
        return content[_NAME] == self._encrypts_with

    def proof(self, use: bytes, *parts: str) -> str:
        """That a relay has said this; empty where nothing is encrypted. The same parts have the same proof."""
        name = self._encrypts_with
        return "" if name is None else name.hex() + self._mac(name, use, parts)

    def proves(self, proof: str, use: bytes, *parts: str) -> bool:
        """Does it prove that a relay has said this? Where what is not encrypted is read, everything is believed."""
        if self.reads_plain:
            return True
        name = bytes.fromhex(proof[:8]) if len(proof) == 8 + _MAC_CHARS and _is_hex(proof) else b""
        return name in self._keys and hmac.compare_digest(proof[8:], self._mac(name, use, parts))

    def _mac(self, name: bytes, use: bytes, parts: Sequence[str]) -> str:
        return hmac.digest(_expanded(self._keys[name], use), _joined(*map(str.encode, parts)), "sha256").hex()


def _is_hex(text: str) -> bool:
    return not text.strip("0123456789abcdef")


def _expanded(extracted: bytes, use: bytes, *parts: bytes) -> bytes:
    """A key for one use and its parts: no two of these have the same."""
    return HKDFExpand(SHA256(), 32, b"relay bound " + _joined(use, *parts)).derive(extracted)


def _joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)


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


def _extracted(key: bytes) -> bytes:
    """HKDF's first half, which is the same for all that is derived of a key (RFC 5869, section 2.2)."""
    return hmac.digest(bytes(32), key, "sha256")
