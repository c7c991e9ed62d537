"""The autoscaler on `relay_streams_active`: Prometheus with the shipped scrape settings, the adapter with the rule of
the chart's README, and the chart's own HorizontalPodAutoscaler, up and down under load."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import yaml

from tests.cluster.control_plane import ADDRESS
from tests.cluster.exercises import no_autoscaling
from tests.cluster.objects import SPACE
from tests.cluster.world import World
from tests.helm.chart import CHART
from tests.image.engine import ROOT
from tests.support.waiting import wait_until

_PROMETHEUS = "127.0.0.1:9099"
_PORT = 6444
_METRIC = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/{}/pods/*/relay_streams_active"


def scaling(world: World) -> None:
    if lacking := [name for name in ("prometheus", "adapter") if not (world.cluster.programs / name).is_file()]:
        world.note("the autoscaler on streams", f"left out: not built here: {', '.join(lacking)}", True)
        return
    try:
        _up_and_down(world)
    finally:
        world.cluster.kubectl("delete", "apiservice", "v1beta1.custom.metrics.k8s.io", "--ignore-not-found")
        for name in ("adapter", "prometheus"):
            world.cluster.running.end(name)
    no_autoscaling(world)


def _up_and_down(world: World) -> None:
    _prometheus(world)
    _adapter(world)
    world.cluster.apply(_announced())
    wait_until(lambda: _metric(world) >= 2, 120, "the metric in the API")
    world.note("`relay_streams_active` in the custom metrics API", f"of {_metric(world)} pods", True)
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [_one_every_15_s()]}}
    with world.under_load("scaled up on streams, from 2 pods to 4, and an upgrade of these") as load:
        world.upgrade(
            autoscaling={
                "enabled": True,
                "minReplicas": 2,
                "maxReplicas": 4,
                "cpu": {"enabled": False},
                "streams": {"target": 10},
                "behavior": behavior,
            }
        )
        wait_until(lambda: len(world.ready()) == 4, 180, "four pods")
        wanted = load.begun + load.at_once
        wait_until(lambda: load.begun >= wanted, 120, "streams after that")
        world.upgrade(config={"streams": {"heartbeat": "15s"}})
        world.settled(4)
    with world.under_load("scaled down on streams, from 4 pods to 2", at_once=8):
        wait_until(lambda: len(world.pods()) == 2, 300, "two pods")


def _one_every_15_s() -> dict[str, Any]:
    return {"type": "Pods", "value": 1, "periodSeconds": 15}


def _prometheus(world: World) -> None:
    folder = world.cluster.folder
    shipped = ROOT / "deploy" / "prometheus"
    settings = yaml.safe_load((shipped / "scrape.kubernetes.yaml").read_text())
    settings["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "5s"}
    settings["rule_files"] = [str(shipped / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["kubernetes_sd_configs"][0]["kubeconfig_file"] = str(world.cluster.admin)
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump(settings))
    world.cluster.running.start(
        "prometheus",
        world.cluster.programs / "prometheus",
        *(f"--config.file={config}", f"--storage.tsdb.path={folder}/prometheus"),
        *(f"--web.listen-address={_PROMETHEUS}", "--enable-feature=exemplar-storage"),
    )

    def scraped() -> bool:
        asked = f"http://{_PROMETHEUS}/api/v1/query?query=count(relay_streams_active)"
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return bool(json.load(answer)["data"]["result"])
        except OSError:
            return False

    wait_until(scraped, 60, "the relays' metrics in Prometheus")


def _adapter(world: World) -> None:
    (text,) = re.findall(r"```yaml\n(rules:\n  custom:\n.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    config = world.cluster.folder / "adapter.yaml"
    config.write_text(yaml.safe_dump({"rules": yaml.safe_load(text)["rules"]["custom"]}))
    kubeconfig = world.cluster.certificates.kubeconfig("adapter", "adapter", "system:masters")
    certificate, key = world.cluster.certificates.issue("adapter-tls", "adapter", "relay-cluster", ADDRESS)
    world.cluster.running.start(
        "adapter",
        world.cluster.programs / "adapter",
        *(f"--secure-port={_PORT}", f"--bind-address={ADDRESS}"),
        *(f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}"),
        *(f"--lister-kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}"),
        *(f"--authorization-kubeconfig={kubeconfig}", f"--prometheus-url=http://{_PROMETHEUS}/"),
        *(f"--config={config}", "--metrics-relist-interval=5s"),
    )


def _announced() -> str:
    """The adapter as the API server finds it: outside the cluster, behind a Service without a selector."""
    metadata = {"name": "adapter", "namespace": "kube-system"}
    items = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [{"port": 443, "targetPort": _PORT}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": metadata,
            "subsets": [{"addresses": [{"ip": ADDRESS}], "ports": [{"port": _PORT}]}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.custom.metrics.k8s.io"},
            "spec": {
                "group": "custom.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"name": "adapter", "namespace": "kube-system"},
            },
        },
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _metric(world: World) -> int:
    """Of how many pods the API knows the number of streams."""
    done = world.cluster.try_kubectl("get", "--raw", _METRIC.format(SPACE))
    return len(json.loads(done.stdout)["items"]) if done.returncode == 0 else 0
