"""Every page of `deploy/recipes`: what it says to set can be set, and no two pages say the same."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

from relay.config import SettingsError, load
from tests.config.test_config import CONTRACT, OF_AN_UPSTREAM
from tests.recipes.pages import AGENTS, FOLDER, PAGES, blocks, kind

# Whose settings a block may be: the first line of each names one.
KINDS = {"relay.yaml", "litellm.yaml", "cloudflared.yaml"}
CLIENTS = (
    *("openai-sdk", "anthropic-sdk", "ai-sdk", "langgraph", "open-webui", "litellm"),
    *("vllm", "llama-cpp", "ollama", "cloudflare", "aws-alb"),
)


def settings() -> list[tuple[str, str]]:
    found = [(page, text) for page in PAGES for text in blocks(page, "yaml") if kind(text) == "relay.yaml"]
    return [(page.name, text) for page, text in found]


def test_there_is_a_page_for_each_and_the_first_page_leads_to_all() -> None:
    assert {page.stem for page in PAGES} == {*CLIENTS, "README"}
    index = (FOLDER / "README.md").read_text()
    assert all(f"({name}.md)" in index for name in CLIENTS)
    assert all(f"(../agents/{page.name})" in index for page in AGENTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_whose_it_is(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert kind(text) in KINDS, text
        assert isinstance(yaml.safe_load(text), dict)
    if page.name != "README.md":
        assert any(kind(text) == "relay.yaml" for text in blocks(page, "yaml"))


@pytest.mark.parametrize(("page", "text"), settings(), ids=[f"{page}-{n}" for n, (page, _) in enumerate(settings())])
def test_the_relay_takes_its_settings(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"api_key_env: (\w+)", text):
        monkeypatch.setenv(name, "a-key-of-the-upstream")
    (tmp_path / "relay.yaml").write_text(text)
    loaded = load(tmp_path / "relay.yaml")
    assert loaded.upstreams, f"{page} names no upstream"
    assert loaded.model_dump(mode="json", exclude_unset=True).keys() == yaml.safe_load(text).keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = {*CONTRACT, *(f"upstreams[].{name}" for name in OF_AN_UPSTREAM)}
    sections = {name.partition(".")[0] for name in CONTRACT if "." in name} | {"upstreams[]"}
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = {word for word in re.findall(r"`([a-z_]+(?:\[\])?\.[a-z_]+)`", text) if word.partition(".")[0] in sections}
    assert named - known == set()


def test_no_two_pages_say_the_same() -> None:
    """A sentence or a row of a table that two pages need stands on the first page."""

    def said(page: Path) -> set[str]:
        text = re.sub(r"^```.*?^```|^\|[-|]+\|$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        prose = re.sub(
            r"\s+", " ", " ".join(line for line in text.splitlines() if not line.startswith(("|", "<", "#")))
        )
        return {part.strip() for part in (*rows, *re.split(r"(?<=[.:]) ", prose)) if len(part.split()) > 6}

    for one, other in itertools.combinations(PAGES, 2):
        assert said(one) & said(other) == set(), f"{one.name}, {other.name}"


def test_a_setting_that_does_not_exist_would_be_found(tmp_path: Path) -> None:
    _, text = settings()[0]
    (tmp_path / "relay.yaml").write_text(text + "streems: {heartbeat: 5s}\n")
    with pytest.raises(SettingsError, match="streems"):
        load(tmp_path / "relay.yaml")
