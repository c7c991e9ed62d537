"""Settings: which source wins, every form of a value, and a start that stops with a message naming what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import certifi
import pytest
import yaml

from relay.config import Settings, SettingsError, load
from relay.config.auth import KeySettings
from relay.config.reference import reference

HOOK_SECRET = "whsec_" + "A" * 32
UPSTREAM = {"name": "one", "base_url": "http://127.0.0.1:9000"}

# Every setting outside the lists, with its default.
CONTRACT = {
    "bind": "127.0.0.1:8080",
    "metrics_bind": "127.0.0.1:9464",
    "hosts": [],
    "workers": 1,
    "store.url": "embedded",
    "store.data_dir": "relay-data",
    "store.max_memory": "auto",
    "store.outage": "degrade",
    "store.hold": 5,
    "store.ahead": 64 << 20,
    "store.prefix": "relay:",
    "store.compact": True,
    "store.encryption_env": None,
    "streams.heartbeat": 15,
    "streams.patience": 10,
    "streams.patience_limit": 30,
    "streams.upstream_answer_timeout": 120,
    "streams.unstreamed_answer_timeout": 600,
    "streams.first_token_timeout": float("inf"),
    "streams.upstream_stall_timeout": 120,
    "streams.upstream_resume": 60,
    "streams.upstream_idle_timeout": 300,
    "streams.max_duration": 3600,
    "streams.abandon_after": 60,
    "streams.abandon_limit": 3600,
    "streams.detached": 600,
    "streams.retention": 3600,
    "streams.tombstone": 24 * 3600,
    "streams.lease": 10,
    "streams.event_ids": "always",
    "streams.heartbeat_form": "auto",
    "streams.broken_end": "auto",
    "streams.max_event_bytes": 8 << 20,
    "streams.max_stream_bytes": 64 << 20,
    "streams.attach_retries": "auto",
    "streams.attach_window": 10.0,
    "streams.session_headers": ["x-claude-code-session-id", "session-id", "x-session-id"],
    "auth.mode": "passthrough",
    "auth.keys_file": None,
    "auth.credential_headers": [
        "cf-aig-authorization",
        "helicone-auth",
        "ocp-apim-subscription-key",
        "x-bf-vk",
        "x-goog-api-key",
        "x-litellm-api-key",
        "x-portkey-api-key",
        "x-portkey-virtual-key",
    ],
    "auth.secret_env": None,
    "tickets.scope": "read",
    "tickets.ttl": 3600,
    "cors.origins": [],
    "playground": False,
    "playground_replicas": [],
    "playground_control": None,
    "limits.body": 32 << 20,
    "limits.bodies": 256 << 20,
    "limits.readers_per_stream": 64,
    "limits.streams_per_owner": 256,
    "limits.streams": 10000,
    "limits.listed_streams": 256,
    "limits.read_timeout": 30,
    "limits.open_rate": None,
    "limits.resume_rate": None,
    "limits.replay_rate": None,
    "limits.idle_timeout": 75,
    "limits.write_timeout": 30,
    "webhook.url": None,
    "webhook.secret_env": None,
    "webhook.timeout": 15,
    "webhook.retry_for": 3600,
    "webhook.proxy": "env",
    "webhook.ca_file": None,
    "drain.timeout": 600,
    "metrics.models": "patterns",
    "metrics.most_names": 100,
    "log.level": "info",
    "log.format": "text",
    "log.access": "streams",
}
OF_AN_UPSTREAM = [
    *(
        "name",
        "base_url",
        "path_map",
        "apis",
        "paths",
        "end",
        "owner",
        "cookies",
        "stream_name",
        "models",
        "strip_prefix",
        "model",
        "next_on",
        "wait",
        "after_abandon",
        "api_key_env",
        "headers",
        "proxy",
        "ca_file",
        "client_cert",
        "keepalive",
        "buffer",
        "usage",
        "malformed",
        "resume",
        "continue",
        "prefill",
        "upstream_resume",
    ),
    *("upstream_answer_timeout", "unstreamed_answer_timeout", "first_token_timeout"),
    *("upstream_stall_timeout", "upstream_idle_timeout"),
]
OF_A_KEY = ["hash", "owner", "name", "models", "paths", "rate", "concurrency", "expires"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def written(folder: Path, content: Any) -> Path:
    path = folder / "relay.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return path


def loaded(
    flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> Settings:
    """What is loaded with one upstream named by a flag, and nothing from the real environment."""
    return load(config, {"upstreams": [UPSTREAM], **(flags or {})}, environ or {})


def refused(
    flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> str:
    with pytest.raises(SettingsError) as error:
        loaded(flags, environ, config)
    return str(error.value)


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def at(settings: Settings, path: str) -> Any:
    found: Any = settings
    for part in path.split("."):
        found = getattr(found, part)
    return found


def variable(path: str) -> str:
    return "RELAY_" + path.replace(".", "__").upper()


class TestDefaults:
    @pytest.mark.parametrize(("path", "default"), CONTRACT.items())
    def test_are_the_contracts(self, path: str, default: object) -> None:
        found = at(loaded(), path)
        assert (Path(found) == Path(str(default))) if path == "store.data_dir" else (found == default)

    def test_the_metrics_are_not_where_prometheus_listens(self) -> None:
        assert loaded().metrics_bind.rpartition(":")[2] != "9090"

    def test_of_an_upstream(self) -> None:
        (upstream,) = loaded().upstreams
        assert set(upstream.apis) == {"chat", "messages", "responses"}
        assert upstream.models == ["*"]
        assert upstream.buffer is True
        assert upstream.usage == "passthrough"
        assert upstream.api_key() is None

    def test_an_empty_file_changes_nothing(self, folder: Path) -> None:
        assert loaded(config=written(folder, "")) == loaded()
        assert loaded(config=written(folder, "# nothing\n")) == loaded()


class TestWhoWins:
    def test_file_then_environment_then_flags(self, folder: Path) -> None:
        config = written(
            folder,
            {
                "bind": "127.0.0.1:1",
                "workers": 2,
                "log": {"level": "debug", "format": "json"},
                "streams": {"heartbeat": "1s", "lease": "1s", "patience": "1s"},
            },
        )
        environ = {"RELAY_BIND": "127.0.0.1:2", "RELAY_STREAMS__HEARTBEAT": "2s", "RELAY_STREAMS__LEASE": "2s"}
        flags = {"bind": "127.0.0.1:3", "streams": {"heartbeat": "3s"}}
        settings = loaded(flags, environ, config)
        assert settings.bind == "127.0.0.1:3"
        assert settings.workers == 2
        assert (settings.log.level, settings.log.format) == ("debug", "json")
        streams = settings.streams
        assert (streams.heartbeat, streams.lease, streams.patience) == (3, 2, 1)
        assert streams.retention == 3600

    def test_upstreams_are_replaced_whole(self, folder: Path) -> None:
        config = written(folder, {"upstreams": [{"name": "a", "base_url": "http://a"}]})
        assert [u.name for u in load(config, {}, {}).upstreams] == ["a"]
        environ = {"RELAY_UPSTREAMS": json.dumps([{"name": "b", "base_url": "http://b", "models": ["gpt-*"]}])}
        assert [u.name for u in load(config, {}, environ).upstreams] == ["b"]
        assert [u.name for u in load(config, {"upstreams": [UPSTREAM]}, environ).upstreams] == ["one"]

    def test_the_real_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_STREAMS__LEASE", "4s")
        assert load(None, {"upstreams": [UPSTREAM]}).streams.lease == 4

    def test_a_section_as_json_and_one_of_its_settings(self) -> None:
        environ = {"RELAY_STREAMS": '{"heartbeat": "1s", "lease": "2s"}', "RELAY_STREAMS__LEASE": "3s"}
        streams = loaded(environ=environ).streams
        assert (streams.heartbeat, streams.lease) == (1, 3)

    # Each of those left out needs another: `test_keys_in_the_environment` and `TestWebhook` have them.
    @pytest.mark.parametrize(
        "path", [path for path in CONTRACT if path not in ("auth.mode", "auth.keys_file", "webhook.url")]
    )
    def test_every_setting_can_stand_in_the_environment(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENTRY_KEYS", "none")
        monkeypatch.setenv("OWNER_SECRET", "s" * 32)
        monkeypatch.setenv("HOOK_SECRETS", HOOK_SECRET)
        other = {
            "bind": "0.0.0.0:1",
            "metrics_bind": "[::1]:2",
            "hosts": '["relay.example"]',
            "store.url": "redis://h:1",
            "store.data_dir": "/data",
            "store.max_memory": "64MiB",
            "store.outage": "refuse",
            "streams.event_ids": "ask",
            "store.ahead": "1KiB",
            "store.prefix": "llm:",
            "store.compact": "false",
            "store.encryption_env": "ENTRY_KEYS",
            "workers": "2",
            "auth.secret_env": "OWNER_SECRET",
            "auth.credential_headers": '["gate-key"]',
            "tickets.scope": "off",
            "cors.origins": '["https://app.example"]',
            "playground": "true",
            "playground_replicas": '["http://relay.example:8081"]',
            "playground_control": "http://127.0.0.1:8079/word",
            "limits.open_rate": "600/m",
            "limits.resume_rate": "600/m",
            "limits.replay_rate": "600/m",
            "streams.attach_retries": "marked",
            "streams.session_headers": '["x-of-ours"]',
            "streams.heartbeat_form": "event",
            "streams.broken_end": "cut",
            "streams.max_event_bytes": "1KiB",
            "streams.max_stream_bytes": "1KiB",
            "limits.body": "1KiB",
            "limits.bodies": "1MiB",
            "limits.readers_per_stream": "1",
            "limits.streams_per_owner": "1",
            "limits.streams": "1",
            "limits.listed_streams": "1",
            "webhook.secret_env": "HOOK_SECRETS",
            "webhook.proxy": "off",
            "webhook.ca_file": certifi.where(),
            "metrics.models": "names",
            "metrics.most_names": "1",
            "log.level": "debug",
            "log.format": "json",
            "log.access": "off",
        }.get(path, "7s")
        assert at(loaded(environ={variable(path): other}), path) != at(loaded(), path)

    def test_keys_in_the_environment(self) -> None:
        auth = loaded(
            {"upstreams": [UPSTREAM | {"api_key_env": "PATH"}]},
            {"RELAY_AUTH__MODE": "keys", "RELAY_AUTH__KEYS_FILE": "/etc/relay/keys.json"},
        ).auth
        assert (auth.mode, auth.keys_file) == ("keys", Path("/etc/relay/keys.json"))


class TestValues:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("15s", 15),
            ("0.5s", 0.5),
            ("250ms", 0.25),
            ("2m", 120),
            ("1.5m", 90),
            ("1h", 3600),
            ("2d", 172800),
            (" 15s ", 15),
            ("15 s", 15),
            (15, 15),
            (0.25, 0.25),
        ],
    )
    def test_durations(self, text: object, seconds: float, folder: Path) -> None:
        assert loaded({"streams": {"heartbeat": text}}).streams.heartbeat == pytest.approx(seconds)
        config = written(folder, {"streams": {"heartbeat": text}})
        assert loaded(config=config).streams.heartbeat == pytest.approx(seconds)

    @pytest.mark.parametrize(
        "bad",
        ["", "s", "15", "15x", "15 sec", "-1s", "+1s", "1e3s", "1,5s", ".5s", "5.s", "never", "inf", "1h30m",
         0, "0s", -1, True, None, [], float("inf"), float("nan")],
    )  # fmt: skip
    def test_what_is_no_duration(self, bad: object) -> None:
        assert "streams.heartbeat" in refused({"streams": {"heartbeat": bad}})

    @pytest.mark.parametrize(
        ("text", "bytes_"),
        [
            ("8MiB", 8 << 20),
            ("1KiB", 1024),
            ("1GiB", 1 << 30),
            ("1KB", 1000),
            ("2MB", 2_000_000),
            ("100B", 100),
            ("100", 100),
            ("8 MiB", 8 << 20),
            (4096, 4096),
        ],
    )
    def test_sizes(self, text: object, bytes_: int) -> None:
        assert loaded({"limits": {"body": text}}).limits.body == bytes_
        assert loaded(environ={"RELAY_LIMITS__BODY": str(text)}).limits.body == bytes_

    @pytest.mark.parametrize("bad", ["", "MiB", "1.5MiB", "-1", "8mib", "8Mi", "8XB", 0, -1, 1.5, True, None, "1TiB"])
    def test_what_is_no_size(self, bad: object) -> None:
        assert "limits.body" in refused({"limits": {"body": bad}})

    @pytest.mark.parametrize("path", ["streams.tombstone", "drain.timeout"])
    def test_some_durations_may_be_nothing(self, path: str) -> None:
        assert at(loaded(nested(path, "0s")), path) == 0

    @pytest.mark.parametrize(("text", "seconds"), [("never", float("inf")), ("0s", 0), (0, 0), ("0ms", 0), ("90s", 90)])
    def test_abandon_after(self, text: object, seconds: float, folder: Path) -> None:
        config = written(folder, {"streams": {"abandon_after": text}})
        assert loaded(config=config).streams.abandon_after == seconds

    @pytest.mark.parametrize(("text", "seconds"), [("never", float("inf")), ("0s", 0), ("0", 0)])
    def test_abandon_after_in_the_environment(self, text: str, seconds: float) -> None:
        assert loaded(environ={"RELAY_STREAMS__ABANDON_AFTER": text}).streams.abandon_after == seconds

    @pytest.mark.parametrize("bad", ["Never", "Off", "-1s", -1, float("nan"), "", None, True])
    def test_what_is_no_abandon_after(self, bad: object) -> None:
        assert "streams.abandon_after" in refused({"streams": {"abandon_after": bad}})

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("streams.abandon_after", float("inf")),
            ("streams.detached", float("inf")),
            ("tickets.scope", "off"),
            ("streams.attach_retries", "off"),
            ("limits.open_rate", None),
            ("limits.resume_rate", None),
            ("limits.replay_rate", None),
            ("store.encryption_env", None),
            ("store.max_memory", None),
            ("auth.keys_file", None),
            ("webhook.url", None),
            ("webhook.secret_env", None),
            ("webhook.ca_file", None),
            ("webhook.proxy", "off"),
        ],
    )
    def test_off_is_said_alike_everywhere(self, path: str, value: object, folder: Path) -> None:
        variable = "RELAY_" + path.upper().replace(".", "__")
        section, _, name = path.partition(".")
        (folder / "unquoted.yaml").write_text(f"{section}: {{{name}: off}}\n")
        for settings in (
            loaded(nested(path, "off")),
            loaded(environ={variable: "off"}),
            loaded(config=written(folder, nested(path, "off"))),
            loaded(config=folder / "unquoted.yaml"),
        ):
            assert at(settings, path) == value

    def test_the_environment_switches_off_what_the_file_has_on(self, folder: Path) -> None:
        config = written(folder, {"limits": {"open_rate": "600/m"}})
        assert loaded(config=config, environ={"RELAY_LIMITS__OPEN_RATE": "off"}).limits.open_rate is None

    @pytest.mark.parametrize(("switch", "word"), [(True, "marked"), (False, "off")])
    def test_attach_retries_was_a_switch(self, switch: bool, word: str, folder: Path) -> None:
        assert loaded({"streams": {"attach_retries": switch}}).streams.attach_retries == word
        said = str(switch).lower()
        assert loaded(environ={"RELAY_STREAMS__ATTACH_RETRIES": said}).streams.attach_retries == word

    @pytest.mark.parametrize(
        "bind", ["127.0.0.1:8080", "0.0.0.0:80", "[::]:8080", "localhost:1", "relay.internal:65535"]
    )
    def test_addresses(self, bind: str) -> None:
        assert loaded({"bind": bind}).bind == bind

    @pytest.mark.parametrize(
        "bad", ["", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "::1:8080", "http://h:1", "h:123456", "h:65536", 8080]
    )
    @pytest.mark.parametrize("path", ["bind", "metrics_bind"])
    def test_what_is_no_address(self, path: str, bad: object) -> None:
        assert path in refused({path: bad})

    @pytest.mark.parametrize(
        "url",
        [
            "embedded",
            "redis://localhost:6379/0",
            "rediss://:password@host",
            "unix:///run/valkey.sock",
            "redis+sentinel://a:26379,b:26379/mymaster",
            "rediss+sentinel://a/mymaster",
            "redis+cluster://a:7000",
            "rediss+cluster://a:7000",
        ],
    )
    def test_stores(self, url: str) -> None:
        assert loaded({"store": {"url": url}}).store.url == url

    @pytest.mark.parametrize("bad", ["", "embedded2", "http://h", "valkey:/h", "redis+foo://h", "localhost:6379", 1])
    def test_what_is_no_store(self, bad: object) -> None:
        assert "store.url" in refused({"store": {"url": bad}})


class TestWebhook:
    HOOK: ClassVar[dict[str, Any]] = {"url": "https://app.example/hooks?source=relay", "secret_env": "HOOK_SECRETS"}

    @pytest.fixture(autouse=True)
    def _secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOOK_SECRETS", f"{HOOK_SECRET},{HOOK_SECRET}")

    def test_it_has_a_url_and_secrets(self) -> None:
        hook = loaded({"webhook": self.HOOK}).webhook
        assert hook.url == self.HOOK["url"]
        assert hook.secrets() == [bytes(24), bytes(24)]
        assert loaded().webhook.secrets() == []
        named = {"RELAY_WEBHOOK__URL": "http://hooks:8000", "RELAY_WEBHOOK__SECRET_ENV": "HOOK_SECRETS"}
        assert loaded(environ=named).webhook.url == "http://hooks:8000"

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"secret_env": None}, "name the variable"),
            ({"secret_env": "NOT_SET"}, "holds no secret"),
            ({"secret_env": "RELAY_HOOK"}, "RELAY_"),
            ({"url": "ftp://app.example"}, "write off, or a URL"),
            ({"url": "https://user:pass@app.example"}, "write off, or a URL"),
            ({"url": "https://app.example/#x"}, "write off, or a URL"),
            ({"url": "https://app.example/\u00fc"}, "write off, or a URL"),
            ({"retry_for": "2h"}, "streams.retention"),
            ({"timeout": "0s"}, "webhook.timeout"),
            ({"ca_file": "/nowhere.pem"}, "ca_file"),
        ],
    )
    def test_what_cannot_be_used_is_said_without_its_secrets(self, change: dict[str, Any], words: str) -> None:
        message = refused({"webhook": {**self.HOOK, **change}})
        assert words in message
        assert "webhook" in message
        assert "AAAA" not in message
        assert "pass@" not in message

    def test_without_a_url_its_times_are_nobody_s_business(self) -> None:
        assert loaded({"webhook": {"retry_for": "2h"}}).webhook.retry_for == 7200


class TestWhatStopsTheStart:
    @pytest.mark.parametrize(
        ("path", "bad"),
        [
            ("workers", 0),
            ("workers", "many"),
            ("store.outage", "ignore"),
            ("streams.attach_retries", "maybe"),
            ("streams.heartbeat_form", "ping"),
            ("streams.broken_end", "off"),
            ("auth.mode", "none"),
            ("limits.streams", 0),
            ("limits.readers_per_stream", -1),
            ("log.level", "loud"),
            ("log.format", "xml"),
            ("streams", 5),
        ],
    )
    def test_a_bad_value_is_named_wherever_it_stood(self, path: str, bad: object, folder: Path) -> None:
        for message in (
            refused(nested(path, bad)),
            refused(config=written(folder, nested(path, bad))),
            refused(environ={variable(path): str(bad)}),
        ):
            assert path in message.lower().replace("__", ".")

    def test_all_bad_values_are_named_at_once(self) -> None:
        message = refused({"streams": {"lease": "x", "heartbeat": "y"}, "log": {"level": "z"}})
        assert all(path in message for path in ("streams.lease", "streams.heartbeat", "log.level"))

    @pytest.mark.parametrize(
        "path", ["nothing", "streams.heartbeet", "store.nothing", "log.nothing.deeper", "limits.body.max"]
    )
    def test_an_unknown_key_is_named(self, path: str, folder: Path) -> None:
        for message in (
            refused(config=written(folder, nested(path, "1"))),
            refused(environ={variable(path): "1"}),
            refused(nested(path, "1")),
        ):
            named = message.lower().replace("__", ".")
            assert path in named or path.rpartition(".")[0] in named

    @pytest.mark.parametrize(
        "name", ["RELAY_BIND__PORT", "RELAY_WORKERS__N", "RELAY_METRICS_BIND__X", "RELAY_STREAMS__LEASE__MS"]
    )
    def test_a_variable_below_a_plain_setting_is_unknown(self, name: str) -> None:
        assert name.split("__")[-1].lower() in refused(environ={name: "1"}).lower()

    @pytest.mark.parametrize("name", ["RELAY_UPSTREAMS__0__NAME", "RELAY_UPSTREAMS__NAME"])
    def test_a_list_is_not_written_in_pieces(self, name: str) -> None:
        with pytest.raises(SettingsError, match=r"(?i)upstreams"):
            load(None, {}, {name: "x"})

    @pytest.mark.parametrize("value", ["not json", "[", '{"name": "a"}'])
    def test_a_list_in_the_environment_is_json(self, value: str) -> None:
        with pytest.raises(SettingsError, match=r"(?i)upstreams"):
            load(None, {}, {"RELAY_UPSTREAMS": value})

    def test_an_unknown_key_of_an_upstream_is_named(self, folder: Path) -> None:
        config = written(folder, {"upstreams": [{**UPSTREAM, "modles": ["*"]}]})
        with pytest.raises(SettingsError, match=r"upstreams\.0\.modles"):
            load(config, {}, {})

    @pytest.mark.parametrize(
        ("key", "bad"),
        [
            ("name", ""),
            ("name", "a b"),
            ("name", "x" * 65),
            ("base_url", "api.openai.com"),
            ("base_url", "ftp://h"),
            ("base_url", "http://"),
            ("base_url", "https://h/?key=1"),
            ("base_url", "https://user:secret@h"),
            ("apis", []),
            ("apis", ["chat", "embeddings"]),
            ("models", []),
            ("models", "gpt-*"),
            ("buffer", "perhaps"),
            ("usage", "on"),
        ],
    )
    def test_a_bad_value_of_an_upstream_is_named(self, key: str, bad: object) -> None:
        with pytest.raises(SettingsError, match=rf"upstreams\.0\.{key}"):
            load(None, {"upstreams": [{**UPSTREAM, key: bad}]}, {})

    @pytest.mark.parametrize("key", ["name", "base_url"])
    def test_what_an_upstream_lacks_is_named(self, key: str) -> None:
        lacking = {k: v for k, v in UPSTREAM.items() if k != key}
        with pytest.raises(SettingsError, match=rf"upstreams\.0\.{key}: is missing"):
            load(None, {"upstreams": [lacking]}, {})

    def test_two_upstreams_of_one_name(self) -> None:
        with pytest.raises(SettingsError, match="same name"):
            load(None, {"upstreams": [UPSTREAM, UPSTREAM]}, {})

    @pytest.mark.parametrize("content", ["", "upstreams: []", "bind: 127.0.0.1:1"])
    def test_no_upstream(self, content: str, folder: Path) -> None:
        with pytest.raises(SettingsError, match="--upstream"):
            load(written(folder, content), {}, {})

    @pytest.mark.parametrize("value", [None, ""])
    def test_a_key_whose_variable_is_not_set(self, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ONE_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("ONE_KEY", value)
        with pytest.raises(SettingsError, match="ONE_KEY") as error:
            load(None, {"upstreams": [{**UPSTREAM, "api_key_env": "ONE_KEY"}]}, {})
        assert "one" in str(error.value)

    def test_a_key_whose_variable_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ONE_KEY", "sk-1")
        (upstream,) = load(None, {"upstreams": [{**UPSTREAM, "api_key_env": "ONE_KEY"}]}, {}).upstreams
        assert upstream.api_key() == "sk-1"


class TestTheFile:
    @pytest.mark.parametrize("content", ["a: [", "a: b: c", "\tbind: x", "{", "bind: *x", "a: !!python/object:x.y {}"])
    def test_that_is_not_yaml(self, content: str, folder: Path) -> None:
        assert "relay.yaml: is not YAML" in refused(config=written(folder, content))

    @pytest.mark.parametrize("content", ["- a\n- b\n", "text", "5", "true"])
    def test_that_holds_no_keys(self, content: str, folder: Path) -> None:
        assert "must hold keys and values" in refused(config=written(folder, content))

    @pytest.mark.parametrize("content", ["5: x\n", "on: x\n", "null: x\n", "streams: {5: x}\n", "1.5: {}\n"])
    def test_whose_keys_are_no_names(self, content: str, folder: Path) -> None:
        assert refused(config=written(folder, content))

    def test_that_is_not_there(self, folder: Path) -> None:
        assert "none.yaml" in refused(config=folder / "none.yaml")
        assert "cannot be read" in refused(config=folder)

    def test_that_is_no_text(self, folder: Path) -> None:
        path = folder / "relay.yaml"
        path.write_bytes(b"bind: \xff\xfe")
        assert "relay.yaml" in refused(config=path)

    def test_the_example_of_the_documentation(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
        config = written(
            folder,
            """
bind: 127.0.0.1:8080
metrics_bind: 127.0.0.1:9464
store: {url: embedded, data_dir: ./relay-data, outage: degrade}
upstreams:
  - name: openai
    base_url: https://api.openai.com
    apis: [chat, responses]
    models: ["gpt-*", "openai/*"]
    strip_prefix: openai/
    api_key_env: OPENAI_API_KEY
    buffer: true
    usage: passthrough
streams: {heartbeat: 15s, abandon_after: 60s, retention: 1h, max_event_bytes: 8MiB, attach_retries: auto}
auth: {mode: passthrough}
limits: {body: 32MiB, readers_per_stream: 64, write_timeout: 30s}
drain: {timeout: 600s}
log: {level: info, format: text}
""",
        )
        (upstream,) = load(config, {}, {}).upstreams
        assert upstream.matches("chat", "gpt-5") == "gpt-*"
        assert upstream.matches("responses", "openai/gpt-5") == "openai/*"
        assert upstream.matches("messages", "gpt-5") is None
        assert upstream.matches("chat", "claude") is None
        assert upstream.matches("chat", "GPT-5") is None
        assert upstream.matches(None, "gpt-5") == "gpt-*"


class TestVariablesThatAreNoSettings:
    @pytest.mark.parametrize(
        "name",
        [
            "RELAY_PORT",
            "RELAY_SERVICE_HOST",
            "RELAY_SERVICE_PORT",
            "RELAY_SERVICE_PORT_HTTP",
            "RELAY_PORT_8080_TCP",
            "RELAY_PORT_8080_TCP_ADDR",
            "RELAY_METRICS_SERVICE_HOST",
            "RELAY_METRICS_PORT",
            "RELAY_METRICS_PORT_9464_TCP_ADDR",
            "RELAY_TEST_STRICT",
            "RELAYX",
            "PATH",
        ],
    )
    def test_are_ignored(self, name: str) -> None:
        assert loaded(environ={name: "tcp://10.0.0.1:8080"}) == loaded()

    @pytest.mark.parametrize("name", ["RELAY_", "RELAY_PORTS", "RELAY_SERVICES", "RELAY__BIND", "RELAY_STORE_URL"])
    def test_names_that_are_merely_like_them_are_not(self, name: str) -> None:
        assert name in refused(environ={name: "x"})


class TestReference:
    def test_the_contract_has_every_setting_written_out(self) -> None:
        rows = {line.split("`")[1] for line in reference().splitlines()[2:]}
        lists = {f"upstreams[].{key}" for key in OF_AN_UPSTREAM} | {f"auth.keys[].{key}" for key in OF_A_KEY}
        assert rows == {"upstreams", *CONTRACT, *lists}

    @pytest.mark.parametrize("path", [*CONTRACT, *(f"upstreams[].{key}" for key in OF_AN_UPSTREAM)])
    def test_lists_every_setting_of_the_contract(self, path: str) -> None:
        (row,) = [line for line in reference().splitlines() if line.startswith(f"| `{path}` |")]
        meaning = row.split("|")[-2].strip()
        assert meaning.endswith(".")
        assert meaning != "None"

    def test_every_row_is_a_setting(self) -> None:
        rows = [line.split("`")[1] for line in reference().splitlines()[2:]]
        assert len(rows) == len(set(rows))
        settings = loaded()
        for path in rows:
            if path.startswith("upstreams[]."):
                fields = type(settings.upstreams[0]).model_fields.items()
                assert path.removeprefix("upstreams[].") in {field.alias or name for name, field in fields}
            elif path.startswith("auth.keys[]."):
                assert path.removeprefix("auth.keys[].") in KeySettings.model_fields
            else:
                at(settings, path)

    @pytest.mark.parametrize(
        ("path", "default"),
        [
            ("streams.heartbeat", "`15s`"),
            ("streams.attach_retries", "`auto`"),
            ("streams.max_event_bytes", "`8MiB`"),
            ("limits.readers_per_stream", "`64`"),
            ("upstreams[].name", "required"),
        ],
    )
    def test_says_the_default_as_it_is_written(self, path: str, default: str) -> None:
        assert f"| `{path}` | {default} |" in reference()


def test_a_password_in_an_upstream_s_address_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        loaded({"upstreams": [{"name": "up", "base_url": "https://user:pass-4711@upstream.test"}]})
    assert "base_url" in str(refused.value)
    assert "4711" not in str(refused.value)
