"""Is an object what Kubernetes takes? By the API's own schemas, in which no unknown field passes.

The schemas of Kubernetes come in the package kubernetes-validate, those of custom resources out of their definitions.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.helm.install import CRDS
from tests.support.processes import needs

_CUSTOM = ("monitoring.coreos.com", "gateway.networking.k8s.io", "gateway.envoyproxy.io")


def faults(item: dict[str, Any], kubernetes: str) -> list[str]:
    """A line for each fault; none where the API server's schema takes the object."""
    group = item["apiVersion"].partition("/")[0]
    validator = _custom(item["apiVersion"], item["kind"]) if group in _CUSTOM else _own(item, kubernetes)
    name = f"{item['kind']} {item['metadata']['name']}"
    return [f"{name}: {error.json_path}: {error.message[:300]}" for error in validator.iter_errors(item)]


def _own(item: dict[str, Any], kubernetes: str) -> Draft202012Validator:
    group, _, version = item["apiVersion"].rpartition("/")
    parts = [item["kind"].lower(), *([group.partition(".")[0]] if group else []), version]
    return _kubernetes("-".join(parts), kubernetes)


@functools.cache
def _folder(kubernetes: str) -> Path:
    package = importlib.util.find_spec("kubernetes_validate")
    needs(package, "the package kubernetes-validate is not installed: pip install -e '.[dev]'")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "kubernetes-json-schema" / f"v{kubernetes}.0-local-strict"


@functools.cache
def _registry(kubernetes: str) -> Registry[Any]:
    definitions = json.loads((_folder(kubernetes) / "_definitions.json").read_text())
    resource = Resource.from_contents(definitions, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("/api/_definitions.json", resource)
    return registry


@functools.cache
def _kubernetes(name: str, kubernetes: str) -> Draft202012Validator:
    path = _folder(kubernetes) / f"{name}.json"
    assert path.is_file(), f"Kubernetes {kubernetes} has no {name}"
    return Draft202012Validator(json.loads(path.read_text()), registry=_registry(kubernetes))


@functools.cache
def _custom(api_version: str, kind: str) -> Draft202012Validator:
    path = CRDS / f"{api_version.replace('/', '_')}_{kind}.json"
    needs(path.is_file(), f"no definition of {api_version} {kind}: run python tests/helm/install.py (with Go)")
    schema = _strict(json.loads(path.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A custom resource's schema, without the leave that JSON Schema gives to fields that it does not name."""
    strict: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            strict[key] = {name: _strict(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            strict[key] = _strict(value)
        else:
            strict[key] = value
    preserved = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and "additionalProperties" not in schema and not preserved:
        strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict


DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
