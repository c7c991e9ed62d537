"""The chart says what the code and the other folders say: settings, defaults, versions, copies, documentation."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

import relay
from relay.config import AuthSettings, Settings, SettingsError, load, reference
from relay.config.webhook import WebhookSettings
from tests.helm import chart

HELM = chart.ROOT / "helm"
SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((chart.CHART / "values.yaml").read_text())
README = (chart.CHART / "README.md").read_text()
REFUSE_SETTING = Draft7Validator(
    {"$ref": "#/properties/config", "properties": SCHEMA["properties"], "definitions": SCHEMA["definitions"]}
)


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(HELM / name))


# -- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("helm", chart.VERSIONS)
@pytest.mark.parametrize("name", chart.CASES)
def test_the_relay_takes_the_settings_that_the_chart_writes(name: str, helm: str, tmp_path: Path) -> None:
    found = chart.case(name, helm)
    path = tmp_path / "relay.yaml"
    path.write_text(chart.of(found, "ConfigMap")["data"]["relay.yaml"])
    environment = {variable["name"]: variable.get("value", "redis://given") for variable in _environment(found)}
    given = yaml.safe_load(chart.CASES[name].read_text())["config"]
    with pytest.MonkeyPatch.context() as patched:
        for variable, value in _named_variables(chart.settings(found)).items():
            assert variable in environment
            patched.setenv(variable, value)
        settings = load(path, environ={n: v for n, v in environment.items() if n.startswith("RELAY_")})
        for key, value in _leaves({**VALUES["config"], **given}):
            if not key.startswith(("upstreams", "auth", "webhook")):
                assert _at(settings, key) == _at(load_values(key, value), key), key
        assert settings.auth == AuthSettings(**given.get("auth", {}))
        assert settings.webhook == WebhookSettings(**given.get("webhook", {}))
    assert [u.name for u in settings.upstreams] == [u["name"] for u in given["upstreams"]]


def _named_variables(settings: dict[str, Any]) -> dict[str, str]:
    """The environment variables that settings name, each with a value that can stand there."""
    named = {upstream["api_key_env"]: "a key" for upstream in settings["upstreams"] if upstream.get("api_key_env")}
    for section, key, value in (
        ("store", "encryption_env", "none"),
        ("auth", "secret_env", "s" * 32),
        ("webhook", "secret_env", "whsec_" + "A" * 32),
    ):
        if variable := settings.get(section, {}).get(key):
            named[variable] = value
    return named


def test_everything_has_every_setting_written_out() -> None:
    """But `data_dir`: it is the embedded store's, which the values for an edge box have."""
    leaves = {re.sub(r"\.\d+\.", "[].", key) for key, _ in _leaves(_config("everything"))}
    written = {key.partition("./")[0] for key in leaves}  # a map of paths is one setting
    settings = {path for path, _ in reference.settings_of(Settings, "") if path != "upstreams"}
    assert written == settings - {"store.data_dir"}
    assert "store.data_dir" in dict(_leaves(_config("edge")))


def load_values(key: str, value: object) -> Settings:
    """The settings with this one alone, as the relay itself reads it."""
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return Settings(**nested)


def test_the_schema_takes_every_setting() -> None:
    known = set(_schema_keys(SCHEMA["properties"]["config"], ""))
    assert {path for path, _ in reference.settings_of(Settings, "") if path != "upstreams"} == known


def test_the_schema_is_generated_from_the_settings() -> None:
    generated = script("schema.py")["generate"]()
    assert (chart.CHART / "values.schema.json").read_text() == generated, "run: python helm/schema.py"


FORMS: tuple[object, ...] = (
    *(
        "15s",
        "500ms",
        "10m",
        "1.5h",
        "2d",
        "0",
        "0s",
        "0.0s",
        "00.5s",
        "0.50s",
        "never",
        "off",
        "15",
        "s",
        "-1s",
        "1 s",
        "",
    ),
    *("1.s", ".5s", "15S", "1h30m", "1_0s", 15, 0.5, 0, -1, True, False, None, [], {}),
    *("8MiB", "64KiB", "1GiB", "10MB", "5KB", "7B", "7", "0B", "00", "1.5MiB", "8mib", "8 MiB", 1, 0.25, "1TiB"),
)


@pytest.mark.parametrize(
    "key", ["streams.heartbeat", "streams.abandon_after", "streams.tombstone", "drain.timeout", "limits.body"]
)
def test_the_schema_takes_of_durations_and_sizes_what_the_relay_takes(key: str) -> None:
    section, _, name = key.partition(".")
    for form in FORMS:
        try:
            load_values(key, form)
            taken = True
        except ValueError:
            taken = False
        assert REFUSE_SETTING.is_valid({section: {name: form}}) == taken, f"{key}: {form!r}"


@pytest.mark.parametrize(
    "key", ["tickets.scope", "limits.open_rate", "limits.replay_rate", "store.encryption_env", "auth.keys_file"]
)
def test_the_schema_takes_off_where_the_relay_does(key: str) -> None:
    section, _, name = key.partition(".")
    forms: tuple[object, ...] = ("off", False, None, True, 0, [], {})
    for form in forms:
        try:
            load_values(key, form)
            taken = True
        except ValueError:
            taken = False
        assert REFUSE_SETTING.is_valid({section: {name: form}}) == taken, f"{key}: {form!r}"


ADDRESSES = ("0.0.0.0:8080", "[::]:8080", "localhost:1", "8080", ":8080", "::8080", "http://x:1", "a b:1", "x:")


def test_the_schema_takes_of_addresses_what_the_relay_takes() -> None:
    for address in ADDRESSES:
        try:
            Settings(bind=address)
            taken = True
        except ValueError:
            taken = False
        assert REFUSE_SETTING.is_valid({"bind": address}) == taken, address


def test_the_defaults_that_the_chart_computes_with_are_the_relay_s() -> None:
    helper = (chart.CHART / "templates" / "_helpers.tpl").read_text()
    block = helper.partition('define "relay.setting"')[2].partition("{{- end -}}")[0]
    defaults = dict(re.findall(r'"([a-z_.]+)" "([^"]+)"', block))
    times = {key: value for key, value in defaults.items() if "bind" not in key}
    assert times.keys() == {
        "drain.timeout",
        "streams.heartbeat",
        "streams.upstream_idle_timeout",
        "streams.unstreamed_answer_timeout",
    }
    for key, value in times.items():
        assert _at(Settings(), key) == _at(load_values(key, value), key)
    found = chart.case("minimal", ingress={"enabled": True, "hosts": ["llm.example"]})
    assert chart.pod(found)["spec"]["terminationGracePeriodSeconds"] == 10 + Settings().drain.timeout + 30
    read = chart.of(found, "Ingress")["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    streams = Settings().streams
    assert int(read) == 10 + streams.unstreamed_answer_timeout
    assert int(read) > max(streams.upstream_idle_timeout, 4 * streams.heartbeat)


@pytest.mark.parametrize(
    ("written", "seconds"), [("10m", 600), ("1.5h", 5400), ("2500ms", 3), ("0.2s", 1), (900, 900), (12.3, 13), ("0", 0)]
)
def test_the_chart_reads_durations_as_the_relay_does(written: object, seconds: int) -> None:
    found = chart.case("minimal", config={**_config("minimal"), "drain": {"timeout": written}})
    assert chart.pod(found)["spec"]["terminationGracePeriodSeconds"] == 10 + seconds + 30
    assert 0 <= seconds - load_values("drain.timeout", written).drain.timeout < 1


# -- the chart's own values -------------------------------------------------------------------------------


def test_the_defaults_pass_the_schema() -> None:
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(VALUES)] == []


def test_every_object_of_the_schema_refuses_unknown_keys() -> None:
    open_objects = {path for path, part in _objects(SCHEMA) if part.get("additionalProperties") is not False}
    # What Kubernetes defines and checks, and maps whose keys are the user's.
    maps = {"definitions.object", "definitions.strings", "definitions.UpstreamSettings.path_map"}
    assert open_objects == {*maps, "definitions.objects[]", "extraEnv[]"}


def test_values_and_schema_have_the_same_keys() -> None:
    in_schema = set(_schema_keys(SCHEMA, "")) - {"global"}
    documented = {path for path, _, _ in script("docs.py")["rows"]()}
    assert {key for key in in_schema if not _covered(key, documented)} == set(), "in the schema, not in values.yaml"
    assert {key for key in documented if not _covered(key, in_schema)} == set(), "in values.yaml, not in the schema"


def test_the_readme_s_table_is_made_from_the_values() -> None:
    assert script("docs.py")["readme"]() == README, "run: python helm/docs.py"


def test_the_table_would_miss_an_undocumented_key(tmp_path: Path) -> None:
    docs = script("docs.py")
    node = yaml.compose("a:\n  # -- Said.\n  b: 1\n  c: 2\n")
    with pytest.raises(docs["Undocumented"], match=r"a\.c"):
        list(docs["_walk"](node, "", "a:\n  # -- Said.\n  b: 1\n  c: 2".splitlines()))


def test_the_chart_has_the_package_s_version() -> None:
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (relay.__version__, relay.__version__)


def test_the_pod_runs_as_the_image_s_user() -> None:
    image = (chart.ROOT / "deploy" / "Dockerfile").read_text()
    (user, group), *others = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)
    assert others == []
    context = VALUES["podSecurityContext"]
    assert [context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")] == [int(user), int(group), int(group)]


@pytest.mark.parametrize("name", chart.CASES)
def test_no_setting_of_the_image_s_wins_over_the_chart_s(name: str) -> None:
    """The environment wins over the file, and the image has settings in its environment."""
    image = (chart.ROOT / "deploy" / "Dockerfile").read_text()
    given = {variable["name"]: variable.get("value") for variable in _environment(chart.case(name))}
    settings = chart.settings(chart.case(name))
    inside = re.findall(r"^\s*(?:ENV )?(RELAY_\w+)=", image, re.MULTILINE)
    assert "RELAY_BIND" in inside
    for variable in inside:
        section, _, key = variable.removeprefix("RELAY_").lower().rpartition("__")
        wanted = (settings.get(section, {}) if section else settings).get(key)
        assert given.get(variable) == wanted, variable


# -- copies -----------------------------------------------------------------------------------------------


def test_dashboards_and_rules_are_copies_of_the_originals() -> None:
    assert script("sync.py")["differences"]() == [], "run: python helm/sync.py"


def test_the_cluster_gets_the_dashboards_and_rules_unchanged() -> None:
    found = chart.case("everything")
    boards = [item for item in chart.kinds(found, "ConfigMap") if "grafana_dashboard" in item["metadata"]["labels"]]
    shown = {name: json.loads(text) for item in boards for name, text in item["data"].items()}
    assert shown == {path.name: json.loads(path.read_text()) for path in (chart.ROOT / "grafana").glob("*.json")}
    rules = [item["spec"] for item in chart.kinds(found, "PrometheusRule")]
    originals = sorted((chart.ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))
    assert rules == [yaml.safe_load(path.read_text()) for path in originals]
    assert len(rules) > 0


def test_the_adapter_s_rule_provides_the_autoscaler_s_metric() -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    (rule,) = next(block["rules"]["custom"] for block in blocks if "rules" in block)
    metrics = chart.of(chart.case("gateway"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    names = [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"]
    assert names == [rule["name"]["as"]] == ["relay_streams_active"]
    assert rule["seriesQuery"].startswith(f"{names[0]}{{")


def test_the_readme_s_values_install() -> None:
    values = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "my-values" in block)
    assert chart.settings(chart.objects(chart.template("helm4", values=values)))["upstreams"][0]["name"] == "openai"


# -- walking ----------------------------------------------------------------------------------------------


def _environment(found: list[chart.Object]) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = chart.container(found).get("env", [])
    return variables


def _config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(chart.CASES[name].read_text())["config"]
    return loaded


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{prefix}.{index}")
    else:
        yield prefix, value


def _at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if schema.get("type") == "object":
        yield path or "top", schema
    for name, part in schema.get("properties", {}).items():
        yield from _objects(part, f"{path}.{name}" if path else name)
    for name, part in schema.get("definitions", {}).items():
        yield from _objects(part, f"definitions.{name}")
    if isinstance(schema.get("items"), dict):
        yield from _objects(schema["items"], f"{path}[]")


def _schema_keys(schema: Any, prefix: str) -> Iterator[str]:
    """Every key that is no object with keys of its own."""
    reference = schema.get("$ref", "").rpartition("/")[2]
    schema = SCHEMA["definitions"][reference] if reference else schema
    if isinstance(schema.get("items"), dict):
        yield from _schema_keys(schema["items"], f"{prefix.removesuffix('.')}[].")
    for name, part in schema.get("properties", {}).items():
        yield from list(_schema_keys(part, f"{prefix}{name}.")) or [f"{prefix}{name}"]


def _covered(key: str, others: set[str]) -> bool:
    """Is it there, or a key above it, or (for one described as a whole) a key below it?"""
    parts = key.split(".")
    if key.startswith("config."):
        return True
    above = {".".join(parts[:end]).replace("[]", "") for end in range(1, len(parts) + 1)}
    return bool(above & others) or any(other.startswith((f"{key}.", f"{key}[")) for other in others)


def test_a_value_that_the_relay_refuses_is_refused_by_it_too() -> None:
    """`load` is the judge of the tests above: it has to be able to say no."""
    with pytest.raises(SettingsError, match="no such setting"):
        load(None, {"streams": {"hartbeat": "5s"}, "upstreams": []}, environ={})
