"""What the package's page tells of the repository: its address, and pictures and links that work there.

A page on a package index knows no relative paths. The address is given to the build, since a fork has another:

    REPOSITORY_URL=https://github.com/OWNER/NAME python -m build

Without it the page is README.md as it stands, and names no address.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str) -> str:
    """Markdown whose relative pictures and links lead into the repository."""

    def lead(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return _LINK.sub(lead, text)


class PackagePage(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        if repository := os.environ.get("REPOSITORY_URL", "").rstrip("/"):
            text = absolute(text, repository)
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}#readme",
                "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
