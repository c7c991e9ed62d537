"""Where `make cluster` cannot run it says so, in one sentence that names what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cluster import space
from tests.cluster.build import Missing


def test_only_root_can_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Missing, match="only root"):
        space.refuse_unless_possible()


def test_missing_programs_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"apt-get install --no-install-recommends .*\bcontainerd\b.*\bipset\b"):
        space.refuse_unless_possible()


def test_elsewhere_than_on_linux_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Missing, match="Linux"):
        space.refuse_unless_possible()


def test_control_groups_go_from_the_leaves_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(space, "_GROUPS", tmp_path)
    for controller in ("cpu", "unified"):
        (tmp_path / controller / "relay-cluster-1" / "node1" / "pod").mkdir(parents=True)
        (tmp_path / controller / "relay-cluster-2").mkdir()
    monkeypatch.setattr(space, "_KERNEL", ())
    with pytest.raises(KeyboardInterrupt), space.space("relay-cluster-1"):
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["relay-cluster-2"] * 2
