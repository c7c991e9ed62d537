"""The cluster with the relay in it, as the exercises ask and change it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.control_plane import Cluster
from tests.cluster.images import NEW, OLD, RELAY, VALKEY
from tests.cluster.load import Load, load
from tests.cluster.nodes import Node
from tests.cluster.objects import CALLS_PORT, MODELS, SPACE
from tests.cluster.report import Row
from tests.helm.install import helm
from tests.image.engine import ROOT
from tests.support.waiting import wait_until

RELEASE = "relay"
PORT = 30090
URL = f"http://127.0.0.1:{PORT}"
RELAYS = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=relay"

Values = dict[str, Any]

VALUES: Values = {
    "image": {"repository": RELAY, "tag": OLD.rpartition(":")[2], "pullPolicy": "Never"},
    "service": {"type": "NodePort", "nodePort": PORT},
    "valkey": {
        "enabled": True,
        "image": {"repository": VALKEY.rpartition(":")[0], "tag": VALKEY.rpartition(":")[2], "pullPolicy": "Never"},
        "maxmemory": "128mb",
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
    },
    "config": {
        "upstreams": [{"name": "scripted", "base_url": f"http://upstream.{MODELS}", "apis": ["chat"]}],
        "drain": {"timeout": "120s"},
    },
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
    "test": {"model": "any"},
}


def merged(base: Values, more: Values) -> Values:
    """As Helm merges values files."""
    found = dict(base)
    for name, value in more.items():
        old = found.get(name)
        found[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


@dataclass
class World:
    cluster: Cluster
    nodes: list[Node]
    digest: str
    """Of the new image."""
    values: Values = field(default_factory=lambda: VALUES)
    rows: list[Row] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"  {time.monotonic() - self.begun:5.0f} s  {text}", flush=True)

    def helm(self, *arguments: str, given: str = "", timeout: float = 600) -> str:
        command = [str(helm("helm4")), *arguments, "--namespace", SPACE]
        done = self.cluster.run(*command, given=given, timeout=timeout)
        assert done.returncode == 0, f"helm {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    def upgrade(self, *options: str, **more: Any) -> None:
        """With further values, which stay."""
        self.values = merged(self.values, more)
        self.helm(
            *("upgrade", "--install", RELEASE, str(ROOT / "helm" / "relay"), "--wait", "--timeout", "9m"),
            *("--values", "-", *options),
            given=json.dumps(self.values),
        )

    def pods(self, selector: str = RELAYS) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cluster.get("pods", "--namespace", SPACE, "--selector", selector)
        return found

    def ready(self) -> list[dict[str, Any]]:
        """The relay's pods that are ready and not told to end."""
        return [pod for pod in self.pods() if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]

    def settled(self, count: int = 2, timeout: float = 300) -> None:
        """So many pods, all of them ready, and none left over."""
        wait_until(lambda: len(self.pods()) == len(self.ready()) == count, timeout, f"{count} pods and no other")

    def calls(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{CALLS_PORT}/calls", timeout=10) as answer:
            return int(answer.read())

    def node_of(self, pod: dict[str, Any]) -> Node:
        return next(node for node in self.nodes if node.name == pod["spec"]["nodeName"])

    @contextmanager
    def under_load(
        self, name: str, at_once: int = 40, events: int = 100, millis: int = 100, told: tuple[str, ...] = ()
    ) -> Iterator[Load]:
        """An exercise under load: its row is judged when the last stream is over. `told`: ends that it may tell."""
        self.say(name)
        before = self.calls()
        began = time.monotonic()
        with load(URL, at_once, events, millis) as found:
            wait_until(lambda: found.running >= at_once * 0.8, 120, "the load")
            yield found
        row = Row.of(name, found, self.calls() - before, time.monotonic() - began, told)
        self.rows.append(row)
        self.say(f"    {row.told}")

    def note(self, name: str, text: str, right: bool) -> None:
        """An exercise without streams."""
        self.rows.append(Row(name, text=text, right=right))
        self.say(f"{name}: {text}{'' if right else ' — WRONG'}")


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def name_of(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])


def new_image(world: World) -> Values:
    """The new version, by its digest."""
    return {"digest": world.digest, "tag": NEW.rpartition(":")[2]}
