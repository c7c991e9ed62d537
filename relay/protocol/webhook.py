"""What a webhook is told of a stream's end, and how it is signed (Standard Webhooks 1.0.0, "Webhook headers" and
"Signature scheme").

Of one stream the id and the body are the same in every attempt, whichever replica makes it: receivers know by the id
what they have had. Nothing of the prompt or the answer is in it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson

from relay.protocol.headers import Headers
from relay.protocol.outcomes import Ending

_PREFIX = "whsec_"
_FEWEST, _MOST = 24, 64
# The first pause is so long, each further one as long as all before it, and none longer than this. In seconds.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
# A name that its owner gave a stream, as a header can hold it.


def parse_secrets(text: str) -> list[bytes]:
    """The keys of secrets separated by commas or white space. Raises ValueError, with a message that quotes none."""
    found = []
    for word in re.split(r"[\s,]+", text.strip()):
        try:
            key = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not word.startswith(_PREFIX) or not _FEWEST <= len(key) <= _MOST:
            raise ValueError(
                "holds no secret for webhooks; write `whsec_` and what `openssl rand -base64 32` prints, several of "
                "them separated by commas"
            )
        found.append(key)
    return found


def id_of(stream: str) -> str:
    """The message's id."""
    return f"msg_{stream.removeprefix('st_')}"


def signed(secrets: Sequence[bytes], message: str, at: int, body: bytes) -> Headers:
    """The headers of one attempt, which is made at `at` (Unix seconds)."""
    content = b"%b.%d.%b" % (message.encode(), at, body)
    macs = (base64.b64encode(hmac.digest(secret, content, hashlib.sha256)) for secret in secrets)
    return [
        (b"content-type", b"application/json"),
        (b"webhook-id", message.encode()),
        (b"webhook-timestamp", b"%d" % at),
        (b"webhook-signature", b" ".join(b"v1,%b" % mac for mac in macs)),
    ]


def body_of(
    stream: str, *, name: str | None, api: str, model: str, outcome: str, events: int, ended: float, usage: object
) -> bytes:
    """What is told of a stream that ended at `ended` (Unix seconds). `outcome` is its name in the log."""
    well = outcome in frozenset(Ending)
    return orjson.dumps(
        {
            "type": "stream.ended",
            "timestamp": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": {
                "id": stream,
                "name": name,
                "api": api,
                "model": model,
                "outcome": outcome if well else "failed",
                "code": None if well else outcome,
                "events": events,
                "usage": usage,
            },
        }
    )


def pause(elapsed: float, chance: float, retry_after: str | None) -> float:
    """How long to wait after an attempt that failed so long after the end. `chance`, between 0 and 1, keeps many from
    coming at once."""
    seconds = min(max(elapsed, _FIRST_PAUSE), _LONGEST_PAUSE) * (0.75 + chance / 2)
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6:
        seconds = max(seconds, min(float(retry_after), 2 * _LONGEST_PAUSE))
    return seconds
