"""Objects find one another: selectors, ports, names; and what is not to be reached is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helm import chart
from tests.helm.apiserver import apiserver


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", selector)
    return all(labels.get(key) == value for key, value in wanted.items())


def pods(found: list[chart.Object]) -> dict[str, dict[str, str]]:
    """The labels of each kind of pod: relay, test, and valkey where it is."""
    shown = {"relay": chart.pod(found)["metadata"]["labels"]}
    for item in chart.kinds(found, "StatefulSet"):
        shown["valkey"] = item["spec"]["template"]["metadata"]["labels"]
    for item in chart.kinds(found, "Pod"):
        shown["test"] = item["metadata"]["labels"]
    return shown


def selected(selector: dict[str, Any], found: list[chart.Object]) -> list[str]:
    return [name for name, labels in pods(found).items() if selects(selector, labels)]


def ports(found: list[chart.Object]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in chart.container(found)["ports"]}


@pytest.mark.parametrize("name", chart.CASES)
def test_selectors_take_the_relay_s_pods_and_no_others(name: str) -> None:
    found = chart.case(name)
    assert "test" in pods(found)
    assert selected(chart.of(found, "Deployment")["spec"]["selector"], found) == ["relay"]
    for suffix in ("", "-metrics"):
        assert selected(chart.of(found, "Service", suffix)["spec"]["selector"], found) == ["relay"]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for item in chart.kinds(found, kind):
            assert selected(item["spec"]["selector"], found) == ["relay"]
    for spread in chart.pod(found)["spec"]["topologySpreadConstraints"]:
        assert selected(spread["labelSelector"], found) == ["relay"]


@pytest.mark.parametrize("name", chart.CASES)
def test_ports_are_the_settings_own(name: str) -> None:
    found = chart.case(name)
    settings = chart.settings(found)
    bound = {key: int(settings[key].rpartition(":")[2]) for key in ("bind", "metrics_bind")}
    assert ports(found) == {"http": bound["bind"], "metrics": bound["metrics_bind"]}
    http, metrics = chart.of(found, "Service")["spec"], chart.of(found, "Service", "-metrics")["spec"]
    assert [port["targetPort"] for port in http["ports"]] == ["http"]
    assert [port["targetPort"] for port in metrics["ports"]] == ["metrics"]


def test_metrics_stay_inside_the_cluster_and_show_pods_that_drain() -> None:
    found = chart.case("everything")
    assert chart.of(found, "Service")["spec"]["type"] == "LoadBalancer"
    metrics = chart.of(found, "Service", "-metrics")["spec"]
    assert (metrics["type"], metrics["clusterIP"], metrics["publishNotReadyAddresses"]) == ("ClusterIP", "None", True)


def test_the_service_monitor_takes_the_metrics_service_alone() -> None:
    found = chart.case("everything")
    monitor = chart.of(found, "ServiceMonitor")["spec"]
    services = chart.kinds(found, "Service")
    taken = [item for item in services if selects(monitor["selector"], item["metadata"]["labels"])]
    assert taken == [chart.of(found, "Service", "-metrics")]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in taken[0]["spec"]["ports"]]


def test_the_pod_monitor_names_a_port_of_the_container() -> None:
    found = chart.case("openshift")
    (endpoint,) = chart.of(found, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports(found)


def test_routes_lead_to_the_clients_service() -> None:
    found = chart.case("everything")
    service = chart.of(found, "Service")
    (rule,) = chart.of(found, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "http"}}
    route = chart.of(found, "HTTPRoute")
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
    (target,) = chart.of(found, "BackendTrafficPolicy")["spec"]["targetRefs"]
    assert (target["kind"], target["name"]) == ("HTTPRoute", route["metadata"]["name"])


def test_the_proxies_stream_and_never_send_a_post_again() -> None:
    found = chart.case("everything")
    given = chart.of(found, "Ingress")["metadata"]["annotations"]
    shown = {key.removeprefix("nginx.ingress.kubernetes.io/"): value for key, value in given.items()}
    assert (shown["proxy-buffering"], shown["proxy-http-version"]) == ("off", "1.1")
    assert shown["proxy-read-timeout"] == shown["proxy-send-timeout"] == "700"
    assert shown["proxy-body-size"] == "64m", "the user's annotation wins"
    assert shown["proxy-next-upstream"].split() == ["error", "timeout"]  # not non_idempotent, not http_5xx
    assert chart.of(found, "HTTPRoute")["spec"]["rules"][0]["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    policy = chart.of(found, "BackendTrafficPolicy")["spec"]
    assert policy["retry"]["numRetries"] == 0
    # Longer than the longest silence: what these values give an answer that is not streamed.
    assert chart.settings(found)["streams"]["unstreamed_answer_timeout"] == "20m"
    idle = {"requestTimeout": "0s", "maxStreamDuration": "0s", "streamIdleTimeout": "1210s"}
    assert policy["timeout"]["http"] == idle
    assert min(policy["circuitBreaker"].values()) == 100000


def test_the_autoscaler_scales_the_deployment() -> None:
    found = chart.case("gateway")
    deployment, scaler = chart.of(found, "Deployment"), chart.of(found, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    down = scaler["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 600
    assert [(policy["type"], policy["value"]) for policy in down["policies"]] == [("Pods", 1)]
    assert {metric["type"] for metric in scaler["metrics"]} == {"Pods"}
    both = chart.of(chart.case("everything"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {metric["type"] for metric in both} == {"Pods", "Resource"}


@pytest.mark.parametrize("helm", chart.VERSIONS)
@pytest.mark.parametrize(
    ("running", "autoscaling", "wanted"),
    [
        (7, {"enabled": True}, 7),  # switched on, or upgraded: what runs goes on running
        (0, {"enabled": True}, 0),  # stopped by hand
        (None, {"enabled": True, "minReplicas": 2}, 3),  # the first install
        (None, {"enabled": True, "minReplicas": 5}, 5),
        (None, {"enabled": True, "minReplicas": 1, "maxReplicas": 2}, 2),
        (7, {"enabled": False}, 3),
    ],
)
def test_an_autoscaler_finds_the_replicas_that_ran(
    helm: str, running: int | None, autoscaling: dict[str, Any], wanted: int
) -> None:
    """A Deployment that names no number gets 1 from Kubernetes, and a running one is cut down to it."""
    name = f"{chart.RELEASE}-relay"
    managed = {"app.kubernetes.io/managed-by": "Helm"}
    owned = {"meta.helm.sh/release-name": chart.RELEASE, "meta.helm.sh/release-namespace": "default"}
    live = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default", "labels": managed, "annotations": owned},
        "spec": {"replicas": running},
    }
    path = f"/apis/apps/v1/namespaces/default/deployments/{name}"
    values = {"replicaCount": 3, "autoscaling": autoscaling, "podDisruptionBudget": {"enabled": False}}
    with apiserver({} if running is None else {path: live}) as url:
        found = chart.objects(
            chart.template(
                helm,
                *("--values", str(chart.CASES["minimal"]), "--dry-run=server", "--disable-openapi-validation"),
                *("--kube-apiserver", url),
                *("--show-only", "templates/deployment.yaml"),
                values=json.dumps(values),
            )
        )
    assert chart.of(found, "Deployment")["spec"]["replicas"] == wanted


def test_the_network_policy_lets_in_clients_and_monitoring() -> None:
    found = chart.case("everything")
    policy = chart.of(found, "NetworkPolicy")["spec"]
    assert selected(policy["podSelector"], found) == ["relay"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    http, metrics = policy["ingress"]
    assert http["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert "test" in [name for peer in http["from"] for name in selected(peer["podSelector"], found)]
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    everyone = chart.of(chart.case("edge"), "NetworkPolicy")["spec"]["ingress"][0]
    assert "from" not in everyone


def test_the_network_policy_lets_out_to_names_upstreams_and_the_store() -> None:
    def out(name: str) -> list[list[int]]:
        rules = chart.of(chart.case(name), "NetworkPolicy")["spec"]["egress"]
        return [[port["port"] for port in rule["ports"]] for rule in rules]

    assert out("everything") == [[53, 53], [443, 3128, 8000], [6379, 6380], [4317]]
    assert out("edge") == [[53, 53], [8000]]
    assert out("valkey") == [[53, 53], [443], [6379]]


def test_only_prometheus_reaches_the_metrics_unless_that_is_switched_off() -> None:
    """They ask for no credential. Where the relay goes is nothing that a chart can know."""
    policy = chart.of(chart.case("minimal"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert "egress" not in policy
    http, metrics = policy["ingress"]
    assert ("from" in http, "from" in metrics) == (False, True)
    assert chart.kinds(chart.case("minimal", networkPolicy={"enabled": False}), "NetworkPolicy") == []


def test_an_upstream_behind_a_service_is_let_out_to_by_its_pods_port() -> None:
    """A policy sees what a Service's address was translated to."""
    found = chart.case("edge", networkPolicy={"egress": {"upstreamPorts": [8001]}})
    rules = chart.of(found, "NetworkPolicy")["spec"]["egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [[53, 53], [8001]]


def test_the_webhook_is_let_out_to() -> None:
    more = {"url": "http://hooks.app:8443/relay", "secret_env": "HOOK"}
    egress = {"egress": {"enabled": True}}
    found = chart.case(
        "edge",
        config={"webhook": more},
        secretEnv=[{"name": "HOOK", "secretName": "hooks", "secretKey": "secret"}],
        networkPolicy=egress,
    )
    rules = chart.of(found, "NetworkPolicy")["spec"]["egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [[53, 53], [8000, 8443]]


def test_a_proxy_on_the_way_to_an_upstream_is_let_out_to() -> None:
    upstreams = [
        {"name": "one", "base_url": "https://api.openai.com", "proxy": "http://user:word@proxy.corp:3128"},
        {"name": "two", "base_url": "http://gateway:4000", "proxy": "off"},
        {"name": "three", "base_url": "https://eu.example:8443/v1", "proxy": "env"},
    ]
    assert let_out(upstreams=upstreams, store={"url": "redis://r"})[1] == [3128, 4000, 8443]


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("redis://store", [6379]),
        ("rediss://user@store.cache.example:6380/0?ssl_ca_certs=/etc/x", [6380]),
        ("redis://[fd00::7]:7000", [7000]),
        ("redis+sentinel://s1:26379,s2,s3:26380/main", [26379, 26380, 6379]),
        ("rediss+cluster://n1:7001,n2:7002", [7001, 7002]),
    ],
)
def test_the_store_is_let_out_to_at_the_ports_of_its_url(url: str, ports: list[int]) -> None:
    upstreams = [{"name": "one", "base_url": "https://api.openai.com"}]
    assert let_out(upstreams=upstreams, store={"url": url})[2] == ports
    set_by_hand = {"storePorts": [6400]}
    assert let_out(upstreams=upstreams, store={"url": url}, **set_by_hand)[2] == [6400]


def let_out(upstreams: object, store: object, **egress: object) -> list[list[int]]:
    """The ports that the relay may go to: for names, upstreams and the store."""
    values = {
        "config": {"upstreams": upstreams, "store": store},
        "networkPolicy": {"egress": {"enabled": True, **egress}},
    }
    rules = chart.of(chart.objects(chart.template("helm4", values=json.dumps(values))), "NetworkPolicy")
    return [[port["port"] for port in rule["ports"]] for rule in rules["spec"]["egress"]]


@pytest.mark.parametrize("name", chart.CASES)
def test_nothing_is_left_by_an_uninstall(name: str) -> None:
    """Helm deletes what is no hook; a hook is gone when it is over. A claim of streams stays where one asked for it."""
    for item in chart.case(name):
        annotations = item["metadata"].get("annotations", {})
        if "helm.sh/hook" in annotations:
            policies = annotations["helm.sh/hook-delete-policy"].split(",")
            assert {"hook-succeeded", "hook-failed", "before-hook-creation"} == set(policies)
            assert annotations["helm.sh/hook-output-log-policy"] == "hook-succeeded,hook-failed"
        kept = annotations.get("helm.sh/resource-policy") == "keep"
        assert kept == (name == "edge" and item["kind"] == "PersistentVolumeClaim"), item["metadata"]["name"]


def test_the_test_s_pod_may_be_kept() -> None:
    (pod,) = chart.kinds(chart.case("minimal", test={"keep": True}), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation"


@pytest.mark.parametrize("keep", [True, False])
def test_the_notes_say_what_becomes_of_the_claim(keep: bool) -> None:
    shown = chart.run(
        "helm4",
        *("install", chart.RELEASE, str(chart.CHART), "--dry-run=client", "--values", str(chart.CASES["edge"])),
        *("--set", f"store.persistence.keep={str(keep).lower()}"),
    )
    assert shown.returncode == 0, shown.stderr
    assert ("stays after `helm uninstall`" in shown.stdout) == keep
    assert ("`helm uninstall` deletes the claim try-relay-store" in shown.stdout) != keep


def test_only_the_relay_reaches_the_bundled_store() -> None:
    found = chart.case("valkey")
    store = chart.of(found, "NetworkPolicy", "-valkey")["spec"]
    assert selected(store["podSelector"], found) == ["valkey"]
    (rule,) = store["ingress"]
    assert [name for peer in rule["from"] for name in selected(peer["podSelector"], found)] == ["relay"]
    (peer,) = chart.of(found, "NetworkPolicy")["spec"]["egress"][2]["to"]
    assert selected(peer["podSelector"], found) == ["valkey"]
    service = chart.of(found, "Service", "-valkey")
    assert selected(service["spec"]["selector"], found) == ["valkey"]
    (url,) = [v["value"] for v in chart.container(found)["env"] if v["name"] == "RELAY_STORE__URL"]
    assert url.endswith(f"@{service['metadata']['name']}:{service['spec']['ports'][0]['port']}")
