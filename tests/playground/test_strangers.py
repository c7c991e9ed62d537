"""A real Chromium with a page of somebody else open, beside a relay that lends its key on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.playground.browser import Browser, Page
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.site import Site

pytestmark = pytest.mark.slow

BODY = json.dumps({"model": "m", "stream": True, "messages": []})


class _Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>cats</title>")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """The address of a page that its user merely looks at."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://cats.localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream("data: {}\n\n", "data: [DONE]\n\n"))
        upstream.on_path("GET /v1/models", *json_response(200, {"data": []}))
        served = {"name": "up", "base_url": upstream.url, "api_key_env": "UP_KEY"}
        config = {"upstreams": [served], "playground": True, "drain": {"timeout": "0s"}}
        with RelayProcess(config, {"UP_KEY": "sk-lent"}) as relay:
            yield Site(upstream, relay)


def answer_to(page: Page, url: str, **init: object) -> object:
    """The status that a page sees of a fetch; 0 where it may not see it, text where the fetch failed."""
    return page.js(f"fetch({json.dumps(url)}, {json.dumps(init)}).then((r) => r.status, (e) => String(e))")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("mode", ["no-cors", "cors"])
def test_a_page_of_another_site_spends_nothing(
    site: Site, stranger: str, browser: Browser, kind: str, mode: str
) -> None:
    page = browser.fresh()
    page.open(stranger)
    for host in ("127.0.0.1", "localhost"):
        url = site.relay.url.replace("127.0.0.1", host)
        init = {"method": "POST", "mode": mode, "body": BODY, "headers": {"content-type": kind}}
        answer_to(page, f"{url}/v1/chat/completions", **init)
        answer_to(page, f"{url}/v1/models", mode=mode)
        answer_to(page, f"{site.relay.metrics_url.replace('127.0.0.1', host)}/metrics", mode=mode)
    form = (
        f"const form = Object.assign(document.createElement('form'), {{method: 'POST', enctype: 'text/plain', "
        f"action: '{site.relay.url}/v1/chat/completions'}}); form.append(Object.assign("
        'document.createElement(\'input\'), {name: \'{"model":"m","stream":true,"a":"\', value: \'"}\'})); '
        "document.body.append(form); form.submit()"
    )
    page.js(f"(() => {{ {form} }})()")
    page.do("waitForURL", "**/v1/chat/completions")
    assert "origin_not_allowed" in page.do("textContent", "body")
    assert site.upstream.calls == []


def test_nor_does_a_name_that_points_here(site: Site, browser: Browser) -> None:
    """DNS rebinding: to the browser it is one origin, and the page reads what it likes."""
    page = browser.fresh()
    url = site.relay.url.replace("127.0.0.1", "cats.localhost")
    page.open(f"{url}/livez")
    headers = {"content-type": "application/json"}
    assert answer_to(page, "/v1/chat/completions", method="POST", body=BODY, headers=headers) == 421
    assert answer_to(page, "/v1/models") == 421
    assert site.upstream.calls == []
    metrics = site.relay.metrics_url.replace("127.0.0.1", "cats.localhost")
    page.open(f"{metrics}/metrics")
    assert "relay_streams" not in page.do("textContent", "body")


def test_the_relay_s_own_page_goes_on(site: Site, browser: Browser) -> None:
    for calls, host in enumerate(("127.0.0.1", "localhost"), 1):
        page = browser.fresh()
        page.open(f"{site.relay.url.replace('127.0.0.1', host)}/playground")
        page.until_state("idle")
        page.fill(api="chat", model="m", prompt="Say something.")
        page.click("send")
        page.until("document.body.dataset.state !== 'idle'")
        assert len(site.upstream.wait_calls(calls)) == calls
