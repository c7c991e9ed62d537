"""Which files of the tree are the client's distribution, and what its page says.

The project stands two folders below the files that it is made of, and beside them in its own source distribution. What
is not named here of `relay/` is the server's distribution (`exclude` in the pyproject.toml at the top).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

FILES = ("relay/__init__.py", "relay/py.typed", "relay/protocol/__init__.py", "relay/protocol/ids.py")
FILES += ("relay/client/*.py", "relay/client/README.md")
PAGE = "deploy/package_page.py"


def tree(root: str) -> Path:
    """The folder that has `relay/` in it."""
    here = Path(root)
    return here if (here / "relay").is_dir() else here.parents[1]


def files(top: Path) -> Iterator[str]:
    for pattern in FILES:
        yield from sorted(str(path.relative_to(top)) for path in top.glob(pattern))


class ClientPage(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        top = tree(self.root)
        found = re.search(r'^__version__ = "(.+)"$', (top / "relay/__init__.py").read_text(encoding="utf-8"), re.M)
        if found is None:
            raise ValueError("relay/__init__.py has no __version__; give it one")
        metadata["version"] = found[1]
        _page(top).describe(metadata, top, "relay/client/README.md")


class ClientFiles(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # `dev-mode-dirs` shows the tree itself
            return
        top = tree(self.root)
        names = list(files(top))
        if self.target_name == "sdist":
            names += [PAGE]
            for name in ("build.py", "LICENSE"):
                build_data["force_include"][os.path.join(self.root, name)] = name
        for name in names:
            build_data["force_include"][str(top / name)] = name


def _page(top: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_page", top / PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
