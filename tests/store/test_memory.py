"""What the embedded store may take is a quarter of what the relay may use, and no more than is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay import machine
from relay.store import memory

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


def laid_out(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        pytest.param({}, MACHINE, id="no Linux"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, MACHINE, id="no group"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, MACHINE, id="no limit"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{64 * MIB}\n"}, 64 * MIB, id="a container"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/relay.service\n",
                "sys/fs/cgroup/system.slice/relay.service/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/memory.max": f"{96 * MIB}\n",
            },
            96 * MIB,
            id="the group around it",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/relay.service\n",
                "sys/fs/cgroup/system.slice/relay.service/memory.max": f"{32 * MIB}\n",
                "sys/fs/cgroup/system.slice/memory.max": f"{96 * MIB}\n",
            },
            32 * MIB,
            id="systemd's MemoryMax",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/docker/0123\n",  # the host's path, which is not to be seen inside
                "sys/fs/cgroup/memory.max": f"{48 * MIB}\n",
            },
            48 * MIB,
            id="the host's path",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "11:cpu,cpuacct:/a\n9:memory:/kubepods/pod1\n1:name=systemd:/a\n",
                "sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes": f"{80 * MIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            80 * MIB,
            id="version 1",
        ),
    ],
)
def test_what_may_be_used(files: dict[str, str], usable: int, tmp_path: Path) -> None:
    root = laid_out(tmp_path, files)
    assert machine.memory(root) == usable
    assert memory.of_store("auto", root) == usable // 4


def test_what_is_said_holds(tmp_path: Path) -> None:
    assert memory.of_store(300 * MIB, tmp_path) == 300 * MIB
    assert memory.of_store(None, tmp_path) == 0


def test_of_this_machine() -> None:
    assert 0 < machine.memory() <= MACHINE
