"""Are there to be traces? `relay.tracing.otel`, which needs the extra `relay-streams[otel]`, is imported only where the
standard OTEL_* variables ask for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)


def from_environment(environ: Mapping[str, str], replica: str) -> Tracing:
    """What the standard variables ask for: traces, where an exporter or an address for them is named and they are not
    switched off."""
    if not is_asked_for(environ):
        return Tracing()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    if protocol not in ("", "http/protobuf"):
        logger.warning(
            "OTEL_EXPORTER_OTLP_PROTOCOL is %s, and there are no traces: the relay speaks http/protobuf; set that, and "
            "the collector's address for it (port 4318)",
            protocol,
        )
        return Tracing()
    try:
        from relay.tracing import otel
    except ImportError as error:
        logger.warning(
            "OTEL_* asks for traces, and there are none (%s); install relay-streams[otel], or set "
            "OTEL_TRACES_EXPORTER=none",
            error,
        )
        return Tracing()
    return otel.OpenTelemetry(environ, replica)


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """See `from_environment`."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return exporter == "otlp"
    return any(environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_"))
