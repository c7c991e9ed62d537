"""Every values file renders, with both Helms, to objects that three versions of Kubernetes take as they are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm import chart
from tests.helm.schemas import DNS_LABEL, LABEL_VALUE, faults


@pytest.mark.parametrize("helm", chart.VERSIONS)
@pytest.mark.parametrize("name", chart.CASES)
def test_lint_finds_nothing(name: str, helm: str) -> None:
    linted = chart.run(helm, "lint", "--strict", str(chart.CHART), "--values", str(chart.CASES[name]))
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "[WARNING]" not in linted.stdout + linted.stderr


@pytest.mark.parametrize("kubernetes", chart.KUBERNETES)
@pytest.mark.parametrize("helm", chart.VERSIONS)
@pytest.mark.parametrize("name", chart.CASES)
def test_kubernetes_takes_every_object(name: str, helm: str, kubernetes: str) -> None:
    found = chart.case(name, helm, kubernetes)
    assert len(found) >= 5
    assert [fault for item in found for fault in faults(item, kubernetes)] == []


def test_the_schemas_refuse_unknown_fields() -> None:
    found = chart.case("everything")
    for kind in ("Deployment", "HTTPRoute", "BackendTrafficPolicy", "ServiceMonitor", "PrometheusRule"):
        item = chart.kinds(found, kind)[0]
        spoiled = {**item, "spec": {**item["spec"], "typo": 1}}
        assert any("typo" in fault for fault in faults(spoiled, "1.37")), kind


def test_both_helms_render_the_same() -> None:
    for name in set(chart.CASES) - {"valkey"}:  # its password is a new one each time
        assert _sorted(chart.case(name, "helm3")) == _sorted(chart.case(name, "helm4"))


def test_every_kind_is_covered_by_some_values_file() -> None:
    seen = {item["kind"] for name in chart.CASES for item in chart.case(name)}
    assert seen == {
        "BackendTrafficPolicy",
        "ConfigMap",
        "Deployment",
        "HTTPRoute",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "Secret",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "StatefulSet",
    }


@pytest.mark.parametrize("release", ["relay", "r" * 53])
@pytest.mark.parametrize("name", ["valkey", "edge", "gateway"])
def test_names_and_labels_have_room(name: str, release: str) -> None:
    arguments = (
        "--values",
        str(chart.CASES[name]),
        "--set",
        "metrics.rules.enabled=true,metrics.dashboards.enabled=true",
    )
    found = chart.objects(chart.template("helm4", *arguments, release=release))
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(set(names)) == len(names)
    for item in found:
        assert DNS_LABEL.fullmatch(item["metadata"]["name"]), item["metadata"]["name"]
        for value in item["metadata"]["labels"].values():
            assert LABEL_VALUE.fullmatch(value), value


@pytest.mark.parametrize("name", chart.CASES)
def test_an_environment_variable_is_set_once_and_a_mounted_volume_exists(name: str) -> None:
    found = chart.case(name)
    pods = [item["spec"]["template"]["spec"] for item in found if item["kind"] in ("Deployment", "StatefulSet")]
    pods += [item["spec"] for item in chart.kinds(found, "Pod")]
    claims = [item["spec"].get("volumeClaimTemplates", []) for item in chart.kinds(found, "StatefulSet")]
    volumes = {claim["metadata"]["name"] for group in claims for claim in group}
    for spec in pods:
        known = volumes | {volume["name"] for volume in spec["volumes"]}
        for item in spec["containers"]:
            names = [variable["name"] for variable in item.get("env", [])]
            assert len(set(names)) == len(names)
            assert {mount["name"] for mount in item["volumeMounts"]} <= known


def _sorted(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda item: (item["kind"], item["metadata"]["name"]))
