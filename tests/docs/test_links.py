"""Links and pictures of the documents lead somewhere, and the picture of a resume keeps the promise that it draws."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    Path(name)
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        aim = ROOT / document.parent / path if path else ROOT / document
        assert aim.exists(), f"{document}: {target}"
        assert not anchor or anchor in anchors(aim), f"{document}: {target}: there is no such heading"


def test_the_readme_leads_to_every_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {Path(target.partition("#")[0]) for target in re.findall(r"\]\(([^)\s]+)\)", readme)}
    assert set(DOCUMENTS) - named <= {Path("README.md")}


def test_the_picture_of_a_resume_has_every_event_once() -> None:
    drawn = "".join(ElementTree.parse(ROOT / "deploy/pictures/resume.svg").getroot().itertext())
    before, after = drawn.split("Last-Event-ID: ")
    first = [int(n) for n in re.findall(r"\bid: st_[\w-]{22}\.(\d+)", before)]
    cursor, rest = int(re.findall(r"^st_[\w-]{22}\.(\d+)", after)[0]), re.findall(r"\bid: st_[\w-]{22}\.(\d+)", after)
    assert first == list(range(1, cursor + 1))
    assert [int(n) for n in rest] == list(range(cursor + 1, cursor + 1 + len(rest)))
    assert "[DONE]" in after
