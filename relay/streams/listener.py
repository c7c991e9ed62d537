"""What a stream's writer tells its producer."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """The producer, as its writer and the commit know it."""

    def usage_summary(self) -> str:
        """What the log keeps beside the end: tokens in and out, as "12/345"."""

    def on_first_token(self) -> None:
        """Readers are about to be shown the first token."""

    def on_pressure(self, wait: bool) -> None:
        """Let the upstream wait, or go on."""

    def on_end_shown(self) -> None:
        """Readers are about to be shown the end."""

    def on_end_persisted(self) -> None:
        """The log holds the end."""

    def on_fenced(self) -> None:
        """Another replica has ended the stream, or has taken it over."""

    def on_log_gone(self) -> None:
        """The store does not know the stream any more: make it again, then call `made_again`."""

    def on_fault(self, error: Exception) -> None:
        """What the writer did with a reply has raised."""


class Nobody:
    """Listens for a producer that has gone: a flush may still hold its writer, which must not hold it."""

    def usage_summary(self) -> str:
        return ""

    def on_first_token(self) -> None: ...

    def on_pressure(self, wait: bool) -> None: ...

    def on_end_shown(self) -> None: ...

    def on_end_persisted(self) -> None: ...

    def on_fenced(self) -> None: ...

    def on_log_gone(self) -> None: ...

    def on_fault(self, error: Exception) -> None: ...
