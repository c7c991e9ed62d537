"""The part of `make cluster` that runs in the cluster's namespaces: control plane, nodes, exercises, table."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.cluster import admission, objects, report, space
from tests.cluster.build import COREDNS, ETCD, KUBERNETES
from tests.cluster.control_plane import Cluster
from tests.cluster.exercises import (
    autoscaling,
    delete,
    drain,
    force,
    helm_test,
    install,
    kill,
    restart,
    settings,
    store,
    too_long,
    uninstall,
    upgrade,
    workers,
)
from tests.cluster.images import NEW
from tests.cluster.nodes import Node, start_proxy
from tests.cluster.policies import policies
from tests.cluster.scaling import scaling
from tests.cluster.world import World

NODES = (1, 2)
# In this order.
EXERCISES: tuple[Callable[[World], None], ...] = (
    *(install, helm_test, upgrade, settings, restart, delete, drain, kill, force, store, too_long, workers),
    *(autoscaling, scaling, policies, uninstall),
)


def main() -> int:
    space.be_the_first_process()
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("programs", type=Path)
    parser.add_argument("images", type=Path, nargs=2)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    space.furnish(given.name, [f"node{number}" for number in NODES])
    cluster = Cluster(given.folder, given.programs)
    nodes = [Node(cluster, number, f"/{given.name}/node{number}") for number in NODES]
    try:
        world = start(cluster, nodes, given.images)
        exercise(world, given.programs, given.only)
    except KeyboardInterrupt:
        print("  stopped", flush=True)
        return 130
    except Exception:
        traceback.print_exc()
        keep_logs(given.folder, given.programs)
        return 1
    finally:
        stop(cluster, nodes)
    print(report.table(world.rows), flush=True)
    if not given.only:
        versions = {"Kubernetes": KUBERNETES, "etcd": ETCD, "CoreDNS": COREDNS, "containerd": nodes[0].version}
        report.write(world.rows, versions, report.machine())
    wrong = [row.name for row in world.rows if not row.right]
    print(f"{len(world.rows) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


def start(cluster: Cluster, nodes: list[Node], images: list[Path]) -> World:
    began = time.monotonic()
    cluster.start()
    for node in nodes:
        node.start(images)
    start_proxy(cluster)
    cluster.wait("--for=condition=Ready", "nodes", "--all")
    digest = nodes[0].by_digest(NEW)
    nodes[1].by_digest(NEW)
    cluster.apply(objects.everything())
    volume = cluster.folder / "volume"
    volume.mkdir()
    cluster.apply(objects.volume("valkey", str(volume), nodes[0].name))
    cluster.wait("--for=condition=Available", "deployment/coredns", "--namespace", "kube-system")
    cluster.wait("--for=condition=Available", "deployment/upstream", "--namespace", objects.MODELS)
    world = World(cluster, nodes, digest)
    world.say(f"two nodes are ready, {time.monotonic() - began:.0f} s after their start")
    return world


def exercise(world: World, programs: Path, only: list[str]) -> None:
    if not only or "admit" in only:
        admission.admit(world, programs / "crds")
    for one in EXERCISES:
        if only and one.__name__ not in (*only, "install"):
            continue
        try:
            one(world)
        except Exception:
            if one is install:
                raise
            traceback.print_exc()
            world.note(one.__name__, "broke off", False)
            world.cluster.running.check()


def stop(cluster: Cluster, nodes: list[Node]) -> None:
    for node in nodes:
        cluster.running.end(f"{node.name}.kubelet")
        node.stop_pods()
    cluster.running.stop()


def keep_logs(folder: Path, cache: Path) -> None:
    """Of a run that broke off, for whoever looks for the reason."""
    kept = cache / "logs"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for path in folder.glob("*.log"):
        shutil.copy(path, kept)
    for node in ("node1", "node2"):
        if (Path("/var/log") / node).is_dir():
            shutil.copytree(Path("/var/log") / node, kept / node, dirs_exist_ok=True)
    print(f"  logs: {kept}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
