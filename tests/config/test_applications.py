"""An application's paths, names and owners, as the settings write them."""

from __future__ import annotations

from typing import Any

import pytest

from relay.config import SettingsError, load
from relay.config.applications import matches, name_in_body, name_in_path
from relay.config.upstreams import UpstreamSettings

APP = {"name": "app", "base_url": "http://app", "apis": ["sse"], "paths": ["/api"]}


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/api/chat", "/api/chat", True),
        ("/api/chat", "/api/chat/", False),  # a slash at the end is taken off before
        ("/api/chat", "/api/chats", False),
        ("/api/chat", "/api", False),
        ("/api/*/runs", "/api/a/runs", True),
        ("/api/*/runs", "/api/a%2Fb/runs", True),
        ("/api/*/runs", "/api/a/b/runs", False),
        ("/api/*/runs", "/api//runs", True),
        ("/api/v*", "/api/v2", True),
        ("/api/**", "/api/a", True),
        ("/api/**", "/api/a/b", True),
        ("/api/**", "/api", False),
        ("/**", "/anything", True),
        ("/a%20b", "/a%20b", False),
        ("/a b", "/a%20b", True),
        ("/api/[ab]", "/api/a", True),
    ],
)
def test_paths(pattern: str, path: str, fits: bool) -> None:
    assert matches(pattern, path) is fits


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/chat/c1/stream", "c1"),
        ("/api/chat/a%2Fb%20%C3%A9/stream", "a/b é"),
        ("/api/chat//stream", None),
        ("/api/chat/a/b/stream", None),
        ("/api/chat/c1", None),
        ("/api/chat/c1/streams", None),
    ],
)
def test_a_name_in_a_path(path: str, name: str | None) -> None:
    assert name_in_path("/api/chat/{name}/stream", path) == name


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("$.id", {"id": "c1"}, "c1"),
        ("$.id", {"id": 7}, "7"),
        ("$.id", {"id": True}, None),
        ("$.id", {"id": None}, None),
        ("$.id", {"id": ""}, None),
        ("$.id", {"id": "x" * 128}, "x" * 128),
        ("$.id", {"id": "x" * 129}, None),
        ("$.id", {"id": "a\nb"}, None),
        ("$.id", {"id": "\ud800"}, None),
        ("$.id", {"id": "chat é"}, "chat é"),
        ("$.id", [], None),
        ("$.id", "id", None),
        ("$.data.thread-id", {"data": {"thread-id": "t"}}, "t"),
        ("$.messages[1].id", {"messages": [{}, {"id": "m"}]}, "m"),
        ("$.messages[1].id", {"messages": [{}]}, None),
        ("$.messages[1].id", {"messages": {"1": {"id": "m"}}}, None),
        ("$[0]", ["c1"], "c1"),
    ],
)
def test_a_name_in_a_body(path: str, body: Any, name: str | None) -> None:
    assert name_in_body(path, body) == name


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"apis": ["sse"], "paths": []}, "paths"),
        ({"apis": ["chat"]}, "paths: is for applications"),
        ({"apis": ["chat"], "paths": [], "owner": ["authorization"]}, "owner: is for applications"),
        ({"apis": ["chat"], "paths": [], "resume": "/a/{name}"}, "resume: a path is for applications"),
        ({"paths": ["api"]}, "paths.0"),
        ({"paths": ["/a/**/b"]}, "as the last segment alone"),
        ({"owner": ["cookie"]}, "owner.0"),
        ({"owner": ["session"]}, "owner.0"),
        ({"owner": ["cookie:a b"]}, "owner.0"),
        ({"stream_name": "id"}, "stream_name"),
        ({"stream_name": "$..id"}, "stream_name"),
        ({"stream_name": "$"}, "stream_name"),
        ({"resume": "/api/stream"}, "resume"),
        ({"resume": "/{name}/{name}"}, "resume"),
        ({"resume": "sometimes"}, "resume"),
        ({"end": ""}, "end"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match="upstreams") as error:
        load(None, {"upstreams": [{**APP, **more}]}, {})
    assert says in str(error.value)


def test_with_keys_the_application_judges_who_has_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_KEY", "k")
    auth = {"mode": "keys", "keys": [{"hash": "sha256:" + "0" * 64, "owner": "a"}]}

    def loaded(**more: Any) -> UpstreamSettings:
        return load(None, {"upstreams": [{**APP, **more}], "auth": auth}, {}).upstreams[0]

    assert loaded(owner=["cookie:session"]).owner == ["cookie:session"]
    assert loaded(api_key_env="APP_KEY").api_key() == "k"
    with pytest.raises(SettingsError, match="api_key_env: is missing"):
        loaded()
    with pytest.raises(SettingsError, match="judges its callers"):
        loaded(owner=["cookie:session"], api_key_env="APP_KEY")
    with pytest.raises(SettingsError, match="judges its callers"):
        loaded(owner=["cookie:session"], apis=["chat", "sse"])


def test_an_application_alone_serves_no_model() -> None:
    alone, both = (UpstreamSettings.model_validate({**APP, "apis": apis}) for apis in (["sse"], ["chat", "sse"]))
    assert (alone.matches(None, "m"), alone.matches("chat", "m"), alone.matches("sse", "m")) == (None, None, "*")
    assert (both.matches(None, "m"), both.matches("chat", "m")) == ("*", "*")


def test_a_path_to_resume_from_leaves_the_rest_as_it_is() -> None:
    upstream = UpstreamSettings.model_validate({**APP, "resume": "/api/{name}/stream"})
    assert upstream.going_on == "auto"
    assert upstream.serves("/api/c1/stream")
    assert upstream.serves("/api/")
    assert not upstream.serves("/api/c1/other")
