"""What the label `model` holds: patterns of the settings, or names that an upstream has taken, and never ever more."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from relay.model_labels import ModelLabels
from tests.conftest import Relays
from tests.observe.scraped import scrape_text
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.sseclient import open_stream
from tests.support.streams import PATHS, chat, data
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_by_default_it_is_the_pattern() -> None:
    labels = ModelLabels()
    labels.accepted("m")
    assert labels.of("*", "m") == "*"
    assert labels.of_another("a-*") == "a-*"


def test_a_name_counts_once_an_upstream_has_taken_it_and_no_more_than_there_may_be() -> None:
    labels = ModelLabels(2, ["*"])
    assert labels.of("*", "one") == "*"
    for model in ("one", "one", "two", "three"):
        labels.accepted(model)
    assert [labels.of("*", model) for model in ("one", "two", "three", "")] == ["one", "two", "*", "*"]


@pytest.mark.parametrize("model", ["", "x" * 129, "a\nb", "caf\u00e9", "a\0"])
def test_an_unfit_name_is_none(model: str) -> None:
    labels = ModelLabels(9, ["*"])
    labels.accepted(model)
    assert (labels.of("*", model), labels.of_another(model)) == ("*", "other")


def test_another_replicas_names_are_bounded_too() -> None:
    labels = ModelLabels(1, ["a-*"])
    assert [labels.of_another(label) for label in ("a-*", "m", "n", "m")] == ["a-*", "m", "other", "m"]


def test_names_of_a_single_upstream_are_told_apart(upstream: ScriptedUpstream, relays: Relays) -> None:
    upstream.on("taken", *stream(chat({"content": "a"}), chat({}, "stop"), data("[DONE]")))
    upstream.on("refused", *json_response(404, {}))
    upstream.on("whole", *json_response(200, {}))
    settings: dict[str, Any] = {"upstreams": [{"name": "up", "base_url": upstream.url}]}
    relay = relays.start({**settings, "metrics": {"models": "names"}})
    for model, _ in itertools.product(("taken", "refused", "whole"), range(2)):
        body = {"model": model, "stream": model != "whole", "messages": []}
        with open_stream(relay.url + PATHS["chat"], body=body) as answer:
            answer.read()
    ends = 'relay_streams_total{api="chat",model="%s",outcome="completed",upstream="up"} 1.0'
    wait_until(lambda: ends % "taken" in scrape_text(relay), 10, "the second stream under its name")
    told = scrape_text(relay)
    assert ends % "*" in told
    assert 'relay_upstream_responses_total{api="chat",model="whole",status="200",upstream="up"} 1.0' in told
    assert 'model="refused"' not in told
