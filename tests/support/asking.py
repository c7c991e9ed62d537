"""Requests whose answers are closed after the test, whatever it leaves open (the fixture is in tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.sseclient import RawStream, open_stream

answers: list[RawStream] = []


def ask(url: str, method: str = "POST", headers: Mapping[str, str] | None = None, **more: Any) -> RawStream:
    answer = open_stream(url, method, headers, **more)
    answers.append(answer)
    return answer
