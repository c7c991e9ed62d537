"""Network policies that are enforced: by kube-router, on the first node, where the relays are put for it."""

from __future__ import annotations

from tests.cluster.control_plane import SERVICES
from tests.cluster.exercises import rolled, went_on
from tests.cluster.objects import MODELS
from tests.cluster.world import RELEASE, URL, World, name_of
from tests.support.oracle import PATH
from tests.support.sseclient import open_stream
from tests.support.waiting import wait_until

_PROBE = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
except OSError:
    print("closed")
else:
    print("open")
"""


def policies(world: World) -> None:
    router = world.cluster.programs / "kube-router"
    if not router.is_file():
        world.note("network policies", "left out: kube-router cannot be built here", True)
        return
    node = world.nodes[0].name
    only = {"nodeSelector": {"kubernetes.io/hostname": node}}
    world.upgrade(**only, networkPolicy={"egress": {"enabled": True}})
    world.settled()
    before = _seen_from_elsewhere(world)
    kubeconfig = world.cluster.certificates.kubeconfig("router", "router", "system:masters")
    command = [
        *(str(router), "--run-firewall=true", "--run-router=false", "--run-service-proxy=false"),
        *("--run-loadbalancer=false", f"--kubeconfig={kubeconfig}", f"--hostname-override={node}"),
        *(f"--service-cluster-ip-range={SERVICES}", "--service-node-port-range=30000-30100"),
        *("--iptables-sync-period=10s", "--metrics-port=0"),
    ]
    world.cluster.running.start("kube-router", *command)
    try:
        _enforced(world, before)
    finally:
        world.cluster.running.end("kube-router")
        world.cluster.run(str(router), "--cleanup-config", f"--kubeconfig={kubeconfig}", timeout=60)
    world.upgrade(nodeSelector=None, networkPolicy={"egress": {"enabled": False}})
    world.settled()


def _enforced(world: World, before: dict[str, str]) -> None:
    wanted = {"http": "open", "metrics": "closed", "valkey": "closed"}
    try:
        wait_until(lambda: _seen_from_elsewhere(world) == wanted, 60, f"the policies, {wanted}")
        after = "http open, metrics and the store closed"
    except TimeoutError:
        after = str(_seen_from_elsewhere(world))
    right = set(before.values()) == {"open"} and after.startswith("http open")
    world.note("another namespace, before a policy is enforced and after", f"all open; {after}", right)
    # A policy sees the upstream's pods' port, 8000, behind its Service's, 80.
    status = _status_of_a_stream(world)
    world.note("an upstream behind a Service, by the ports of the URLs", f"{status}", status != 200)
    world.upgrade(networkPolicy={"egress": {"upstreamPorts": [8000]}})
    world.settled()
    status = _status_of_a_stream(world)
    world.note("the same by `egress.upstreamPorts`", f"{status}", status == 200)
    with world.under_load("a restart under enforced policies") as load:
        rolled(world)
        went_on(load)


def _seen_from_elsewhere(world: World) -> dict[str, str]:
    """Which ports of the relay's and the store's pods somebody in another namespace can reach."""
    relay = world.ready()[0]["status"]["podIP"]
    (store,) = world.pods(f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=valkey")
    places = {"http": (relay, "8080"), "metrics": (relay, "9464"), "valkey": (store["status"]["podIP"], "6379")}
    (prober,) = world.cluster.get("pods", "--namespace", MODELS, "--selector", "app=upstream")
    ask = ("exec", "--namespace", MODELS, name_of(prober), "--", "python", "-c", _PROBE)
    return {name: world.cluster.kubectl(*ask, *place) for name, place in places.items()}


def _status_of_a_stream(world: World) -> int:
    body = {"model": "short", "stream": True, "messages": []}
    with open_stream(URL + PATH, headers={"authorization": "Bearer sk-policy"}, body=body, timeout=60) as answer:
        first = answer.events(1)
        if answer.status == 200 and first and first[0].data and '"error"' in first[0].data:
            return 599
        return answer.status
