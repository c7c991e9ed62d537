"""The headers of an upstream's answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from relay.protocol.headers import Headers


class AnswerHeaders(Mapping[str, str]):
    """Values by name, in whatever case it is asked for; one that came in several lines is one list (RFC 9110, section
    5.3). `raw` are the lines in their order, with names in lower case."""

    __slots__ = ("_values", "raw")

    def __init__(self, raw: Headers) -> None:
        self.raw = raw
        self._values: dict[str, str] = {}
        for name, value in raw:
            key, text = name.decode("latin-1"), _text(value)
            before = self._values.get(key)
            self._values[key] = text if before is None else f"{before}, {text}"

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
