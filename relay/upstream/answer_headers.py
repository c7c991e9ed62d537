"""The headers of an upstream's answer."""

from __future__ import annotations

from relay.protocol.headers import Headers


class AnswerHeaders(dict[str, str]):
    """Values by name, in lower case; one that came in several lines is one list (RFC 9110, section 5.3). `raw` are the
    lines in their order, with names in lower case."""

    __slots__ = ("raw",)

    def __init__(self, raw: Headers) -> None:
        self.raw = raw
        for name, value in raw:
            key = name.decode("latin-1")
            try:
                text = value.decode()
            except UnicodeDecodeError:
                text = value.decode("latin-1")
            self[key] = f"{self[key]}, {text}" if key in self else text
