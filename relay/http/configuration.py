"""How Hypercorn is set: what it may not do by itself, and what it is allowed beyond its defaults."""

from __future__ import annotations

import logging

from hypercorn.config import Config

from relay.http.contract import ConnectionCut
from relay.protocol.headers import MAX_HEADER_BYTES

_HTTP2_STREAMS = 1000


class _NoCuts(logging.Filter):
    """Cutting a connection is an answer, not an error of the application."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ConnectionCut)


def configuration() -> Config:
    config = Config()
    config.include_server_header = False
    config.include_date_header = False  # relay.http.dates: an answer that is passed through has one already
    # Heads up to this size reach the application, which answers in the API's own error shape; one without end holds no
    # more.
    config.h11_max_incomplete_size = 2 * MAX_HEADER_BYTES
    config.h2_max_header_list_size = 2 * MAX_HEADER_BYTES
    # Proxies put many streams on one connection; by default it is 100, and a client that needs more waits.
    config.h2_max_concurrent_streams = _HTTP2_STREAMS
    # At this number, 1000 by default, an HTTP/2 connection is closed under all the streams that it carries.
    config.keep_alive_max_requests = 1 << 62
    config.accesslog = None
    logger = logging.getLogger("relay.http")
    logger.addFilter(_NoCuts())
    config.errorlog = logger
    return config
