"""Under which name a client finds a model of an upstream: the one with which its request gets there."""

from __future__ import annotations

from typing import Any

import pytest

from relay.config import UpstreamSettings
from relay.upstream.routing import name_for, named_in_settings

ALL = ("chat", "responses", "messages")


def upstreams(*settings: dict[str, Any]) -> list[UpstreamSettings]:
    return [UpstreamSettings(name=f"u{n}", base_url="http://u", **each) for n, each in enumerate(settings)]


@pytest.mark.parametrize(
    ("settings", "of", "model", "apis", "shown"),
    [
        ([{}], 0, "m", ALL, "m"),
        ([{"models": ["gpt-*"]}], 0, "gpt-5", ALL, "gpt-5"),
        ([{"models": ["gpt-*"]}], 0, "other", ALL, None),
        ([{"models": ["local/*"], "strip_prefix": "local/"}], 0, "m", ALL, "local/m"),
        ([{"models": ["*"], "strip_prefix": "local/"}], 0, "m", ALL, "m"),
        ([{"models": ["*"], "strip_prefix": "local/"}], 0, "local/m", ALL, "local/local/m"),
        ([{}, {"models": ["b/*"], "strip_prefix": "b/"}], 1, "m", ALL, None),
        ([{"models": ["a-*"]}, {"models": ["*"]}], 1, "a-1", ALL, None),
        ([{"models": ["a-*"]}, {"models": ["*"]}], 1, "b-1", ALL, "b-1"),
        ([{"apis": ["chat"]}, {"apis": ["messages"]}], 1, "m", ALL, "m"),
        ([{"apis": ["chat"]}, {"apis": ["messages"]}], 1, "m", ("chat",), None),
        ([{"model": "there"}], 0, "m", ALL, None),
    ],
)
def test_a_model_is_shown_as_it_must_be_asked_for(
    settings: list[dict[str, Any]], of: int, model: str, apis: tuple[str, ...], shown: str | None
) -> None:
    listed = upstreams(*settings)
    assert name_for(listed, listed[of], model, apis, lambda _: True) == shown


def test_one_that_a_caller_may_not_ask_for_is_not_shown() -> None:
    listed = upstreams({"models": ["*"], "strip_prefix": "local/"})
    assert name_for(listed, listed[0], "m", ALL, lambda name: name == "local/m") == "local/m"
    assert name_for(listed, listed[0], "m", ALL, lambda _: False) is None


def test_the_settings_name_models_without_patterns() -> None:
    listed = upstreams({"models": ["a", "shared"]}, {"models": ["shared", "b", "c-*", "d?"]})
    assert [named_in_settings(listed, each, ALL) for each in listed] == [["a", "shared"], ["b"]]
