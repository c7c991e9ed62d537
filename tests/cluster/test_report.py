"""The table of `make cluster` is right only where nothing was lost, doubled, asked for twice or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import report
from tests.cluster.load import Load, Seen
from tests.cluster.report import Row


def load(*ends: str | None, wrong: tuple[str, ...] = (), pooled: int = 0, single: int = 0) -> Load:
    found = Load("http://127.0.0.1:1")
    found.streams = [Seen("st_a", 10, end) for end in ends]
    found.wrong = list(wrong)
    found.refused = {True: ["new: 503"] * pooled, False: ["new: 503"] * single}
    return found


def test_whole_streams_are_right() -> None:
    row = Row.of("restart", load("done", "done"), 2, 1.0, ())
    assert row.right
    assert row.line == "| restart | 2 | 2 | – | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 1 s |"


@pytest.mark.parametrize(
    ("found", "calls"),
    [
        (load(), 0),
        (load("done", "done"), 3),
        (load("done", None), 2),
        (load("done", None, wrong=("lost: st_a.12 after 10",)), 2),
        (load("done", None, wrong=("doubled: st_a.9 after 10",)), 2),
        (load("done", "producer_lost"), 2),
        (load("done", pooled=1), 1),
        (load("done", single=1), 1),
    ],
)
def test_what_must_not_be_is_not_right(found: Load, calls: int) -> None:
    assert not Row.of("restart", found, calls, 1.0, ()).right


def test_an_end_may_be_told_where_the_exercise_says_so() -> None:
    row = Row.of("kill", load("done", "producer_lost", single=1), 2, 1.0, ("producer_lost",))
    assert row.right
    assert "1 `producer_lost`" in row.line
    assert Row.of("kill", load("done", pooled=1), 1, 1.0, ("producer_lost",)).right


def test_a_post_that_was_not_answered_may_have_gone_upstream() -> None:
    found = load("done")
    found.refused[False] = ["new: ClientOSError(104)"]
    assert Row.of("restart", found, 2, 1.0).extra == 0
    found.refused[False] = ["new: 503 no", "resume: ClientOSError(104)"]
    assert Row.of("restart", found, 2, 1.0).extra == 1


def test_what_was_seen_stands_with_what_was_lost() -> None:
    row = Row.of("kill", load("done", None, wrong=("lost: st_a.12 after 10",)), 2, 1.0, ())
    assert (row.lost, row.doubled, row.other) == (1, 0, 0)
    assert "lost: st_a.12 after 10" in row.told


def test_the_page_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "CLUSTER.md"
    page.write_text("before\n\n<!-- table -->\nof yesterday\n<!-- /table -->\n\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    rows = [Row.of("restart", load("done"), 1, 1.0, ()), Row("pods", text="on 2 nodes")]
    report.write(rows, {"Kubernetes": "v1.34.4"}, "2 cores")
    text = page.read_text()
    assert text.startswith("before\n\n<!-- table -->\n")
    assert text.endswith("<!-- /table -->\n\nafter\n")
    assert "2 cores: Kubernetes 1.34.4." in text
    assert "yesterday" not in text
    assert "| restart | 1 | 1 |" in text
    assert "| pods | on 2 nodes |" in text
