"""The form of a key that the relay issues, and what is kept of it.

A key is `rk_`, 32 random characters of base62 (190 bits) and 6 of checksum: the CRC-32 of all before it. So a typo is
told apart without asking a relay, and a scanner for leaked secrets can match keys and nothing else
(`rk_[0-9A-Za-z]{38}`). Only the SHA-256 of a key is kept. It needs neither salt nor a slow hash: those protect secrets
that can be guessed, and from 112 bits of entropy on an approved one-way function is what NIST asks for (SP 800-63B,
section 5.1.2.2). The checksum is no defence, anybody can compute it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PREFIX = "rk_"
_RANDOM_CHARS = 32
_CHECK_CHARS = 6
_FORM = re.compile(rb"rk_[0-9A-Za-z]{%d}" % (_RANDOM_CHARS + _CHECK_CHARS))
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def new_key() -> str:
    """A fresh key, drawn by `secrets`; it is shown once and never kept."""
    body = _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARS))
    return body + _checksum(body.encode()).decode()


def is_key(text: bytes) -> bool:
    """Is it of the form, its checksum included?"""
    return _FORM.fullmatch(text) is not None and text[-_CHECK_CHARS:] == _checksum(text[:-_CHECK_CHARS])


def digest(key: bytes) -> bytes:
    """The 32 bytes of a key's SHA-256."""
    return hashlib.sha256(key).digest()


def hash_of(key: str) -> str:
    """A key's hash as the settings have it."""
    return f"sha256:{digest(key.encode()).hex()}"


def is_hash(text: str) -> bool:
    """Has this the form of a key's hash as the settings have it?"""
    return _HASH.fullmatch(text) is not None


def _checksum(body: bytes) -> bytes:
    rest = zlib.crc32(body)
    chars = []
    for _ in range(_CHECK_CHARS):
        rest, index = divmod(rest, len(_ALPHABET))
        chars.append(_ALPHABET[index])
    return "".join(reversed(chars)).encode()
