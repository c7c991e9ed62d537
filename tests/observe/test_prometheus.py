"""A real Prometheus scrapes real relays under load, and every expression that is shipped finds something there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana import panels
from relay.metrics import Metrics
from tests.observe.load import ENV, RULES, Load, Prometheus, prometheus_server, settings
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import ScriptedUpstream
from tests.support.stores import valkey_server

GRAFANA = RULES.parents[1] / "grafana"
# What Grafana fills in. The windows hold the whole load.
VARIABLES = {"$__rate_interval": "60s", "$__range": "120s", "$namespace": ".*", "$api": ".*", "$upstream": ".*"}
VARIABLES["$model"] = ".*"


# What each of the relay's metrics counts by: of a histogram the number of its observations.
METRICS = [
    family.name + {"counter": "_total", "histogram": "_count"}.get(family.type, "")
    for family in Metrics().registry.collect()
    if family.name.startswith("relay_")
]


def _panels() -> list[Any]:
    return [
        pytest.param(target, id=f"{path.stem}: {panel['title']} {target['refId']}")
        for path in sorted(GRAFANA.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


def _rules(kind: str) -> list[Any]:
    return [
        pytest.param(rule, id=rule[kind])
        for path in sorted(RULES.glob("*.rules.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if kind in rule
    ]


@dataclass(frozen=True)
class Observed:
    prometheus: Prometheus
    relays: list[RelayProcess]
    load: Load
    since: float
    until: float

    def ask(self, target: Any) -> list[list[float]]:
        """What a panel's query returns, as Grafana asks it: for each series its values."""
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, "a variable that this test does not know"
        if target.get("instant"):
            found = self.prometheus.ask("query", query=expression, time=self.until)["result"]
            return [[float(series["value"][1])] for series in found]
        bounds = {"start": self.since, "end": self.until, "step": 1}
        found = self.prometheus.ask("query_range", query=expression, **bounds)["result"]
        return [[float(value) for _, value in series["values"]] for series in found]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Two replicas that share a store, after an outage of it, the end of a third one and two rounds of everything. One
    target has a `namespace`, as in Kubernetes, and the others have none."""
    needs(shutil.which("prometheus"), "the prometheus server: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("observe")
    with (
        valkey_server(folder / "valkey") as store,
        ScriptedUpstream() as upstream,
        RelayProcess(settings(upstream.url, store.url), ENV) as one,
        RelayProcess(settings(upstream.url, store.url), ENV) as two,
        RelayProcess(settings(upstream.url, store.url), ENV) as three,
    ):
        targets: list[dict[str, Any]] = [
            {"targets": [one.config["metrics_bind"]], "labels": {"namespace": "llm"}},
            {"targets": [two.config["metrics_bind"], three.config["metrics_bind"]]},
        ]
        with prometheus_server(folder, targets) as prometheus:
            since = time.time()
            load = Load([one, two, three], upstream)
            prometheus.wait_scrapes(2)
            load.outage(store.servers[0], prometheus)
            load.drain(prometheus)
            for _ in range(2):
                load.round()
                prometheus.wait_scrapes(3)  # a counter whose series is new moves only from its second round on
            yield Observed(prometheus, [one, two], load, since, time.time())


@pytest.mark.parametrize("target", _panels())
def test_every_panel_has_data(observed: Observed, target: Any) -> None:
    series = observed.ask(target)
    assert series, "no series"
    assert any(value == value for values in series for value in values), "nothing but NaN"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gets_something_to_count(observed: Observed, name: str) -> None:
    """A gauge too has stood above nothing, at some time."""
    assert max(observed.prometheus.values(f"max_over_time({name}[5m])")) > 0


def test_the_words_of_the_queries_are_those_of_the_relay(observed: Observed) -> None:
    """What a rule or panel calls a success or a miss is what relays said when the load met one."""

    def words(metric: str, label: str) -> set[str]:
        found = observed.prometheus.ask("query", query=f"count by ({label}) ({metric} > 0)")["result"]
        return {series["metric"][label] for series in found}

    results = words("relay_resumes_total", "result")
    assert results >= set(panels.FOUND.split("|"))
    assert results >= {"stream_not_found", "position_unknown", "invalid_last_event_id", "resume_not_supported"}
    assert words("relay_streams_total", "outcome") == panels.OUTCOMES.keys()
    causes = {"upstream_disconnected", "upstream_error", "upstream_malformed", "upstream_timeout"}
    assert words("relay_mid_stream_failures_total", "cause") >= causes
    assert words("relay_upstream_responses_total", "status") == {"200", "429", "500"}


def test_the_rules_are_evaluated_as_they_are_shipped(observed: Observed) -> None:
    rules = [rule for group in observed.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(_rules("record")) + len(_rules("alert"))
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


@pytest.mark.parametrize("rule", _rules("record"))
def test_every_recording_rule_has_recorded(observed: Observed, rule: Any) -> None:
    values = observed.prometheus.values(rule["record"])
    assert values, "no series"
    assert any(value == value for value in values), "nothing but NaN"


@pytest.mark.parametrize("rule", _rules("alert"))
def test_every_alert_watches_something(observed: Observed, rule: Any) -> None:
    """An alert is empty while all is well. Its comparisons with numbers and what keeps it quiet (`unless`) taken out,
    and `absent(x)` taken for `x`, the same expression must find the series that it watches. That it then compares
    rightly is in tests.yaml."""
    bare = re.sub(r"\s(==|>=|>|<)\s*[0-9.]+", "", rule["expr"])
    bare = re.sub(r"\n\s*unless\s.*", "", bare, flags=re.DOTALL)
    bare = re.sub(r"^absent\((.*)\)$", r"\1", bare)
    assert bare != rule["expr"]
    assert any(value == value for value in observed.prometheus.values(bare)), bare


def test_an_outage_of_the_store_shows(observed: Observed) -> None:
    """In the alerts themselves: not firing, since it was short, but pending."""
    for alert in ("RelayStoreDown", "RelayStreamsDegraded"):
        pending = f'max_over_time(ALERTS{{alertname="{alert}", alertstate="pending"}}[5m])'
        assert observed.prometheus.values(pending), alert
    assert observed.prometheus.values("min(relay_store_up)") == [1]


def test_a_choice_of_all_matches_relays_without_a_namespace(observed: Observed) -> None:
    count = 'count(relay_build_info{namespace=~"%s"})'
    assert observed.prometheus.values(count % ".*") == [2]
    assert observed.prometheus.values(count % "llm") == [1]


@pytest.mark.parametrize("target", [case for case in _panels() if case.values[0].get("exemplar")])
def test_exemplars_lead_to_streams(observed: Observed, target: Any) -> None:
    expression = target["expr"]
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    bounds = {"start": observed.since, "end": observed.until}
    found = observed.prometheus.ask("query_exemplars", query=expression, **bounds)
    exemplars = [exemplar for series in found for exemplar in series["exemplars"]]
    assert exemplars
    assert {exemplar["labels"]["stream_id"] for exemplar in exemplars} <= observed.load.streams
    latest = max(exemplars, key=lambda exemplar: exemplar["timestamp"])["labels"]["stream_id"]
    status = observed.load.status(latest)
    assert (status["id"], status["state"]) == (latest, "ended")


def test_prometheus_understands_the_runbook(observed: Observed) -> None:
    blocks = re.findall(r"^```promql\n(.*?)^```", (RULES / "RUNBOOK.md").read_text(), re.MULTILINE | re.DOTALL)
    queries = [line for block in blocks for line in block.splitlines()]
    assert len(queries) > len(_rules("alert"))
    for query in queries:
        observed.prometheus.values(query)


def _promtool(*arguments: str | Path, stdin: bytes | None = None) -> None:
    needs(shutil.which("promtool"), "promtool: apt-get install prometheus")
    run = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, cwd=RULES, timeout=60)
    assert run.returncode == 0, (run.stdout + run.stderr).decode()


def test_metrics_are_well_named(observed: Observed) -> None:
    with urllib.request.urlopen(f"{observed.relays[0].metrics_url}/metrics") as answer:
        text = answer.read()
    assert b"relay_streams_total" in text
    _promtool("check", "metrics", stdin=text)


def test_rules_are_valid() -> None:
    _promtool("check", "rules", *sorted(RULES.glob("*.rules.yaml")))


@pytest.mark.parametrize("tests", ["tests.yaml", "../compose/tests.yaml"])
def test_alerts_fire_when_they_should_and_only_then(tests: str) -> None:
    _promtool("test", "rules", tests)


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load((RULES / "tests.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {case.values[0]["alert"] for case in _rules("alert")}
    assert {(alert, fires) for alert in alerts for fires in (True, False)} == set(cases)


def test_compose_misses_a_relay_when_one_of_its_own_number_is_gone() -> None:
    (rule,) = yaml.safe_load((RULES.parent / "compose/replicas.rules.yaml").read_text())["groups"][0]["rules"]
    relays = yaml.safe_load((RULES.parent / "compose.yaml").read_text())["services"]["relay"]["deploy"]["replicas"]
    assert rule["expr"].endswith(f"< {relays}")
    assert f" of {relays} relays " in rule["annotations"]["summary"]
    place, _, heading = rule["annotations"]["runbook"].partition("#")
    assert f"\n## {heading}\n".lower() in (RULES.parents[1] / place).read_text().lower()


def test_the_scrape_configuration_is_valid() -> None:
    _promtool("check", "config", "scrape.yaml")


def test_the_kubernetes_scrape_configuration_is_valid(tmp_path: Path) -> None:
    """Debian's promtool is built without Kubernetes: another discovery stands in, and the rest is checked as it is."""
    text = (RULES / "scrape.kubernetes.yaml").read_text()
    config = yaml.safe_load(text)
    for job in config["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["file_sd_configs"] = [{"files": [str(tmp_path / "targets.yaml")]}]
    config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
    (tmp_path / "targets.yaml").write_text("[]")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    _promtool("check", "config", tmp_path / "prometheus.yml")
