"""How many cores a relay may use, from what it is bound to and from its control groups; `workers: auto` is as many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay import cli, machine
from relay.config import SettingsError, load

BOUND = 8
URL = "http://127.0.0.1:1"
UPSTREAM = ("--upstream", URL)
GIVEN = {"upstreams": [{"name": "u", "base_url": URL}]}


def laid_out(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def container(limit: str) -> dict[str, str]:
    return {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{limit}\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, BOUND, id="no Linux"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, BOUND, id="no controller"),
        pytest.param(container("max 100000"), BOUND, id="no quota"),
        pytest.param(container("200000 100000"), 2, id="2 cores"),
        pytest.param(container("290000 100000"), 2, id="what is no whole core is no worker's"),
        pytest.param(container("50000 100000"), 1, id="half a core"),
        pytest.param(container("6400000 100000"), BOUND, id="more than there are"),
        pytest.param(container("60000 20000"), 3, id="another period"),
        pytest.param(container("nonsense"), BOUND, id="what nobody knows"),
        pytest.param(container("100000 0"), BOUND, id="no period"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/relay.service\n",
                "sys/fs/cgroup/system.slice/relay.service/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
            },
            3,
            id="the group around it",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/kubepods/pod1\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
            2,
            id="the host's path",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "11:cpu,cpuacct:/pod1\n9:memory:/pod1\n1:name=systemd:/a\n",
                "sys/fs/cgroup/cpu,cpuacct/pod1/cpu.cfs_quota_us": "350000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod1/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
            id="version 1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpuacct,cpu:/pod1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
            id="version 1 under one of its names",
        ),
    ],
)
def test_cores(files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(BOUND)), raising=False)
    assert machine.cores(laid_out(tmp_path, files)) == cores


def test_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


def test_auto_is_one_worker_for_each_core_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, workers in ((1, 1), (3, 3), (1000, 256)):
        monkeypatch.setattr(machine, "cores", lambda bound=bound: bound)
        assert load(None, {**GIVEN, "workers": "auto"}, environ={}).workers == workers
        assert load(None, GIVEN, environ={"RELAY_WORKERS": "auto"}).workers == workers
        settings = cli._settings(cli._parser().parse_args(["serve", "--workers", "auto", *UPSTREAM]))
        assert settings.workers == workers


def test_a_flag_gives_a_number_too() -> None:
    assert cli._settings(cli._parser().parse_args(["serve", "--workers", "3", *UPSTREAM])).workers == 3


@pytest.mark.parametrize("bad", ["many", "0", "257", "-1", "1.5", ""])
def test_what_is_neither_says_what_to_write(bad: str) -> None:
    with pytest.raises(SettingsError, match="workers") as refused:
        load(None, {"workers": bad}, environ={})
    assert "256" in str(refused.value) or "greater than or equal to 1" in str(refused.value)
