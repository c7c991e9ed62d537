"""A base_url as the users of SDKs write it, and the address that a request goes to."""

from __future__ import annotations

import pytest

from relay.upstream.addresses import join

OPENAI = [
    ("https://h", "https://h/v1/chat/completions"),
    ("https://h/", "https://h/v1/chat/completions"),
    ("https://h/v1", "https://h/v1/chat/completions"),
    ("https://h/v1/", "https://h/v1/chat/completions"),
    ("https://h/openai/v1", "https://h/openai/v1/chat/completions"),
    ("https://h/api/v3", "https://h/api/v3/chat/completions"),
    ("https://h/api/coding/paas/v4/", "https://h/api/coding/paas/v4/chat/completions"),
    ("https://h/v1beta/openai", "https://h/v1beta/openai/chat/completions"),
    (
        "https://h/v1beta1/projects/p/endpoints/openapi",
        "https://h/v1beta1/projects/p/endpoints/openapi/chat/completions",
    ),
    ("https://h/v1/account/gateway/openai", "https://h/v1/account/gateway/openai/chat/completions"),
    # No version: a name that only looks like one, a host, a path of the deployment's own.
    ("https://v1.h", "https://v1.h/v1/chat/completions"),
    ("https://h/version", "https://h/version/v1/chat/completions"),
    ("https://h/v", "https://h/v/v1/chat/completions"),
    ("https://h/team/llm", "https://h/team/llm/v1/chat/completions"),
]
ANTHROPIC = [
    ("https://h", "https://h/v1/messages"),
    ("https://h/v1", "https://h/v1/messages"),
    ("https://h/anthropic", "https://h/anthropic/v1/messages"),
    ("https://h/anthropic/v1", "https://h/anthropic/v1/messages"),
    ("https://h/v1/account/gateway/anthropic", "https://h/v1/account/gateway/anthropic/v1/messages"),
]


@pytest.mark.parametrize(("base", "whole"), OPENAI)
def test_openai_s_sdks_append_to_a_base_with_the_version(base: str, whole: str) -> None:
    assert join(base, "/v1/chat/completions", anthropic=False) == whole


@pytest.mark.parametrize(("base", "whole"), ANTHROPIC)
def test_anthropic_s_append_the_version_themselves(base: str, whole: str) -> None:
    assert join(base, "/v1/messages", anthropic=True) == whole


@pytest.mark.parametrize("rest", ["/models?after=v1", "?x=/v1", "", "/a%2Fb//c"])
def test_a_query_and_an_encoded_path_go_on_as_they_came(rest: str) -> None:
    assert join("https://h/v2", "/v1" + rest, anthropic=False) == "https://h/v2" + rest


def test_only_the_whole_segment_stands_for_the_version() -> None:
    assert join("https://h/v2", "/v1x/models", anthropic=False) == "https://h/v2/v1x/models"
