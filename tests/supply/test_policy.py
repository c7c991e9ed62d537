"""SECURITY.md names what is there: tests, ports, settings."""

from __future__ import annotations

import re
from pathlib import Path

from relay.api.openapi import description
from relay.config import Settings
from relay.config.reference import reference

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def test_every_test_that_it_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", TEXT)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_threat_has_a_test() -> None:
    table = TEXT.partition("## Threats and defences")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and " threat " not in line]
    assert len(rows) > 15
    assert [row[0] for row in rows if not re.search(r"`tests/[\w/.]+`", row[2])] == []


def test_every_test_of_a_threat_is_named() -> None:
    tests = [path for room in ("auth", "security") for path in (ROOT / "tests" / room).glob("test_*.py")]
    assert len(tests) > 10
    assert {path.name for path in tests if path.name not in TEXT} == set()


def test_its_ports_are_those_of_the_settings_and_the_image() -> None:
    for name in ("bind", "metrics_bind"):
        default = Settings.model_fields[name].default
        (image,) = re.findall(rf"RELAY_{name.upper()}=(\S+)", (ROOT / "deploy/Dockerfile").read_text())
        assert f"| `{name}` | `{default}`; in the image `{image}` |" in TEXT


def test_its_settings_are_settings() -> None:
    known = set(re.findall(r"^\| `([\w.\[\]]+)`", reference(), re.MULTILINE))
    for name in re.findall(r"`((?:auth|tickets|streams|store|cors|limits)\.\w+)[:`]", TEXT):
        assert name in known, f"{name} is no setting"


def test_what_is_served_to_everybody_is_in_the_description() -> None:
    open_to_all = {path for path, item in description()["paths"].items() if item.get("get", {}).get("security") == [{}]}
    assert open_to_all == set(re.findall(r"`(/[\w./-]+)`", TEXT)) - {"/playground"}
