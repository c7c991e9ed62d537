"""`relay check`: are the settings usable, is the store there and safe, do the upstreams answer?"""

from __future__ import annotations

import asyncio

import httpx
import orjson
from yarl import URL

from relay.config import Settings, UpstreamSettings
from relay.protocol.errors import ApiError
from relay.protocol.redirects import REDIRECTS, redirect
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError, EmbeddedStoreInUse
from relay.store.health import node_faults
from relay.store.link import StoreDown
from relay.store.topology import connect
from relay.upstream.client import UpstreamClient, body_of
from relay.upstream.connections import proxy_for
from relay.upstream.routing import Route

_TIMEOUT = 10.0
_LONGEST_LIST = 16 << 20


async def check(settings: Settings) -> int:
    """Print a line per finding; 0 where all is well, 1 where something would not work."""
    print("settings: ok")
    faults = [fault async for fault in _faults(settings)]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


async def _faults(settings: Settings):  # type: ignore[no-untyped-def]
    if settings.store.url == "embedded":
        store = EmbeddedStore(settings.store.data_dir)
        try:
            await asyncio.to_thread(store.start)
        except EmbeddedStoreInUse as running:  # the relay that is checked
            faults = await _store_faults(running.url)
            for fault in faults:
                yield fault
            if not faults:
                print(f"store: ok (embedded in {settings.store.data_dir}, of the relay with pid {running.owner})")
        except EmbeddedStoreError as error:
            yield f"store: {error}"
        else:
            print(f"store: ok (embedded in {settings.store.data_dir})")
            await asyncio.to_thread(store.stop)
    else:
        faults = await _store_faults(settings.store.url)
        for fault in faults:
            yield fault
        if not faults:
            print("store: ok")
    client = UpstreamClient()
    try:
        for upstream in settings.upstreams:
            try:
                print(f"upstream {upstream.name}: {await models_at(client, upstream)}")
            except (ApiError, TimeoutError) as error:
                why = error.__cause__ or error
                yield (
                    f"upstream {upstream.name}: cannot be reached{_by(upstream)} ({type(why).__name__}: {why}); check "
                    "its base_url, and proxy, ca_file and client_cert where it needs them"
                )
    finally:
        await client.close()


def _by(upstream: UpstreamSettings) -> str:
    """Which proxy stands between, if one does: the environment's is easily forgotten."""
    try:
        proxy, _ = proxy_for(upstream, URL(upstream.base_url))
    except ApiError:
        return ""
    whose = ", which the environment names" if upstream.proxy == "env" else ""
    return "" if proxy is None else f" through the proxy {proxy}{whose}"


async def _store_faults(url: str) -> list[str]:
    try:
        topology = connect(url)
    except ValueError as error:
        return [f"store: {error}"]
    try:
        await topology.refresh()
        found: list[str] = []
        for node in topology.nodes():
            found += [f"store: {fault}" for fault in await node_faults(node)]
        return found
    except StoreDown as error:
        return [f"store: cannot be reached ({error}); check store.url and that the server runs"]
    finally:
        await topology.close()


async def models_at(client: UpstreamClient, upstream: UpstreamSettings) -> str:
    """What the upstream has to say of its models. Any answer will do: whether it likes the request is the client's
    credential's business. Raises UpstreamUnreachable, UpstreamTimeout."""
    anthropic = upstream.apis == ["messages"]
    key = upstream.api_key()
    headers = [(b"anthropic-version", b"2023-06-01")] if anthropic else []
    if key is not None:
        headers.append((b"x-api-key", key.encode()) if anthropic else (b"authorization", b"Bearer " + key.encode()))
    url = Route(upstream, "", "other").url("/v1/models")
    if upstream.is_application:
        url = f"{upstream.base_url.rstrip('/')}/"
    body = b""
    async with asyncio.timeout(_TIMEOUT):
        response = await client.send(upstream, "GET", url, headers, b"")
        try:
            async for chunk in body_of(response):
                body += chunk
                if len(body) > _LONGEST_LIST:
                    break
        except httpx.HTTPError:
            pass  # its head has said what there is to know
        finally:
            await body_of(response).aclose()
    if upstream.is_application:  # it has no models, and says what it likes at its root
        return f"ok, GET {url} answers {response.status_code}"
    if response.status_code in REDIRECTS:
        return f"GET {url} answers {redirect(response.status_code, response.headers.get('location', ''))}"
    return found_at(url, response.status_code, body, has_key=key is not None)


def found_at(url: str, status: int, body: bytes, *, has_key: bool) -> str:
    """What an answer to `GET …/models` tells of an upstream's settings."""
    said = f"GET {url} answers {status}"
    if status in (401, 403):
        advice = "check the key in api_key_env" if has_key else "it wants a credential, which clients send"
        return f"ok, {said}: {advice}"
    if status == 200:
        try:
            count = len(orjson.loads(body)["data"])
        except (ValueError, TypeError, LookupError):
            return f"{said} with no list of models: check that base_url is what the API's SDK is given"
        return f"ok, {said}, {count} model{'' if count == 1 else 's'}"
    return f"{said}: if it has no list of models all is well, else check that base_url is what the API's SDK is given"
