"""The process's log: lines for people or JSON for machines, and nothing in them that clients or upstreams wrote.

Promises: no prompt, completion or credential gets into a line. Only the relay's own loggers go below WARNING
(libraries print headers and bodies at debug level), and a traceback shows where and what kind, never an
exception's message, which may quote what it choked on. Fields go into `extra={"fields": {…}}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import traceback
from types import TracebackType
from typing import Any

from relay import access
from relay.config import LogSettings

logger = logging.getLogger(__name__)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(settings: LogSettings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if settings.format == "json" else _TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("relay").setLevel(settings.level.upper())
    access.configure(settings.access)


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's own complaints logged like all others: asyncio's handler prints exceptions' messages."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        logger.error("asyncio: %s", context["message"], exc_info=context.get("exception"))

    loop.set_exception_handler(handle)


def _trace(info: _ExcInfo) -> str:
    lines: list[str] = []
    error = info[1]
    while error is not None:
        lines.append("Traceback (most recent call last):\n")
        lines += traceback.format_tb(error.__traceback__)
        lines.append(f"{type(error).__module__}.{type(error).__qualname__}\n")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines).rstrip()


class _JsonLines(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, logger, message, the fields, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = _trace(record.exc_info)
        return json.dumps(line)


class _TextLines(logging.Formatter):
    """`time LEVEL logger message key=value …`; a value with spaces or quotes is spelled as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [self.formatTime(record), record.levelname, record.name, record.getMessage()]
        for name, value in getattr(record, "fields", {}).items():
            text = str(value)
            plain = text.isascii() and text.isprintable() and not set(text) & set(' "=')
            parts.append(f"{name}={text if plain else json.dumps(text)}")
        line = " ".join(parts)
        return f"{line}\n{_trace(record.exc_info)}" if record.exc_info else line
