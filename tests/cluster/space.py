"""A place of its own for the cluster: process, mount and network namespaces, and control groups by one name.

What runs inside ends with the namespace's first process; its mounts, addresses, links and rules go with the namespaces,
however it ended. What no namespace holds is put back by whoever opened the space: control groups, a few of the kernel's
settings that a kubelet changes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.build import Missing

_GROUPS = Path("/sys/fs/cgroup")
# A kubelet sets them for the whole machine.
_KERNEL = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# Where Kubernetes and containerd write whatever they are told.
_OWN = ("/run", "/var/log", "/var/lib")


def refuse_unless_possible() -> None:
    """Raises Missing."""
    if sys.platform != "linux":
        raise Missing("a cluster needs Linux")
    if os.geteuid() != 0:
        raise Missing("only root can start a cluster: sudo make cluster")
    needed = {
        "containerd": "containerd",
        "ctr": "containerd",
        "runc": "runc",
        "iptables": "iptables",
        "ipset": "ipset",
        "conntrack": "conntrack",
        "ip": "iproute2",
        "unshare": "util-linux",
    }
    lacking = sorted({package for program, package in needed.items() if shutil.which(program) is None})
    if not Path("/usr/lib/cni/ptp").is_file():
        lacking.append("containernetworking-plugins")
    if lacking:
        raise Missing(f"programs are missing: apt-get install --no-install-recommends {' '.join(lacking)}")
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode:
        raise Missing(f"no namespaces can be made here: {tried.stderr.strip()}")


@contextmanager
def space(name: str) -> Iterator[None]:
    """Around the process that `enter` starts: what it may leave behind is gone afterwards."""
    before = {setting: Path(f"/proc/sys/{setting}").read_text() for setting in _KERNEL}
    try:
        yield
    finally:
        for setting, value in before.items():
            if Path(f"/proc/sys/{setting}").read_text() != value:
                Path(f"/proc/sys/{setting}").write_text(value)
        for group in _groups(name):
            _remove(group)


def enter(module: str, *arguments: str) -> int:
    """Run a module of Python inside new namespaces, and wait for its end."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    inside = subprocess.Popen([*command, sys.executable, "-m", module, *arguments])
    signal.signal(signal.SIGTERM, lambda *_: inside.kill())  # and the namespaces with it
    while True:
        try:
            return inside.wait()
        except KeyboardInterrupt:  # the terminal has told the cluster, too, which stops by itself
            continue


def be_the_first_process() -> None:
    """Go on in a child, and reap whatever is left to the first process of a namespace meanwhile."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, signal.SIGINT))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) % 256)


def furnish(name: str, nodes: list[str]) -> None:
    """Inside: loopback, folders of its own, and a control group for each node."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for place in _OWN:
        subprocess.run(["mount", "-t", "tmpfs", "relay-cluster", place], check=True)
    Path("/run/lock").mkdir()
    for group in _controllers():
        for node in nodes:
            made = group / name / node
            made.mkdir(parents=True, exist_ok=True)
            for folder in (made.parent, made):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if (folder / file).exists():
                        (folder / file).write_text((group / file).read_text())


def _controllers() -> list[Path]:
    """Of the first version each, or the one hierarchy of the second."""
    if (_GROUPS / "cgroup.controllers").is_file():
        return [_GROUPS]
    return [path for path in _GROUPS.iterdir() if path.is_dir() and not path.is_symlink() and path.name != "unified"]


def _groups(name: str) -> list[Path]:
    """Wherever there are some by this name."""
    return [path for path in (_GROUPS / name, *_GROUPS.glob(f"*/{name}")) if path.is_dir()]


def _remove(group: Path) -> None:
    """From the leaves up; the kernel may need a moment to let go of ended processes."""
    deadline = time.monotonic() + 10
    while group.is_dir() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass
        time.sleep(0.1)
