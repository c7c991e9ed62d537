"""The process's log: lines for people or JSON for machines, and nothing in them that clients or upstreams wrote.

Promises: no prompt, completion or credential gets into a line. Only the relay's own loggers go below WARNING
(libraries print headers and bodies at debug level), and a traceback shows where and what kind, never an
exception's message, which may quote what it choked on. Fields go into `extra={"fields": {…}}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
import time
import traceback
from collections import deque
from types import TracebackType
from typing import Any, TextIO

from relay import access
from relay.config import LogSettings

logger = logging.getLogger(__name__)

# Printable ASCII but for a space, a quotation mark and `=`.
_PLAIN = re.compile(r"[!#-<>-~]*")

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(settings: LogSettings) -> None:
    handler = _Lines(sys.stderr)
    handler.setFormatter(_JsonLines() if settings.format == "json" else _TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("relay").setLevel(settings.level.upper())
    # What no line has: with it a record costs twice as much.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
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


class _Lines(logging.Handler):
    """Writes the lines of one turn of the loop together, in their order. A warning and all before it are written at
    once, and so is every line outside a loop: what tells of a fault is not lost with the process."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque()
        self._due: asyncio.AbstractEventLoop | None = None  # at the end of whose turn they are written

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock that all lines would share: only who writes holds it."""
        if self.filters and not self.filter(record):
            return False
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        loop = None if record.levelno >= logging.WARNING else asyncio._get_running_loop()
        if loop is None:
            self.flush()
        elif loop is not self._due:
            self._due = loop
            loop.call_soon(self.flush)

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._due = None
            lines = []
            with contextlib.suppress(IndexError):
                while True:
                    lines.append(self._lines.popleft())
            if lines:
                with contextlib.suppress(OSError, ValueError):  # nobody reads them any more
                    self._stream.write("\n".join(lines) + "\n")
                    self._stream.flush()

    def close(self) -> None:
        self.flush()
        super().close()


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

    _second = -1
    _spelled = ""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self._time(record)} {record.levelname} {record.name} {record.getMessage()}"
        fields = getattr(record, "fields", None)
        if fields:
            line = f"{line} {_spell(fields)}"
        return f"{line}\n{_trace(record.exc_info)}" if record.exc_info else line

    def _time(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._spelled = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._spelled},{int(record.msecs):03d}"


def _spell(fields: dict[str, Any]) -> str:
    line = " ".join([f"{name}={value}" for name, value in fields.items()])
    between = line.count(" ") + 1, line.count("="), line.count('"')
    if between == (len(fields), len(fields), 0) and line.isascii() and line.isprintable():
        return line
    texts = ((name, str(value)) for name, value in fields.items())
    return " ".join([f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}" for name, text in texts])
