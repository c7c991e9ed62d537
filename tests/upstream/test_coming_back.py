"""The other leg: a relay whose upstream is a relay comes back to it after every cut between the two.

    client → near relay → a proxy that cuts → far relay → upstream

What the client reads is byte for byte what it would have read, and the upstream is asked once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cutting_http import BEFORE_HEAD, CuttingProxy, Fate, Way
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.replicas import stream_id
from tests.support.samples import SAMPLES, Sample, rest
from tests.support.scripted import Gate, stream
from tests.support.sseclient import open_stream
from tests.support.streams import APIS, Api
from tests.upstream.chain import Chain, chained, soak

pytestmark = pytest.mark.slow

each_api = pytest.mark.parametrize("api", APIS)


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    """Two far replicas on one store."""
    with chained(2, "500ms") as made:
        yield made


def many(chain: Chain, sample: Sample, cases: list[tuple[str, tuple[Fate, ...]]]) -> None:
    assert chain.many([(sample, model, fates) for model, fates in cases]) == []


@each_api
@pytest.mark.parametrize("how", ["fin", "rst", "clean"])
def test_cut_anywhere(chain: Chain, api: Api, how: Way) -> None:
    sample = SAMPLES[api]
    length = len(rest(chain.read(sample, f"length-{api}-{how}")))
    offsets = sorted({BEFORE_HEAD, 0, *range(1, length, 41), length - 3, length - 1})
    many(chain, sample, [(f"{api}-{how}-{offset}", (Fate(cut_at=offset, how=how),)) for offset in offsets])


@each_api
def test_cut_again_and_again(chain: Chain, api: Api) -> None:
    sample = SAMPLES[api]
    ways: tuple[Way, ...] = ("fin", "rst", "clean")
    cases = []
    for number, (step, how) in enumerate(itertools.product((0, 90, 400, 900), ways)):
        cases.append((f"again-{api}-{number}", tuple(Fate(cut_at=step, how=how) for _ in range(3))))
    many(chain, sample, cases)


def test_random_cuts(chain: Chain) -> None:
    """`python -m tests.upstream.chain` goes on with more of them."""
    cuts, misses = soak(chain, 60, seed=7)
    assert cuts >= 60
    assert misses == []


@each_api
def test_the_far_replica_that_is_read_from_is_killed(chain: Chain, api: Api) -> None:
    sample, model = SAMPLES[api], f"killed-{api}"
    # Made by the first, read on at the second, which dies, and then at the first again.
    fates = (Fate(cut_at=150, to=0), Fate(to=1), Fate(to=0))
    chain.fates[model] = lambda n: fates[min(n, 2)]
    chain.upstream.on(model, *stream(*sample.frames[:4], Gate(model), *sample.frames[4:]))
    headers = {**sample.headers(), "x-model": model}
    with open_stream(chain.near.url + sample.path, headers=headers, body=sample.body(model), timeout=60) as read:
        chain.line.wait_for(lambda: chain.requests(model) == 2)
        chain.far[1].kill()
        try:
            chain.line.wait_for(lambda: chain.requests(model) >= 3)
            chain.upstream.open(model)
            name = stream_id(read)
            assert rest(read) == sample.expected(name)
        finally:
            chain.far[1].start()
    assert len(chain.upstream.calls_of(model)) == 1


# -- a name that leads elsewhere ----------------------------------------------------------------------------------


def with_hosts(hosts: Path) -> tuple[str, ...]:
    """A command that runs another one to which this file is `/etc/hosts`."""
    unshare = ["unshare", "--mount"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    command = (*unshare, "--", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    usable = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    needs(usable, "unshare, and the right to make a mount namespace")
    return command


@dataclass
class Moving:
    """A near relay to which the far one is a name, and the file that says where that leads."""

    near: RelayProcess
    hosts: Path
    port: int
    at: str = ""

    def to(self, address: str) -> None:
        """From now on the name leads there."""
        self.at = address
        self.hosts.write_text(f"{address} far.test\n")

    def line(self, chain: Chain, address: str) -> CuttingProxy:
        """One to the far relay, where the name may lead."""
        line = CuttingProxy(chain.far[0].url)
        line.host, line.port = address, self.port
        return line


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moving]:
    port, hosts = free_port(), tmp_path_factory.mktemp("hosts") / "hosts"
    # Less than what is known of a name is kept for.
    address = {"base_url": f"http://far.test:{port}", "proxy": "off", "upstream_resume": "9s"}
    near = RelayProcess({"upstreams": [{"name": "far", **address}], "drain": {"timeout": "0s"}})
    moved = Moving(near, hosts, port)
    moved.to("127.0.0.1")
    near.within = with_hosts(hosts)
    with near:
        yield moved


@each_api
def test_the_far_relay_has_moved_to_another_address(chain: Chain, moving: Moving, api: Api) -> None:
    """Its name is asked for anew once nobody is at the address that it had."""
    sample, model, before = SAMPLES[api], f"moved-{api}", moving.at
    after = "127.0.0.1" if before == "127.0.0.2" else "127.0.0.2"
    chain.upstream.on(model, *stream(*sample.frames[:4], Gate(model), *sample.frames[4:]))
    old, new = moving.line(chain, before), moving.line(chain, after)
    with old:
        url, body = moving.near.url + sample.path, sample.body(model)
        with open_stream(url, headers=sample.headers(), body=body, timeout=90) as read, new:
            old.wait_for(lambda: bool(old.asked()) and old.asked()[-1].sent > 0)
            moving.to(after)
            old.stop()
            new.wait_for(lambda: bool(new.asked()))
            chain.upstream.open(model)
            name = stream_id(read)
            assert rest(read) == sample.expected(name)
    assert len(chain.upstream.calls_of(model)) == 1
