"""Put on PYTHONPATH of a relay under test: on SIGUSR1 it writes what no endpoint tells to $REPLICA_PROBE.

The file is replaced in one step; `serial` tells one answer from the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

_serial = 0


def _tell(*_: object) -> None:
    global _serial
    _serial += 1
    try:
        tasks = sorted(str(task.get_coro()).split(" at ")[0] for task in asyncio.all_tasks())
    except RuntimeError:  # no loop runs here: the parent of several workers
        tasks = []
    path = f"{os.environ['REPLICA_PROBE']}.{os.getpid()}"
    with open(f"{path}.new", "w") as file:
        json.dump({"serial": _serial, "time": time.time(), "tasks": tasks}, file)
    os.replace(f"{path}.new", path)


if "REPLICA_PROBE" in os.environ:
    signal.signal(signal.SIGUSR1, _tell)
