"""The whole benchmark against gateways that are wrong: what they do to a stream is what it counts."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from relay.bench.measure import Bench, BenchError, Plan, Target
from relay.bench.stream import ERRORS
from tests.bench.tampering import Faults, Tampering
from tests.support.processes import free_port

_STREAMS, _LENGTH = 3, 20
_PLAN = Plan(mode="unpaced", streams=_STREAMS, length=_LENGTH, rounds=1)


def _frames(change: Callable[[list[bytes]], object]) -> Faults:
    """Frames 0 and 1 open a chat stream and bring its event 1; the last two close it."""

    def changed(frames: list[bytes]) -> list[bytes]:
        frames = list(frames)
        change(frames)
        return frames

    return Faults(frames=changed)


def _swap(frames: list[bytes]) -> None:
    frames[5], frames[6] = frames[6], frames[5]


def _errors(bench: Bench, faults: Faults, plan: Plan = _PLAN) -> tuple[int, dict[str, int]]:
    with Tampering(bench.upstream_url, faults) as gateway:
        answer = bench.job(Target("gateway", gateway.url), plan.job())
    assert answer["streams"] + answer["errors"].get("refused", 0) == _STREAMS
    return answer["events"], {name: count for name, count in answer["errors"].items() if count}


def _all(events: int) -> int:
    return _STREAMS * events


@pytest.mark.parametrize(
    ("faults", "events", "errors"),
    [
        pytest.param(Faults(), _LENGTH, {}, id="nothing"),
        pytest.param(Faults(piece=1), _LENGTH, {}, id="a chunk for every byte"),
        pytest.param(Faults(framing="length"), _LENGTH, {}, id="content-length"),
        pytest.param(Faults(framing="close"), _LENGTH, {}, id="until the close"),
        pytest.param(_frames(lambda f: f.pop(5)), _LENGTH - 1, {"missing": 1}, id="drops one"),
        pytest.param(_frames(lambda f: f.insert(5, f[5])), _LENGTH, {"doubled": 1}, id="doubles one"),
        pytest.param(_frames(_swap), _LENGTH, {"out_of_order": 1}, id="swaps two"),
        pytest.param(_frames(lambda f: f.pop()), _LENGTH, {"wrong_end": 1}, id="no terminal event"),
        pytest.param(
            _frames(lambda f: f.__delitem__(slice(11, None))), 10, {"missing": 10, "wrong_end": 1}, id="truncates"
        ),
        pytest.param(Faults(cut=True), _LENGTH, {"wrong_end": 1}, id="no zero chunk"),
        pytest.param(Faults(framing="length", cut=True), _LENGTH, {"wrong_end": 1}, id="a byte short"),
        pytest.param(Faults(status=429), 0, {"refused": 1}, id="refuses"),
        pytest.param(Faults(calls=2), _LENGTH, {"repeated": 1}, id="asks the upstream twice"),
    ],
)
def test_faults_are_counted(bench: Bench, faults: Faults, events: int, errors: dict[str, int]) -> None:
    expected = {name: _all(count) for name, count in errors.items()}
    assert _errors(bench, faults) == (_all(events), expected)


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
def test_no_api_is_forgiven(bench: Bench, api: str) -> None:
    plan = Plan(mode="unpaced", api=api, streams=_STREAMS, length=_LENGTH, rounds=1)
    assert _errors(bench, Faults(), plan) == (_all(_LENGTH), {})
    faults = _frames(lambda f: f.pop(len(f) // 2))
    assert _errors(bench, faults, plan) == (_all(_LENGTH - 1), {"missing": _all(1)})
    faults = _frames(lambda f: f.pop())
    assert _errors(bench, faults, plan)[1] == {"wrong_end": _all(1)}


def test_nobody_there_is_refused(bench: Bench) -> None:
    answer = bench.job(Target("nobody", f"http://127.0.0.1:{free_port()}"), _PLAN.job())
    assert answer["errors"]["refused"] == _STREAMS
    assert (answer["events"], answer["expected"]) == (0, 0)


def test_a_gateway_that_falls_silent_is_given_up(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target("silent", f"http://127.0.0.1:{silent.getsockname()[1]}")
        answer = bench.job(target, _PLAN.job() | {"stall": 0.5})
    assert answer["errors"]["refused"] == _STREAMS
    assert any("given up" in text for text in answer["samples"])


def test_errors_are_in_the_figures_and_warned_of(bench: Bench) -> None:
    with Tampering(bench.upstream_url, _frames(lambda f: f.pop(5))) as gateway:
        results = bench.run(_PLAN, [Target("gateway", gateway.url)])
    assert set(results["targets"]["gateway"]["errors"]) == set(ERRORS)
    assert results["targets"]["gateway"]["errors"]["missing"] == _STREAMS
    assert not any(results["targets"]["direct"]["errors"].values())
    assert any(warning.startswith("gateway: errors") for warning in results["warnings"])


def test_a_taken_upstream_address_says_what_to_do(bench: Bench) -> None:
    address = bench.upstream_url.removeprefix("http://")
    with pytest.raises(BenchError, match="--upstream-bind"), Bench(address):
        pass
