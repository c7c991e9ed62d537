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


CODEX = {"/v1": "/backend-api/codex"}


@pytest.mark.parametrize(
    ("path_map", "target", "whole"),
    [
        (CODEX, "/v1/responses", "/backend-api/codex/responses"),
        (CODEX, "/v1/responses/compact?x=/v1/a", "/backend-api/codex/responses/compact?x=/v1/a"),
        (CODEX, "/v1/models?client_version=0.171.0", "/backend-api/codex/models?client_version=0.171.0"),
        (CODEX, "/v1", "/backend-api/codex"),
        (CODEX, "/v1?a=b", "/backend-api/codex?a=b"),
        ({"/v1": ""}, "/v1/responses", "/responses"),
        ({"/v1/responses": "/other/answers"}, "/v1/responses", "/other/answers"),
        ({"/v1/responses": "/other/answers"}, "/v1/responses/resp_1/cancel", "/other/answers/resp_1/cancel"),
        ({"/v1/responses": "/other/answers"}, "/v1/responses2", "/v1/responses2"),
        ({"/v1/responses": "/other/answers"}, "/v1/models", "/v1/models"),
        ({"/v1": "/a", "/v1/responses": "/b"}, "/v1/responses", "/b"),
        ({"/v1/responses": "/b", "/v1": "/a"}, "/v1/models", "/a/models"),
        # What is spelled otherwise is the same path upstream, so the same rule holds for it.
        ({"/v1": "/a", "/v1/responses": "/b"}, "/v1/%72esponses", "/b"),
        ({"/v1": "/a", "/v1/responses": "/b"}, "/v1/responses/a%2Fb", "/b/a%2Fb"),
        ({"/v1": "/a", "/v1/responses": "/b"}, "/v1/responses%2Fa", "/a/responses%2Fa"),
    ],
)
def test_paths_that_stand_elsewhere(path_map: dict[str, str], target: str, whole: str) -> None:
    for base in ("https://h", "https://h/"):
        assert join(base, target, anthropic=False, path_map=path_map) == "https://h" + whole


def test_a_path_that_stands_elsewhere_takes_nothing_off_its_base() -> None:
    base = "https://h/team/v1"
    assert join(base, "/v1/responses", anthropic=False, path_map=CODEX) == base + "/backend-api/codex/responses"
    assert join(base, "/v1/responses", anthropic=False, path_map={"/v1/x": "/y"}) == base + "/responses"
