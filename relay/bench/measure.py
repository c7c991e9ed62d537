"""One run of the benchmark: the upstream and the generator as processes of their own, and the order of the work.

Targets are measured in turns, round after round, in one run: what the machine does to one it does to all. The
first of them is always the upstream itself (`direct`), whose delays are taken off the others'.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from relay import __version__
from relay.bench import figures
from relay.processes import start, stop

DIRECT = "direct"
_WARM_UP = {"kind": "unpaced", "streams": 10, "length": 20}


class BenchError(Exception):
    """The benchmark cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """One gateway."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    model: str = "bench"
    pids: tuple[int, ...] = ()
    """Its processes; their children are found. Empty: no CPU and memory are reported."""

    def job(self) -> dict[str, Any]:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BenchError(f"{self.name}: {self.url!r} is no URL; write it as http://127.0.0.1:8080")
        return {
            "host": parts.hostname,
            "port": parts.port or (443 if parts.scheme == "https" else 80),
            "tls": parts.scheme == "https",
            "prefix": parts.path.rstrip("/").removesuffix("/v1"),
            "headers": self.headers,
            "model": self.model,
            "pids": list(self.pids),
        }


@dataclass(frozen=True)
class Plan:
    """One measurement, the same for every target."""

    mode: str = "paced"
    api: str = "chat"
    streams: int = 100
    rate: float = 20.0
    length: int = 200
    payload: int = 0
    rounds: int = 3
    total: int = 0
    """Streams: of a churn and of beginnings in all, of a resume to be generated."""
    running: int = 0
    """Streams that run beside those that begin."""
    starts: float = 200.0
    """Streams begun in a second: at this rate one core and a gateway of some 2 ms per request can take new ones."""
    ramp: float | None = None
    """Seconds in which the streams begin; None: as `starts` says."""
    repeats: int = 50
    settle: float = 1.0
    """Seconds of silence before memory is read."""

    def job(self) -> dict[str, Any]:
        kept = ("api", "streams", "rate", "length", "payload", "total", "running", "starts", "repeats", "settle")
        ramp = self.ramp
        if ramp is None:
            ramp = max(1.0 / self.rate, self.streams / self.starts) if self.rate else 0.0
        return {"kind": self.mode, "ramp": ramp, **{name: getattr(self, name) for name in kept}}


Progress = Callable[[str, float], None]
"""Told what is being measured and the share of it that is done."""


def no_progress(what: str, share: float) -> None:
    pass


class Bench:
    """The paced upstream and the generator. Use it as a context manager."""

    def __init__(
        self, upstream_bind: str = "127.0.0.1:0", core: int | None = None, progress: Progress = no_progress
    ) -> None:
        self._bind = upstream_bind
        self._core = core
        self._progress = progress
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        _raise_file_limit()
        with ExitStack() as stack:
            self._upstream = self._start(stack, "relay.bench.upstream", "--bind", self._bind, "--until-eof")
            self.upstream_url = self._line(self._upstream).strip()
            if not self.upstream_url.startswith("http"):
                raise BenchError(self.upstream_url or "the paced upstream did not start")
            self._generator = self._start(stack, "relay.bench.load")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(
        self, plan: Plan, targets: list[Target], *, direct: bool = True, target_on_one: bool = False
    ) -> dict[str, Any]:
        """Measure; the figures of each target by its name, as documented in `relay.bench.figures`."""
        everyone = [Target(DIRECT, self.upstream_url), *targets] if direct else targets
        answers: dict[str, list[dict[str, Any]]] = {target.name: [] for target in everyone}
        for target in everyone:
            self.job(target, {**plan.job(), **_WARM_UP}, f"{target.name}: warm-up")
        for round_ in range(plan.rounds):
            for target in everyone:
                what = f"{target.name}: {plan.mode}, round {round_ + 1} of {plan.rounds}"
                answers[target.name].append(self.job(target, plan.job(), what))
        found = {name: figures.summary(plan.mode, raw) for name, raw in answers.items()}
        if direct:
            for name in answers:
                if name != DIRECT:
                    figures.add_difference(found[name], found[DIRECT])
        return {
            "plan": {name: getattr(plan, name) for name in Plan.__dataclass_fields__},
            "targets": found,
            "warnings": figures.warnings(
                plan.mode, found, load_on_one=self._core is not None, target_on_one=target_on_one
            ),
        }

    def job(self, target: Target, job: dict[str, Any], what: str = "") -> dict[str, Any]:
        """One job of the generator."""
        parts = urlsplit(self.upstream_url)
        whole = {
            **job,
            **target.job(),
            "upstream": [parts.hostname, parts.port],
            "upstream_pid": self._upstream.pid,
        }
        assert self._generator.stdin is not None
        self._generator.stdin.write(json.dumps(whole) + "\n")
        self._generator.stdin.flush()
        while line := self._line(self._generator):
            answer: dict[str, Any] = json.loads(line)
            if "result" in answer:
                result: dict[str, Any] = answer["result"]
                return result
            if "error" in answer:
                raise BenchError(f"{target.name}: {answer['error']}")
            self._progress(what, answer["progress"] / max(1, answer["of"]))
        raise BenchError("the load generator has ended by itself; what it said stands above")

    def _start(self, stack: ExitStack, module: str, *arguments: str) -> subprocess.Popen[str]:
        core = self._core
        process = start(
            [*pinned(core), sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(stop, process)
        return process

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()


def _raise_file_limit() -> None:
    """For this process and what it starts: every stream is a connection, at a gateway two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def pinned(core: int | None) -> list[str]:
    """The words before a command that binds it, and all it starts, to one core."""
    if core is None:
        return []
    code = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"
    return [sys.executable, "-I", "-S", "-c", code, str(core)]


def two_cores() -> tuple[int | None, int | None]:
    """One core for the target, another one for the load; nothing to choose on a machine with one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (cores[-1], cores[-2]) if len(cores) > 1 else (None, None)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "relay": __version__,
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
