"""What runs in the cluster beside the relay: names of Services, and the upstream that counts what it is asked."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.control_plane import DNS_SERVICE
from tests.cluster.images import COREDNS, OLD
from tests.image.engine import ROOT

SPACE = "llm"
"""The namespace of the relay: what Pod Security calls `restricted` is enforced in it."""
MODELS = "models"
ADMISSION = "admission"
CALLS_PORT = 30081

_COREFILE = """.:53 {
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
    cache 5
    loop
}
"""

_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _namespace(name: str, level: str) -> dict[str, Any]:
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _config(namespace: str, name: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _service(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": name}, **spec}}


def _deployment(namespace: str, name: str, config: str, account: str, container: dict[str, Any]) -> dict[str, Any]:
    mounts = [{"name": "config", "mountPath": "/config", "readOnly": True}]
    pod = {
        "serviceAccountName": account,
        "nodeSelector": {"kubernetes.io/hostname": "node1"},
        "dnsPolicy": "Default",
        "containers": [{"name": name, "imagePullPolicy": "Never", "volumeMounts": mounts, **container}],
        "volumes": [{"name": "config", "configMap": {"name": config}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }


def _names() -> list[dict[str, Any]]:
    system = "kube-system"
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", "namespace": system}},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": system}],
        },
        _config(system, "coredns", {"Corefile": _COREFILE}),
        _deployment(
            system,
            "coredns",
            "coredns",
            "coredns",
            {
                "image": COREDNS,
                "args": ["-conf", "/config/Corefile"],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
            },
        ),
        _service(
            system,
            "coredns",
            {
                "clusterIP": DNS_SERVICE,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        ),
    ]


def _upstream() -> list[dict[str, Any]]:
    script = (ROOT / "tests" / "image" / "upstream.py").read_text(encoding="utf-8")
    return [
        _namespace(MODELS, "restricted"),
        _config(MODELS, "upstream", {"upstream.py": script}),
        _deployment(
            MODELS,
            "upstream",
            "upstream",
            "default",
            {
                "image": OLD,
                "command": ["python", "/config/upstream.py"],
                "securityContext": _RESTRICTED | {"runAsUser": 10001},
                "readinessProbe": {"httpGet": {"path": "/calls", "port": 8000}, "periodSeconds": 2},
            },
        ),
        # A port that is not the pods' own: a policy sees theirs.
        _service(MODELS, "upstream", {"ports": [{"port": 80, "targetPort": 8000}]}),
        _service(
            MODELS,
            "calls",
            {
                "type": "NodePort",
                "selector": {"app": "upstream"},
                "ports": [{"port": 80, "targetPort": 8000, "nodePort": CALLS_PORT}],
            },
        ),
    ]


def everything() -> str:
    """For `kubectl apply`."""
    items = [_namespace(SPACE, "restricted"), _namespace(ADMISSION, "restricted"), *_names(), *_upstream()]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def volume(name: str, folder: str, node: str) -> str:
    """A folder of a node's as a volume, for the claim that comes first."""
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "8Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": folder},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
            },
        }
    )
