"""What is served to browsers: the client module always, the playground only where it is switched on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import relay as package
from relay.api import pages
from relay.config import SettingsError, load
from tests.conftest import Relays
from tests.support.scripted import ScriptedUpstream
from tests.support.sseclient import RawStream, open_stream

pytestmark = pytest.mark.slow

MODULE = "/client/resuming-fetch.js"
ROOT = Path(package.__file__).parent
ASSETS = sorted(path.name for path in (ROOT / "playground").iterdir() if path.name != "index.html")
PATHS = ["/", "/playground", "/playground/replicas.json", *(f"/playground/{name}" for name in ASSETS)]


def config(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {"upstreams": [{"name": "up", "base_url": upstream.url}], **more}


def get(url: str, method: str = "GET", **headers: str) -> tuple[RawStream, bytes]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with open_stream(url, method, sent) as answer:
        return answer, answer.read()


def test_the_client_module_is_always_served(upstream: ScriptedUpstream, relays: Relays) -> None:
    relay = relays.start(config(upstream, cors={"origins": ["https://app.example"]}))
    content = (ROOT / "client" / "js" / "resuming-fetch.js").read_bytes()
    answer, body = get(relay.url + MODULE, origin="https://app.example")
    assert (answer.status, body) == (200, content)
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert re.findall(rb"""\bfrom ["']|\bimport\b[^("'\n]*["'(]\.""", content) == []  # one file is the whole module
    for name in ("events.js", "ai.js"):
        answer, body = get(f"{relay.url}/client/{name}")
        assert (answer.status, body) == (200, (ROOT / "client" / "js" / name).read_bytes())
        assert b'from "./resuming-fetch.js"' in body
    answer, _ = get(relay.url + MODULE)
    tag = answer.headers["etag"]
    for named in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer, body = get(relay.url + MODULE, if_none_match=named)
        assert (answer.status, body) == (304, b"")
        assert answer.headers["etag"] == tag
        assert "content-length" not in answer.headers
    answer, body = get(relay.url + MODULE, if_none_match='"other"')
    assert (answer.status, body) == (200, content)
    answer, body = get(relay.url + MODULE, "HEAD")
    assert (answer.status, body) == (200, b"")
    assert answer.headers["content-length"] == str(len(content))
    assert upstream.calls == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_is_only_for_reading(upstream: ScriptedUpstream, relays: Relays, method: str) -> None:
    relay = relays.start(config(upstream))
    with open_stream(relay.url + MODULE, method) as answer:
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert answer.json["error"]["code"] == "method_not_allowed"


def test_off_by_default_and_then_nothing_tells_of_it(upstream: ScriptedUpstream, relays: Relays) -> None:
    relay = relays.start(config(upstream))

    def told(path: str) -> tuple[int, list[str], bytes]:
        answer, body = get(relay.url + path, x_request_id="same")
        names = [name for name, _ in answer.header_list]
        return answer.status, names, body.replace(path.encode(), b"")

    for path in PATHS[1:]:
        assert told(path) == told("/never/was"), path
    assert get(relay.url + "/")[0].status == 404
    assert told("/never/was")[0] == 404


def test_switched_on_it_lets_nothing_else_in(upstream: ScriptedUpstream, relays: Relays) -> None:
    other = "http://127.0.0.1:8081"
    relay = relays.start(config(upstream, playground=True, playground_replicas=[other]))
    for path in PATHS:
        answer, body = get(relay.url + path)
        if path == "/":
            assert (answer.status, answer.headers["location"], body) == (302, "playground", b"")
            continue
        assert answer.status == 200, path
        rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert rules.pop("connect-src") == f"'self' {other}"
        assert rules == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        outside = set(re.findall(rb"https?://[^\s\"'`$]+", body)) - {b"http://www.w3.org/2000/svg", other.encode()}
        assert outside == set(), path
    with open_stream(f"{relay.url}/playground", "POST") as refused:
        assert refused.status == 405
    assert get(f"{relay.url}/playground/../cli.py")[0].status == 400
    assert get(f"{relay.url}/playground/index.html")[0].status == 404
    assert upstream.calls == []


def test_what_kills_replicas_is_told_to_the_page_and_let_through(upstream: ScriptedUpstream, relays: Relays) -> None:
    control = "http://127.0.0.1:8079/word"
    for more in ({}, {"playground_control": control}):
        relay = relays.start(config(upstream, playground=True, **more))
        answer, body = get(relay.url + "/playground/replicas.json")
        assert json.loads(body)["control"] == more.get("playground_control")
        assert (control in answer.headers["content-security-policy"]) == bool(more)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8079/word", "http://127.0.0.1:8079", "http://a/b; script-src *", "http://a/b/c"]
)
def test_what_kills_replicas_is_one_address(address: str) -> None:
    upstreams = [{"name": "up", "base_url": "http://127.0.0.1:1"}]
    with pytest.raises(SettingsError, match=r"playground_control.*http://127\.0\.0\.1:8079/word"):
        load(flags={"playground_control": address, "upstreams": upstreams})


def test_every_file_of_the_page_is_served() -> None:
    settings = load(flags={"playground": True, "upstreams": [{"name": "up", "base_url": "http://127.0.0.1:1"}]})
    assert set(PATHS) | {f"/client/{name}" for name in pages.CLIENT_MODULES} == set(pages.files(settings))


@pytest.mark.parametrize("address", ["127.0.0.1:8081", "http://a.example/path", "http://a.example; script-src *", "*"])
def test_a_replica_is_an_origin_and_nothing_else(address: str) -> None:
    upstreams = [{"name": "up", "base_url": "http://127.0.0.1:1"}]
    with pytest.raises(SettingsError, match="playground_replicas"):
        load(flags={"playground_replicas": [address], "upstreams": upstreams})


@pytest.mark.parametrize("name", ["index.html", *ASSETS])
def test_files_stay_small_and_free_of_markup_from_text(name: str) -> None:
    text = (ROOT / "playground" / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\sstyle=|\son\w+=\"", text)
