"""What people type works, or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay import __version__
from relay.cli import main
from relay.config import SettingsError, load
from relay.config.loading import one_upstream
from tests.conftest import Relays
from tests.support.scripted import ScriptedUpstream, json_response
from tests.support.waiting import wait_until


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says as it refuses, whichever way it ends."""
    try:
        status = main(list(arguments))
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    return capsys.readouterr().err


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("serve", "check", "--version", "relay serve --upstream", "RELAY_BIND="))


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_it_tells_its_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([flag])
    assert capsys.readouterr().out == f"relay {__version__}\n"


def test_help_may_be_asked_for_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["help"])
    assert "relay serve --upstream" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "command"),
    [
        ("--upstream", "relay serve"),
        ("--config=x", "relay serve"),
        ("--owner", "relay key new"),
        ("--port", "relay demo"),
    ],
)
def test_a_flag_without_its_command_is_told_whose_it_is(
    capsys: pytest.CaptureFixture[str], first: str, command: str
) -> None:
    assert f"{command} {first.partition('=')[0]} …" in refused(capsys, first, "http://u")


@pytest.mark.parametrize("url", ["https://a.example/v1", " http://b.example "])
def test_one_upstream_may_stand_in_the_environment_as_in_the_flag(url: str) -> None:
    (one,) = load(environ={"RELAY_UPSTREAMS": url}).upstreams
    assert (one.name, one.base_url) == ("upstream", url.strip())
    (flagged,) = load(None, {"upstreams": one_upstream("http://c.example")}, {"RELAY_UPSTREAMS": url}).upstreams
    assert flagged.base_url == "http://c.example"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELAY_UPSTREAMS", '[{"name":'),
        ("RELAY_HOSTS", "a,b"),
        ("RELAY_CORS__ORIGINS", "https://a"),
    ],
)
def test_a_list_in_the_environment_that_is_no_json_is_told_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}: is not JSON; write a list as \["):
        load(None, {"upstreams": one_upstream("http://u")}, {name: value})


def test_the_far_relay_of_connect_is_no_setting_that_somebody_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "connect", "relay.example").startswith("relay: URL: write a URL that begins with https://")


def test_who_asks_for_an_owner_needs_no_upstream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KEY", "sk-one")
    assert main(["owner", "--env", "KEY", "--data-dir", str(tmp_path)]) == 1
    assert "secret cannot be read" in capsys.readouterr().err


def test_the_help_of_serve_has_defaults_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for word in ("default: 127.0.0.1:8080", "RELAY_METRICS_BIND", "RELAY_STORE__URL", "default: relay-data"):
        assert word in told


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["serv"], "serve"),
        (["chekc"], "check"),
        (["serve", "--upstrem", "http://u"], "--upstream"),
        (["check", "--confg=x", "--upstream", "http://u"], "--config"),
        (["key", "hahs"], "hash"),
        (["completion", "bsah"], "bash"),
        (["bench", "--target", "http://u", "--roudns", "1"], "--rounds"),
    ],
)
def test_a_slip_is_told_what_was_meant(capsys: pytest.CaptureFixture[str], arguments: list[str], meant: str) -> None:
    assert f"did you mean {meant}?" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("streems: {lease: 1s}", "streams?"),
        ("streams: {heartbeet: 1s}", "streams.heartbeat?"),
        ("upstreams: [{name: a, base_ulr: 'http://a'}]", "upstreams.0.base_url?"),
        ("store: {ulr: embedded}", "store.url?"),
    ],
)
def test_a_slip_in_a_setting_is_told_what_was_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, written: str, meant: str
) -> None:
    config = tmp_path / "relay.yaml"
    config.write_text(written)
    assert f"did you mean {meant}" in refused(capsys, "check", "--config", str(config))


def test_a_slip_in_the_environment_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_STREEMS__LEASE", "1s")
    assert "did you mean RELAY_STREAMS__LEASE?" in refused(capsys, "check", "--upstream", "http://u")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upstream", "ftp://u"], "begins with https:// or http://"),
        (["--upstream", "api.openai.com"], "begins with https:// or http://"),
        (["--upstream", "http://u", "--store", "http://s"], "redis+cluster://"),
        (["--upstream", "http://u", "--bind", "8080"], "host:port"),
    ],
)
def test_a_wrong_address_is_told_in_words(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    told = refused(capsys, "check", *arguments)
    assert words in told
    assert "pattern" not in told


@pytest.mark.slow
@pytest.mark.parametrize("base", ["", "/v1"])
def test_a_base_with_the_version_or_without_is_the_same_and_check_says_what_it_found(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    upstream.on_path("GET /v1/models", *json_response(200, {"data": [{"id": "a"}, {"id": "b"}]}))
    given = ["--upstream", upstream.url + base, "--data-dir", str(tmp_path / "data")]
    assert main(["check", *given]) == 0
    assert f"ok, GET {upstream.url}/v1/models answers 200, 2 models" in capsys.readouterr().out


@pytest.mark.slow
def test_check_beside_the_relay_that_runs(
    upstream: ScriptedUpstream, relays: Relays, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    upstream.on_path("GET /v1/models", *json_response(200, {"data": []}))
    folder = tmp_path / "data"
    store = {"url": "embedded", "data_dir": str(folder)}
    relay = relays.start({"upstreams": [{"name": "up", "base_url": upstream.url}], "store": store})
    assert main(["check", "--upstream", upstream.url, "--data-dir", str(folder)]) == 0
    assert f"store: ok (embedded in {folder}, of the relay with pid {relay.pid})" in capsys.readouterr().out


@pytest.mark.slow
def test_the_start_says_what_runs_and_the_end_how_long_it_may_take(upstream: ScriptedUpstream, relays: Relays) -> None:
    served = {"upstreams": [{"name": "up", "base_url": upstream.url}], "drain": {"timeout": "600s"}}
    relay = relays.start({**served, "playground": True})
    (line,) = [line for line in relay.log().splitlines() if "serving on" in line]
    for word in (
        *(f"version={__version__}", "upstreams=up", "auth=passthrough", f"api={relay.url}/v1", "embedded in"),
        *(f"metrics={relay.metrics_url}/metrics", f"playground={relay.url}/playground"),
    ):
        assert word in line
    relay.stop()
    wait_until(lambda: "for 600 s at most; a second signal ends it at once" in relay.log(), 10, "the line")
