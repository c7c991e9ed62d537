"""Where a request goes at an upstream: its `base_url` and the request's path, joined as the users of SDKs mean it.

The OpenAI SDKs take a base with the version in it (`https://host/v1`, `…/api/paas/v4`, `…/v1beta/openai`) and append
`/chat/completions`; the Anthropic SDKs take one without and append `/v1/messages`. Clients of the relay send `/v1/…` in
both cases. So the `/v1` of the request stands for the version in the base, where that has one: at its end, or for
OpenAI's paths anywhere in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

_VERSION = re.compile(r"v[0-9]{1,3}((alpha|beta|preview)[0-9]*)?")
_OWN = "/v1"


def join(base_url: str, target: str, *, anthropic: bool, path_map: Mapping[str, str] | None = None) -> str:
    """The address of a target (a path that begins with `/v1`, and perhaps a query) under a base. `anthropic`: as the
    Anthropic SDKs join the two. `path_map`: paths, with all below them, that stand elsewhere under the base."""
    base = base_url.rstrip("/")
    if path_map and (mapped := _mapped(path_map, target)) is not None:
        return base + mapped
    if _is_versioned(base, anthropic) and re.match(r"/v1(?=[/?]|$)", target):
        target = target.removeprefix(_OWN)
    return base + target


@functools.lru_cache(maxsize=256)  # of the settings' bases
def _is_versioned(base: str, anthropic: bool) -> bool:
    segments = urlsplit(base).path.split("/")
    return any(_VERSION.fullmatch(segment) for segment in (segments[-1:] if anthropic else segments))


def relay_root(base_url: str) -> str:
    """Under which a relay has its own paths (`/streams/…`), beside those that begin with `/v1`."""
    return base_url.rstrip("/").removesuffix(_OWN)


def _mapped(path_map: Mapping[str, str], target: str) -> str | None:
    """The target by the longest rule that fits, None where there is none. What a segment spells with `%` is what it
    means; what stands below the rule's path goes on as it came."""
    path, mark, query = target.partition("?")
    segments = path.split("/")
    means = [unquote(segment) for segment in segments]
    for ours in sorted(path_map, key=len, reverse=True):
        rule = ours.split("/")
        if means[: len(rule)] == rule:
            return "/".join([path_map[ours], *segments[len(rule) :]]) + mark + query
    return None
