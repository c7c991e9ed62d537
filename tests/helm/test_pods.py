"""Pods: hardened, replaced without losing a stream, rolled when the settings change; and a relay that is run from the
rendered settings answers where the probes and Prometheus ask.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.store.embedded import server_binary
from tests.conftest import Relays
from tests.helm import chart
from tests.support.guarded import login
from tests.support.oracle import DONE, PATH, frame
from tests.support.processes import free_port
from tests.support.scripted import ScriptedUpstream, stream
from tests.support.sseclient import open_stream
from tests.support.waiting import wait_until


def pod_specs(found: list[chart.Object]) -> list[dict[str, Any]]:
    specs = [item["spec"]["template"]["spec"] for item in found if item["kind"] in ("Deployment", "StatefulSet")]
    return specs + [item["spec"] for item in chart.kinds(found, "Pod")]


@pytest.mark.parametrize("name", chart.CASES)
def test_pods_may_do_no_more_than_they_need(name: str) -> None:
    """What the `restricted` Pod Security Standard asks, a read-only root, and no way to Kubernetes."""
    found = chart.case(name)
    for spec in pod_specs(found):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for item in spec["containers"]:
            context = item["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert item["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in item["resources"]["limits"]
    for account in chart.kinds(found, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_platform_may_choose_the_users() -> None:
    context = chart.pod(chart.case("openshift"))["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert chart.pod(chart.case("minimal"))["spec"]["securityContext"]["runAsUser"] > 0


@pytest.mark.parametrize("name", chart.CASES)
def test_everything_writable_is_a_volume(name: str) -> None:
    found = chart.case(name)
    mounts = {m["mountPath"]: m for m in chart.container(found)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in chart.pod(found)["spec"]["volumes"]}
    assert "sizeLimit" in volumes[mounts["/tmp"]["name"]]["emptyDir"]
    assert mounts["/etc/relay"]["readOnly"] is True
    if name == "edge":
        folder = chart.settings(found)["store"]["data_dir"]
        claim = volumes[mounts[folder]["name"]]["persistentVolumeClaim"]["claimName"]
        assert claim == chart.of(found, "PersistentVolumeClaim", "-store")["metadata"]["name"]


def test_the_embedded_store_may_have_another_volume_or_none() -> None:
    def volume(**persistence: Any) -> tuple[Any, int]:
        found = chart.case("edge", store={"persistence": persistence})
        (store,) = [v for v in chart.pod(found)["spec"]["volumes"] if v["name"] == "store"]
        return {k: v for k, v in store.items() if k != "name"}, len(chart.kinds(found, "PersistentVolumeClaim"))

    assert volume(existingClaim="mine") == ({"persistentVolumeClaim": {"claimName": "mine"}}, 0)
    assert volume(enabled=False) == ({"emptyDir": {}}, 0)


@pytest.mark.parametrize("name", chart.CASES)
def test_a_roll_out_leaves_time_for_the_drain(name: str) -> None:
    found = chart.case(name)
    strategy = chart.of(found, "Deployment")["spec"]["strategy"]
    if name == "edge":
        assert strategy == {"type": "Recreate"}
    else:
        assert strategy["rollingUpdate"]["maxUnavailable"] == 0
        assert strategy["rollingUpdate"]["maxSurge"] in (1, "50%")
    drains = {"edge": 120, "everything": 900}
    grace = chart.pod(found)["spec"]["terminationGracePeriodSeconds"]
    assert grace == (1000 if name == "everything" else 10 + drains.get(name, 600) + 30)


def test_pre_stop_waits_in_the_way_that_the_cluster_knows() -> None:
    def pre_stop(name: str, kubernetes: str, **drain: Any) -> dict[str, Any]:
        more: dict[str, Any] = {"drain": drain} if drain else {}
        found = chart.case(name, kubernetes=kubernetes, **more)
        shown: dict[str, Any] = chart.container(found)["lifecycle"]["preStop"]
        return shown

    assert pre_stop("minimal", "1.30") == pre_stop("minimal", "1.37") == {"sleep": {"seconds": 10}}
    assert pre_stop("minimal", "1.28", preStopType="sleep") == {"sleep": {"seconds": 10}}
    assert "exec" in pre_stop("openshift", "1.37")
    command = pre_stop("minimal", "1.28", preStopSeconds=1)["exec"]["command"]
    assert command[0] == "python3"
    begun = time.monotonic()
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=30)
    assert time.monotonic() - begun >= 1
    assert "lifecycle" not in chart.container(chart.case("minimal", drain={"preStopSeconds": 0}))


def test_new_settings_make_new_pods_and_nothing_else_does() -> None:
    def template(**values: Any) -> chart.Object:
        return chart.pod(chart.case("gateway", **values))

    before = template()
    assert template(service={"port": 8000}, autoscaling={"maxReplicas": 50}) == before
    after = template(config={**_given("gateway"), "limits": {"streams": 5}})
    assert before["metadata"]["annotations"]["checksum/config"] != after["metadata"]["annotations"]["checksum/config"]


def test_secrets_come_by_reference() -> None:
    found = chart.case("gateway")
    taken = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in chart.container(found)["env"] if "valueFrom" in v}
    assert taken == {
        "RELAY_STORE__URL": {"name": "relay-store", "key": "redis-url"},
        "OPENAI_API_KEY": {"name": "openai", "key": "key"},
    }
    assert "store" not in chart.settings(found)


def test_certificates_are_where_openssl_is_told_to_look() -> None:
    for name, key in (("openshift", "ca-bundle.crt"), ("everything", "ca.crt")):
        item = chart.container(chart.case(name))
        (path,) = [v["value"] for v in item["env"] if v["name"] == "SSL_CERT_FILE"]
        assert path == f"/etc/relay-ca/{key}"
        assert "/etc/relay-ca" in [mount["mountPath"] for mount in item["volumeMounts"]]


def test_the_image_is_what_is_asked_for() -> None:
    assert chart.container(chart.case("everything"))["image"].startswith("registry.example.com/relay@sha256:0123")
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert chart.container(chart.case("minimal"))["image"].endswith(f":{about['appVersion']}")
    assert chart.container(chart.case("minimal", image={"tag": "x"}))["image"].endswith(":x")
    digest = "sha256:" + "0" * 64
    store = chart.of(chart.case("valkey", valkey={"image": {"digest": digest}}), "StatefulSet", "-valkey")
    assert store["spec"]["template"]["spec"]["containers"][0]["image"] == f"docker.io/valkey/valkey@{digest}"


def _given(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(chart.CASES[name].read_text())["config"]
    return loaded


# -- run for real -----------------------------------------------------------------------------------------


def status(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as answer:
        code: int = answer.status
        return code


def test_a_relay_with_the_rendered_settings_answers_its_probes(relays: Relays) -> None:
    found = chart.case("edge")
    item = chart.container(found)
    assert item["command"] == ["relay", "serve", "--config", "/etc/relay/relay.yaml"]
    settings = chart.settings(found)
    folder = settings["store"].pop("data_dir")
    assert folder in [mount["mountPath"] for mount in item["volumeMounts"]]
    del settings["store"]["url"]  # embedded, in a folder of the test's
    here = {"bind": f"127.0.0.1:{free_port()}", "metrics_bind": f"127.0.0.1:{free_port()}"}
    relay = relays.start({**settings, **here})
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = item[probe]["httpGet"]
        assert asked["port"] == "http"
        assert status(relay.url + asked["path"]) == 200
    assert item["readinessProbe"]["httpGet"]["path"] != item["livenessProbe"]["httpGet"]["path"]
    monitor = chart.of(chart.case("everything"), "ServiceMonitor")["spec"]["endpoints"][0]
    with urllib.request.urlopen(relay.metrics_url + monitor["path"], timeout=5) as answer:
        assert "# TYPE relay_streams_active gauge" in answer.read().decode()


def test_the_bundled_valkey_keeps_streams_and_lets_only_the_password_in(tmp_path: Path) -> None:
    """The rendered arguments, on the real server."""
    found = chart.case("valkey")
    (item,) = chart.of(found, "StatefulSet", "-valkey")["spec"]["template"]["spec"]["containers"]
    assert item["command"] == ["valkey-server"]
    port = free_port()
    for _ in range(2):  # the second start finds what the first one wrote
        arguments = [argument.replace("$(VALKEY_PASSWORD)", "pass-word") for argument in item["args"]]
        arguments[arguments.index("6379")] = str(port)
        arguments[arguments.index("/data")] = str(tmp_path)
        log = (tmp_path / "valkey.log").open("ab")
        server = subprocess.Popen([server_binary(), *arguments, "--bind", "127.0.0.1"], stdout=log, stderr=log)
        client = redis.Redis.from_url(
            f"redis://{login('relay', 'pass-word')}127.0.0.1:{port}", decode_responses=True, retry=Retry(NoBackoff(), 0)
        )
        try:
            wait_until(lambda: _answers(client), 15, "the store")  # noqa: B023
            key = "relay:s"
            kept = client.xadd(key, {"a": "b"}, id="1-0") if not client.exists(key) else _first_id(client, key)
            assert kept == "1-0"
            told = client.info("memory")
            assert (told["maxmemory"], told["maxmemory_policy"]) == (64 * 1024**2, "noeviction")
            for beyond in (("CONFIG", "GET", "*"), ("FLUSHALL",), ("KEYS", "*"), ("XADD", "else", "*", "a", "b")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*beyond)  # type: ignore[no-untyped-call]
            for password in (None, "pass-word"):  # the user that was all-powerful is none
                with (
                    redis.Redis(port=port, password=password, retry=Retry(NoBackoff(), 0)) as stranger,
                    pytest.raises(redis.AuthenticationError),
                ):
                    stranger.ping()
        finally:
            client.close()
            server.terminate()
            server.wait(15)
            log.close()
    assert list((tmp_path / "appendonlydir").iterdir())


def _first_id(client: redis.Redis, key: str) -> Any:
    found: Any = client.xrange(key)
    return found[0][0]


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_relay_runs_as_the_bundled_valkey_s_user(tmp_path: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
    """Every command that a stream takes, under another prefix."""
    config = {**_given("valkey"), "store": {"prefix": "llm:"}}
    (item,) = chart.of(chart.case("valkey", config=config), "StatefulSet", "-valkey")["spec"]["template"]["spec"][
        "containers"
    ]
    port = free_port()
    arguments = [argument.replace("$(VALKEY_PASSWORD)", "pass-word") for argument in item["args"]]
    arguments[arguments.index("6379")] = str(port)
    arguments[arguments.index("/data")] = str(tmp_path)
    with (tmp_path / "valkey.log").open("ab") as log:
        server = subprocess.Popen([server_binary(), *arguments, "--bind", "127.0.0.1"], stdout=log, stderr=log)
    try:
        upstream.on("m", *stream(frame(1), DONE))
        store = {"url": f"redis://{login('relay', 'pass-word')}127.0.0.1:{port}", "prefix": "llm:"}
        relay = relays.start({"store": store, "upstreams": [{"name": "up", "base_url": upstream.url}]})
        wait_until(lambda: asked_for_store(relay.url) == 200, 10, "the store")
        key = {"authorization": "Bearer sk-one"}
        with open_stream(relay.url + PATH, headers=key, body={"model": "m", "stream": True}) as answer:
            assert answer.headers["relay-resumable"] == "true"
            first = answer.events()
        last = {**key, "last-event-id": f"{answer.headers['relay-stream-id']}.0"}
        with open_stream(relay.url + PATH, headers=last, body={}) as answer:
            assert answer.events() == first
        assert "NOPERM" not in relay.log()
    finally:
        server.terminate()
        server.wait(15)


def asked_for_store(url: str) -> int:
    with open_stream(f"{url}/readyz?store=required", "GET") as answer:
        return answer.status


def test_secrets_are_files_where_settings_look_for_them() -> None:
    found = chart.case("everything")
    mounts = {m["mountPath"]: m for m in chart.container(found)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in chart.pod(found)["spec"]["volumes"]}
    mounted = mounts["/etc/relay-files/upstream"]
    assert mounted["readOnly"] is True
    assert volumes[mounted["name"]]["secret"] == {"secretName": "anthropic-tls", "defaultMode": 0o440}
    upstream = {"name": "u", "base_url": "https://u.example", "client_cert": "/etc/relay-files/upstream/client.pem"}
    store = {
        "url": "rediss://redis:6379?ssl_certfile=/etc/relay-files/store/c.crt&ssl_keyfile=/etc/relay-files/store/c.key"
    }
    files = [{"name": name, "secretName": name} for name in ("upstream", "store")]
    chart.case("minimal", config={"upstreams": [upstream], "store": store}, store={"existingSecret": ""}, files=files)


def test_readiness_asks_for_the_store_where_it_is_required() -> None:
    paths = {name: chart.container(chart.case(name))["readinessProbe"]["httpGet"]["path"] for name in chart.CASES}
    assert paths == dict.fromkeys(chart.CASES, "/readyz") | {"everything": "/readyz?store=required"}


def test_the_generated_password_fits_into_the_url() -> None:
    secret = chart.of(chart.case("valkey"), "Secret", "-valkey")
    item = chart.container(chart.case("valkey"))
    names = [variable["name"] for variable in item["env"]]
    # `$(VALKEY_PASSWORD)` is only put into variables that come after it.
    assert names.index("VALKEY_PASSWORD") < names.index("RELAY_STORE__URL")
    reference = item["env"][names.index("VALKEY_PASSWORD")]["valueFrom"]["secretKeyRef"]
    assert (reference["name"], reference["key"]) == (secret["metadata"]["name"], *secret["data"])
    own = chart.case("valkey", valkey={"auth": {"existingSecret": "mine"}})
    assert chart.kinds(own, "Secret") == []
    references = [v["valueFrom"]["secretKeyRef"]["name"] for v in chart.container(own)["env"] if "valueFrom" in v]
    assert references == ["mine"]
