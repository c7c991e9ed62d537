"""The documentation says what the code does: settings, endpoints, error codes, outcomes, files."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from relay import metrics
from relay.api.delivery import stream_headers
from relay.config.reference import reference
from relay.protocol import errors, outcomes
from relay.protocol.cors import Cors
from relay.protocol.outcomes import Cause, Ending

ROOT = Path(__file__).parents[2]

# Where what is told about the relay's behaviour stands: each test names its document here.
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
HTTP_API = (ROOT / "relay/api/README.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "relay/protocol/README.md").read_text(encoding="utf-8")
CLIENT = (ROOT / "relay/client/README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "deploy/SETTINGS.md").read_text(encoding="utf-8")
RUNBOOK = (ROOT / "deploy/prometheus/RUNBOOK.md").read_text(encoding="utf-8")
METRICS = (ROOT / "grafana/METRICS.md").read_text(encoding="utf-8")


def test_settings_reference_is_the_code_s_own() -> None:
    table = SETTINGS.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip()
    assert table == reference(), "run: make generate"


def test_metrics_reference_is_the_code_s_own() -> None:
    table = METRICS.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0].strip()
    assert table == metrics.reference(), "run: make generate"


@pytest.mark.parametrize("name", ["before", "after"])
def test_the_client_example_is_the_one_that_is_run(name: str) -> None:
    shown = CLIENT.split(f"<!-- client-{name} -->\n```python\n")[1].split("```")[0]
    assert shown == (ROOT / "tests/client/examples" / f"{name}.py").read_text()


def test_the_argument_that_the_readme_shows_is_the_example_s() -> None:
    (argument,) = re.findall(r"`(OpenAI\(http_client=.+?\)\)\))`", README)
    assert f"client = {argument}\n" in (ROOT / "tests/client/examples/after.py").read_text()


def table_after(heading: str, document: str) -> str:
    """The first table after that heading."""
    lines = document.partition(f"# {heading}\n")[2].splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|"))
    return "\n".join(takewhile(lambda line: line.startswith("|"), lines[start:]))


@pytest.mark.parametrize(
    ("document", "heading", "table"),
    [
        (PROTOCOL, "How a stream ends", outcomes.reference),
        (RUNBOOK, "RelayMidStreamFailures", outcomes.runbook),
    ],
    ids=["users", "operators"],
)
def test_the_tables_of_causes_are_the_code_s_own(document: str, heading: str, table: Callable[[], str]) -> None:
    assert table_after(heading, document) == table(), "run: make generate"


@pytest.mark.parametrize("outcome", [*Cause, *Ending])
def test_every_outcome_is_documented(outcome: str) -> None:
    assert f"`{outcome}`" in PROTOCOL


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidLastEventId,
        errors.ResumeNotSupported,
        errors.StreamNotFound,
        errors.StreamExpired,
        errors.PositionUnknown,
        errors.ResponseIdAmbiguous,
        errors.StoreBehind,
        errors.StoreUnavailable,
        errors.IdempotencyKeyInFlight,
        errors.IdempotencyKeyReused,
    ],
)
def test_every_resume_outcome_is_documented(kind: type[errors.ApiError]) -> None:
    code = kind.code
    assert f"`{code}`" in HTTP_API


def test_every_header_of_the_relay_s_own_is_documented_and_shown_to_pages() -> None:
    own = {name.decode() for name, _ in stream_headers("st_x", 15, resumable=True) if name.startswith(b"relay-")}
    assert own >= {"relay-stream-id", "relay-resumable", "relay-heartbeat"}
    answer = HTTP_API.partition("| header of an answer |")[2].partition("\n\n")[0].lower()
    (shown,) = (v for k, v in Cors(["*"]).allow([(b"origin", b"null")]) if k == b"access-control-expose-headers")
    for name in {*own, "relay-stream-url"}:
        assert f"| `{name}` |" in answer
        assert name in shown.decode().split(", ")


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    real = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ApiError)}
    assert drawn == real - {"ApiError"}


def test_every_module_of_the_map_exists_and_is_on_it() -> None:
    named: set[str] = set()
    for path in re.findall(r"`(relay/[^`]+)`", ARCHITECTURE):
        if "{" in path:
            before, _, rest = path.partition("{")
            names, _, after = rest.partition("}")
            named |= {before + name + after for name in names.split(",")}
        else:
            named.add(path)
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))), f"ARCHITECTURE.md names {path}, which is not there"
    for package in ("streams", "store"):
        for module in (ROOT / "relay" / package).glob("*.py"):
            if module.name != "__init__.py":
                assert f"relay/{package}/{module.name}" in named, f"{module.name} is not on the map"


def test_the_changelog_sorts_every_entry_by_its_kind() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for version in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (\w+)$", version, re.MULTILINE)
        assert kinds == [kind for kind in ("Added", "Changed", "Fixed") if kind in kinds]
        assert not re.search(r"^- ", version.partition("\n### ")[0], re.MULTILINE), "an entry without a kind"
        for entry in re.findall(r"^- (.+?)(?=\n\n|\n- |\Z)", version, re.MULTILINE | re.DOTALL):
            assert entry.rstrip().endswith((".", ".)")), f"not a sentence: {entry}"
