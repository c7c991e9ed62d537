"""The replicas' settings, short enough for many faults in two minutes, and the times that follow from them."""

from __future__ import annotations

from typing import Any

from relay.config import StoreSettings
from relay.store.topology import DEFAULT_TIMEOUT

LEASE = 2.0
HOLD = 1.5 if "hold" in StoreSettings.model_fields else 5.0
HEARTBEAT = 0.8
PATIENCE = 1.5
IDLE = 6.0
ABANDON = 6.0
ATTACH = 4.0
COMMAND = DEFAULT_TIMEOUT
DRAIN = 2.5
MAX_DURATION = 300.0
# What a stream leaves behind, and then its tombstone.
RETENTION = 900.0

BOUNDS = {"heartbeat": HEARTBEAT, "patience": PATIENCE, "hold": HOLD, "lease": LEASE, "command": COMMAND}
"""Faults last for less than one of these, or for longer."""

GRACE = LEASE + max(COMMAND, HOLD)
"""After a fault is lifted, links are opened again and leases taken up."""
STALL = COMMAND + 1.5
"""Nobody waits for longer for what has been sent upstream, while nothing is broken any more."""
SETTLE = 20.0
"""After the last fault and the last event of every upstream, everybody has an end by then."""


def settings(upstream_url: str, store_url: str, *, workers: int, outage: str, ahead: str | None) -> dict[str, Any]:
    store: dict[str, Any] = {"url": store_url, "outage": outage}
    if "hold" in StoreSettings.model_fields:
        store["hold"] = f"{HOLD}s"
    if "ahead" in StoreSettings.model_fields and ahead is not None:
        store["ahead"] = ahead
    return {
        "workers": workers,
        "store": store,
        "upstreams": [{"name": "scripted", "base_url": upstream_url}],
        "streams": {
            "lease": f"{LEASE}s",
            "heartbeat": f"{HEARTBEAT}s",
            "patience": f"{PATIENCE}s",
            "upstream_idle_timeout": f"{IDLE}s",
            "upstream_answer_timeout": f"{IDLE}s",
            "abandon_after": f"{ABANDON}s",
            "attach_window": f"{ATTACH}s",
            "detached": f"{2 * ABANDON}s",
            "max_duration": f"{MAX_DURATION}s",
            "retention": f"{RETENTION}s",
            "tombstone": f"{RETENTION}s",
        },
        "drain": {"timeout": f"{DRAIN}s"},
        "limits": {"streams_per_owner": 10_000, "readers_per_stream": 1000, "write_timeout": "10s"},
    }
