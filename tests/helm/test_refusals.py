"""Wrong values are refused before anything reaches the cluster, in words that name the key and say what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helm import chart

UPSTREAM = {"name": "openai", "base_url": "https://api.openai.com"}
SECRET = {"existingSecret": "relay-store"}


def config(**settings: Any) -> chart.Values:
    return {"store": SECRET, "config": {"upstreams": [UPSTREAM], **settings}}


def good(**values: Any) -> chart.Values:
    return {**config(), **values}


CASES: dict[str, tuple[chart.Values, tuple[str, ...]]] = {
    # What the schema refuses: Helm names the place and the key.
    "typo at the top": (good(replicas=3), ("replicas", "not allowed")),
    "typo in a section": (good(autoscaling={"enable": True}), ("autoscaling", "enable", "not allowed")),
    "typo in config": (config(stream={"heartbeat": "5s"}), ("config", "stream", "not allowed")),
    "typo deep in config": (config(streams={"hartbeat": "5s"}), ("streams", "hartbeat", "not allowed")),
    "typo in an upstream": (config(upstreams=[{**UPSTREAM, "modle": "x"}]), ("upstreams", "modle", "not allowed")),
    "upstream without a base_url": (config(upstreams=[{"name": "x"}]), ("upstreams", "base_url")),
    "upstream with a path for a URL": (config(upstreams=[{**UPSTREAM, "base_url": "api"}]), ("base_url", "api")),
    "bad duration": (config(drain={"timeout": "10 minutes"}), ("drain", "timeout", "10 minutes")),
    "duration of nothing": (config(streams={"heartbeat": "0s"}), ("heartbeat", "0s")),
    "bad size": (config(limits={"body": "32 megs"}), ("limits", "body", "32 megs")),
    "bad address": (config(bind="8080"), ("config", "bind")),
    "unknown scheme of a store": (config(store={"url": "http://redis"}) | {"store": {}}, ("store", "url")),
    "a word for a number": (good(replicaCount="two"), ("replicaCount", "integer")),
    "a word for workers": (config(workers="many"), ("config", "workers")),
    "all of a node's CPUs": (config(workers="auto"), ("config.workers", "resources.limits.cpu", "write a number")),
    "half a secretEnv": (good(secretEnv=[{"name": "KEY"}]), ("secretEnv", "secretName")),
    # What needs more than one value to see.
    "nothing set": ({}, ("config.upstreams", "name at least one")),
    "no upstream": ({"store": SECRET}, ("config.upstreams", "name at least one")),
    "no store": ({"config": {"upstreams": [UPSTREAM]}}, ("no store", "store.existingSecret", "valkey.enabled")),
    "two stores": (good(valkey={"enabled": True}), ("store.existingSecret and valkey.enabled", "keep one")),
    "three stores": (
        config(store={"url": "redis://redis:6379"}) | {"valkey": {"enabled": True}},
        ("store.existingSecret and valkey.enabled and config.store.url", "keep one"),
    ),
    "password in config": (
        config(store={"url": "redis://:secret@redis:6379"}) | {"store": {}},
        ("config.store.url", "password", "store.existingSecret"),
    ),
    "password of the sentinels in config": (
        config(store={"url": "redis+sentinel://s1,s2/main?sentinel_password=secret"}) | {"store": {}},
        ("config.store.url", "password", "store.existingSecret"),
    ),
    "embedded store with two replicas": (
        config(store={"url": "embedded"}) | {"store": {}, "replicaCount": 2},
        ("embedded", "replicaCount: 1"),
    ),
    "embedded store and autoscaling": (
        config(store={"url": "embedded"}) | {"store": {}, "replicaCount": 1, "autoscaling": {"enabled": True}},
        ("embedded", "autoscaling.enabled: false"),
    ),
    "grace period below the drain": (
        good(terminationGracePeriodSeconds=600),
        ("terminationGracePeriodSeconds: 600", "= 640", "config.drain.timeout"),
    ),
    "grace period below a long drain": (
        config(drain={"timeout": "1.5h"}) | {"terminationGracePeriodSeconds": 5400},
        ("terminationGracePeriodSeconds: 5400", "= 5440"),
    ),
    "address inside the pod": (config(bind="127.0.0.1:8080"), ("config.bind", "0.0.0.0:PORT")),
    "metrics inside the pod": (config(metrics_bind="[::1]:9464"), ("config.metrics_bind", "[::]:PORT")),
    "one port for both": (config(metrics_bind="0.0.0.0:8080"), ("config.metrics_bind", "same port")),
    "a key that nothing sets": (
        config(upstreams=[{**UPSTREAM, "api_key_env": "OPENAI_API_KEY"}]),
        ("config.upstreams.openai.api_key_env", "OPENAI_API_KEY", "secretEnv"),
    ),
    "a secret that nothing sets": (
        config(auth={"secret_env": "OWNERS"}),
        ("config.auth.secret_env", "OWNERS", "secretEnv"),
    ),
    "keys for events that nothing sets": (
        config(store={"encryption_env": "EVENT_KEYS"}),
        ("config.store.encryption_env", "EVENT_KEYS", "secretEnv"),
    ),
    "a setting in the environment": (
        good(extraEnv=[{"name": "RELAY_DRAIN__TIMEOUT", "value": "2h"}]),
        ("RELAY_DRAIN__TIMEOUT", "write it in config"),
    ),
    "a file that nothing mounts": (
        config(upstreams=[{**UPSTREAM, "ca_file": "/etc/relay-files/company/ca.crt"}]),
        ("/etc/relay-files/company", "files"),
    ),
    "a file of a store that nothing mounts": (
        config(store={"url": "rediss://redis:6379?ssl_ca_certs=/etc/relay-files/redis/ca.crt"}) | {"store": {}},
        ("/etc/relay-files/redis", "files"),
    ),
    "two CA bundles": (good(caBundle={"configMap": "a", "secret": "b"}), ("caBundle", "keep one")),
    "autoscaling on nothing": (
        good(autoscaling={"enabled": True, "streams": {"enabled": False}, "cpu": {"enabled": False}}),
        ("autoscaling", "no metric"),
    ),
    "autoscaling on a request that is not there": (
        good(autoscaling={"enabled": True}, resources={"requests": {"cpu": None}}),
        ("resources.requests.cpu", "autoscaling.cpu"),
    ),
    "autoscaling upside down": (
        good(autoscaling={"enabled": True, "minReplicas": 20}),
        ("autoscaling.minReplicas", "maxReplicas"),
    ),
    "scraped twice": (
        good(metrics={"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}),
        ("serviceMonitor", "podMonitor", "keep one"),
    ),
    "ingress without a host": (good(ingress={"enabled": True}), ("ingress.hosts", "name at least one")),
    "proxy less patient than a heartbeat": (
        config(streams={"heartbeat": "1m"})
        | {"ingress": {"enabled": True, "hosts": ["a.example"], "readTimeoutSeconds": 60}},
        ("ingress.readTimeoutSeconds: 60", "config.streams.heartbeat (60s)"),
    ),
    "route without a gateway": (good(gateway={"enabled": True}), ("gateway.parentRefs", "name the Gateway")),
    "policy without a route": (good(gateway={"envoy": {"enabled": True}}), ("gateway.envoy", "gateway.enabled: true")),
    "a name that no Service may have": (good(fullnameOverride="1st.relay"), ("1st.relay", "fullnameOverride")),
}


@pytest.mark.parametrize("helm", chart.VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name: str, helm: str) -> None:
    values, words = CASES[name]
    shown = chart.run(helm, "template", "try", str(chart.CHART), "--values", "-", values=json.dumps(values))
    assert shown.returncode != 0, "it was taken"
    message = shown.stderr
    assert shown.stdout == ""
    assert [word for word in words if word not in message] == [], message
    assert len(message) < 1200, "too long to read"


def test_the_values_that_the_cases_spoil_are_good() -> None:
    chart.template("helm4", values=json.dumps(good()))


def test_an_old_kubernetes_is_refused() -> None:
    values = json.dumps(good())
    shown = chart.run("helm4", "template", "try", str(chart.CHART), "--kube-version", "1.27", "-f", "-", values=values)
    assert shown.returncode != 0
    assert "kubeVersion" in shown.stderr
