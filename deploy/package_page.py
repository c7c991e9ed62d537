"""What a package's page tells of the repository: its address, and pictures and links that work there.

A page on a package index knows no relative paths. The address is given to the build, since a fork has another:

    REPOSITORY_URL=https://github.com/OWNER/NAME python -m build

Without it the page is the README as it stands, and names no address.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# What is said in a checkout, and what on the page of the package that was published from it.
PUBLISHED = {
    "With pip (Python 3.11 or newer), from a checkout;": "With pip (Python 3.11 or newer);",
    "pip install ./deploy/client .": "pip install relay-streams",
    "`pip install ./deploy/client` in a checkout": "`pip install relay-streams-client`",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, folder: str = "") -> str:
    """Markdown of a file in `folder`, whose relative pictures and links lead into the repository."""

    def lead(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        name, mark, part = path.partition("#")
        target = posixpath.normpath(posixpath.join(folder, name)) + mark + part
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return _LINK.sub(lead, text)


def repository_url() -> str:
    return os.environ.get("REPOSITORY_URL", "").rstrip("/")


def describe(metadata: dict[str, Any], top: Path, readme: str) -> None:
    """The fields `readme` and `urls` of a package whose page is the file `readme` below `top`."""
    text = (top / readme).read_text(encoding="utf-8")
    metadata["urls"] = {}
    if repository := repository_url():
        text = absolute(text, repository, posixpath.dirname(readme))
        for here, there in PUBLISHED.items():
            text = text.replace(here, there)
        metadata["urls"] = {
            "Source": repository,
            "Documentation": f"{repository}/blob/HEAD/{readme}",
            "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }
    metadata["readme"] = {"content-type": "text/markdown", "text": text}


class PackagePage(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        describe(metadata, Path(self.root), "README.md")
