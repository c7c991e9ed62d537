"""What operators do to the relay, and what happens to it, each under load and judged by what its clients saw.

An exercise changes one thing, waits until the cluster is as it should be, and leaves it so.
"""

from __future__ import annotations

import time

from tests.cluster.load import Load
from tests.cluster.objects import SPACE
from tests.cluster.world import RELEASE, World, is_ready, name_of, new_image
from tests.support.waiting import wait_until

LOST = ("producer_lost",)
DEPLOYMENT = f"deployment/{RELEASE}"


def rolled(world: World) -> None:
    """Every pod replaced, one after the other."""
    world.cluster.kubectl("rollout", "restart", DEPLOYMENT, "--namespace", SPACE)
    world.cluster.kubectl("rollout", "status", DEPLOYMENT, "--namespace", SPACE, "--timeout=9m", timeout=600)
    world.settled()


def install(world: World) -> None:
    began = time.monotonic()
    world.upgrade()
    world.note("`helm install --wait`", f"{time.monotonic() - began:.0f} s until all was ready", True)
    world.settled()
    where = {pod["spec"]["nodeName"] for pod in world.pods()}
    world.note("two pods", f"on {len(where)} nodes", len(where) == 2)


def helm_test(world: World) -> None:
    world.say("helm test")
    words = world.helm("test", RELEASE, "--timeout", "5m", "--logs")
    left = world.pods(f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=test")
    passed = "PASSED: the stream was cut and resumed" in words
    world.note("`helm test`", f"passed, {len(left)} pods left", passed and not left)


def upgrade(world: World) -> None:
    old = {name_of(pod) for pod in world.pods()}
    with world.under_load("`helm upgrade` to a new image, named by its digest"):
        world.upgrade(image=new_image(world))
        world.settled()
    new = world.pods()
    images = {pod["spec"]["containers"][0]["image"] for pod in new}
    gone = not old & {name_of(pod) for pod in new}
    world.note("image after the upgrade", "by digest", gone and all(world.digest in image for image in images))


def settings(world: World) -> None:
    with world.under_load("`helm upgrade` with another setting"):
        world.upgrade(config={"log": {"level": "info"}, "streams": {"heartbeat": "10s"}})
        world.settled()


def restart(world: World) -> None:
    with world.under_load("`kubectl rollout restart`"):
        rolled(world)


def delete(world: World) -> None:
    with world.under_load("a pod deleted"):
        world.cluster.kubectl("delete", "pod", name_of(world.pods()[0]), "--namespace", SPACE, "--wait=false")
        wait_until(lambda: any("deletionTimestamp" in pod["metadata"] for pod in world.pods()), 60, "the deletion")
        world.settled()


def drain(world: World) -> None:
    with world.under_load("a node drained"):
        node = world.nodes[1].name
        selector = f"--pod-selector=app.kubernetes.io/instance={RELEASE}"
        world.cluster.kubectl("drain", node, selector, "--delete-emptydir-data", "--timeout=9m", timeout=600)
        world.settled()
        world.cluster.kubectl("uncordon", node)
    rolled(world)  # back to one on each node


def kill(world: World) -> None:
    """The kernel takes the process: its streams end where their log does, and are told so."""
    with world.under_load("SIGKILL of a relay's process", told=LOST) as load:
        pod = world.ready()[0]
        container = pod["status"]["containerStatuses"][0]["containerID"].partition("://")[2]
        world.node_of(pod).ctr("tasks", "kill", "--signal", "SIGKILL", container)
        went_on(load)
        world.settled()


def force(world: World) -> None:
    with world.under_load("`kubectl delete --force --grace-period=0`", told=LOST) as load:
        pod = name_of(world.ready()[0])
        world.cluster.kubectl("delete", "pod", pod, "--namespace", SPACE, "--force", "--grace-period=0")
        went_on(load)
        world.settled()


def went_on(load: Load) -> None:
    """New streams are begun."""
    wanted = load.begun + load.at_once
    wait_until(lambda: load.begun >= wanted, 180, "streams after that")


def store(world: World) -> None:
    """Streams go on without it, with their ids, and what is missing is written when it is back."""
    with world.under_load("the store's pod deleted") as load:
        world.cluster.kubectl("delete", "pod", f"{RELEASE}-valkey-0", "--namespace", SPACE)
        selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=valkey"
        wait_until(lambda: any(is_ready(pod) for pod in world.pods(selector)), 120, "the store")
        went_on(load)


def too_long(world: World) -> None:
    """Streams longer than the drain: what runs at its end is told `shutdown`, and all before that can be read."""
    world.upgrade(config={"drain": {"timeout": "5s"}})
    world.settled()
    with world.under_load("streams longer than the drain", at_once=20, events=300, told=("shutdown",)):
        rolled(world)
    shut = world.rows[-1]
    shut.right = shut.right and shut.ended["shutdown"] > 0
    world.upgrade(config={"drain": {"timeout": "120s"}})
    world.settled()


def workers(world: World) -> None:
    with world.under_load("`helm upgrade` to two workers a pod, and a restart of these"):
        world.upgrade(config={"workers": 2})
        world.settled()
        rolled(world)
    world.upgrade(config={"workers": 1})
    world.settled()


def autoscaling(world: World) -> None:
    """Switching it on keeps the pods that run; without its metric it changes nothing."""
    world.cluster.kubectl("scale", DEPLOYMENT, "--namespace", SPACE, "--replicas=3")
    world.settled(3)
    lowest = 3
    with world.under_load("autoscaling switched on") as load:
        world.upgrade(
            autoscaling={"enabled": True, "maxReplicas": 4, "cpu": {"enabled": False}, "streams": {"target": 1000}}
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            lowest = min(lowest, len(world.ready()))
            time.sleep(1)
        went_on(load)
    world.note("pods while autoscaling was switched on", f"3 before, {lowest} at the least after", lowest == 3)
    no_autoscaling(world)


def no_autoscaling(world: World) -> None:
    """Helm 4 takes the number of pods from whoever has set it last only where it is told to."""
    world.upgrade("--force-conflicts", autoscaling={"enabled": False}, replicaCount=2)
    world.settled()


def uninstall(world: World) -> None:
    with world.under_load("`helm uninstall` with streams under way") as load:
        load.stop()
        world.helm("uninstall", RELEASE, "--wait", "--timeout", "9m")
        wait_until(lambda: not world.pods(), 180, "the end of the drains")
    kinds = "all,configmaps,secrets,serviceaccounts,networkpolicies,poddisruptionbudgets,persistentvolumeclaims"
    found = world.cluster.get(kinds, "--namespace", SPACE, "--selector", f"app.kubernetes.io/instance={RELEASE}")
    left = sorted(f"{item['kind']} {name_of(item)}" for item in found)
    world.note("left by `helm uninstall`", ", ".join(left), left == [f"PersistentVolumeClaim data-{RELEASE}-valkey-0"])
