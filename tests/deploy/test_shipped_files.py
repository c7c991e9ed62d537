"""The shipped files as they stand, by the programs that will read them: nginx, Envoy, systemd, the relay itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relay.config import Settings, load
from tests.deploy.proxies import DEPLOY, envoy_binary, nginx_binary
from tests.support.processes import RelayProcess, needs
from tests.support.sseclient import open_stream

UNIT = (DEPLOY / "relay.service").read_text()


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)


def test_nginx_takes_its_files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tested = run(nginx_binary(), "-t", "-p", folder, "-e", "stderr", "-c", DEPLOY / "nginx" / "nginx.conf")
    assert tested.returncode == 0, tested.stderr
    assert [line for line in tested.stderr.splitlines() if "[warn]" in line or "[emerg]" in line] == []


def test_envoy_takes_its_file() -> None:
    tested = run(envoy_binary(), "--mode", "validate", "-c", DEPLOY / "envoy" / "envoy.yaml")
    assert tested.returncode == 0, tested.stderr
    assert not re.search(r"deprecated", tested.stderr, re.IGNORECASE), tested.stderr


def test_the_body_limits_agree_with_the_relays_default() -> None:
    limit = Settings.model_fields["limits"].default.body
    (nginx,) = re.findall(r"^    client_max_body_size (\d+)m;", (DEPLOY / "nginx" / "relay.conf").read_text(), re.M)
    assert 0 <= (int(nginx) << 20) - limit <= 1 << 20


def test_time_outs_agree_with_the_relays_defaults() -> None:
    defaults = Settings.model_fields
    streams, drain = defaults["streams"].default, defaults["drain"].default.timeout
    silent = max(streams.upstream_idle_timeout, streams.unstreamed_answer_timeout)
    nginx, envoy = (DEPLOY / "nginx" / "relay.conf").read_text(), (DEPLOY / "envoy" / "envoy.yaml").read_text()
    compose = (DEPLOY / "compose.yaml").read_text()
    for text, pattern, least in (
        (nginx, r"proxy_read_timeout (\d+)s;", silent),
        (envoy, r"stream_idle_timeout: (\d+)s", silent),
        (UNIT, r"TimeoutStopSec=(\d+)", drain),
        (compose, r"stop_grace_period: (\d{3})s", drain),
    ):
        assert all(int(seconds) > least for seconds in re.findall(pattern, text)), pattern
        assert re.search(pattern, text), pattern


def test_the_example_is_usable_as_it_stands() -> None:
    settings = load(DEPLOY / "relay.example.yaml", environ={})
    assert {u.name: u.base_url for u in settings.upstreams} == {
        "anthropic": "https://api.anthropic.com",
        "openai": "https://api.openai.com",
    }
    upstreams = [u.model_dump(by_alias=True) for u in settings.upstreams]
    config = {"upstreams": upstreams, "streams": settings.streams.model_dump()}
    with RelayProcess(config) as relay, open_stream(f"{relay.url}/readyz", "GET") as answer:
        assert answer.status == 200


def test_every_setting_of_the_example_that_is_commented_out_is_usable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + "A" * 32)
    text = (DEPLOY / "relay.example.yaml").read_text()
    setting = re.compile(r"^( *)# (- )?([a-z_]+: \S+.*|  [a-z_]+: \S+.*)$", re.M)
    assert len(setting.findall(text)) >= 10
    uncommented = setting.sub(lambda m: f"{m[1]}{m[2] or ''}{m[3]}", text)
    # Two values for one key: the commented one is the later.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.yaml"
        path.write_text(uncommented)
        settings = load(path, environ={})
    assert [u.name for u in settings.upstreams] == ["anthropic", "openai", "local", "web"]
    assert settings.store.url == "redis://valkey:6379"
    assert settings.workers == 2
    assert settings.webhook.url == "https://app.example/hooks/relay"
    assert settings.upstreams[2].strip_prefix == "local/"


def test_systemd_takes_the_unit() -> None:
    needs(shutil.which("systemd-analyze"), "systemd-analyze (Debian's package systemd)")
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / "relay.service"
        unit.write_text(UNIT.replace("/opt/relay/bin/relay", sys.executable))
        verified = run("systemd-analyze", "verify", unit)
        assert (verified.returncode, verified.stderr) == (0, "")
        judged = run("systemd-analyze", "security", "--offline=yes", unit)
    (exposure,) = re.findall(r"Overall exposure level for relay.service: ([\d.]+)", judged.stdout)
    assert float(exposure) < 2, judged.stdout


def test_the_unit_starts_what_the_example_sets_up() -> None:
    (start,) = re.findall(r"^ExecStart=/opt/relay/bin/relay (.*)$", UNIT, re.M)
    helped = run(sys.executable, "-m", "relay", *start.split()[:1], "--help")
    assert helped.returncode == 0
    assert all(flag in helped.stdout for flag in start.split() if flag.startswith("--"))
    names = re.findall(r"^Environment=(RELAY_\S+)=", UNIT, re.M)
    load(DEPLOY / "relay.example.yaml", environ=dict.fromkeys(names, "/var/lib/relay"))


def test_the_guide_names_files_that_are_there() -> None:
    guide = (DEPLOY / "README.md").read_text()
    named = {
        word for word in re.findall(r"`([\w./-]+)`", guide.split("## Where to begin")[0]) if "/" in word or "." in word
    }
    assert len(named) >= 8
    assert [name for name in named if not ((DEPLOY / name).exists() or (DEPLOY.parent / name).exists())] == []
