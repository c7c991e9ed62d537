"""How durations, sizes, rates, addresses and names are written in settings.

What does not have its form raises ValueError, with a message that shows one that has. What can be switched off is
switched off by `off`, which a file, the environment and flags can all say. Other spellings, older ones, still work:
`never` for a time, and `null`, which only a file can say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from relay import machine


class Section(BaseModel):
    """A part of the settings: a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "KB": 1000, "MB": 1000**2}


def to_seconds(value: object) -> object:
    if value == "0":
        return 0.0
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())
        if not match:
            raise ValueError("write a duration as a number with ms, s, m, h or d, such as 15s")
        return float(match[1]) * _DURATION_UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("write a duration as a number with ms, s, m, h or d, such as 15s")
    return value


OFF = "off"


def is_off(value: object) -> bool:
    """Is it `off`? Without quotes YAML 1.1 reads that word as the boolean false."""
    return value is False or value == OFF


def off_to_none(value: object) -> object:
    return None if is_off(value) else value


def off_to_word(value: object) -> object:
    return OFF if is_off(value) else value


def to_seconds_or_never(value: object) -> object:
    """`off`, or `never`, is a time that does not come."""
    return float("inf") if value == "never" or is_off(value) else to_seconds(value)


def to_bytes(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*([KMG]iB|[KM]?B)?", value.strip())
        if not match:
            raise ValueError("write a size as a whole number with B, KiB, MiB or GiB, such as 8MiB")
        return int(match[1]) * _SIZE_UNITS[match[2] or ""]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("write a size as a whole number with B, KiB, MiB or GiB, such as 8MiB")
    return value


AUTO: Literal["auto"] = "auto"
MOST_WORKERS = 256


def to_bytes_or_auto(value: object) -> object:
    return AUTO if value == AUTO else to_bytes(value)


def to_workers(value: object) -> object:
    """`auto`: one for each core that this process may use."""
    if value == AUTO:
        return min(machine.cores(), MOST_WORKERS)
    if isinstance(value, str) and not value.strip().isdecimal():
        raise ValueError(f"write a whole number from 1 to {MOST_WORKERS}, or auto")
    return value


def parse_duration(text: str) -> float:
    """Raises ValueError."""
    seconds = to_seconds(text)
    assert isinstance(seconds, float)
    return seconds


Duration = Annotated[float, BeforeValidator(to_seconds), Field(gt=0, allow_inf_nan=False)]
DurationOrZero = Annotated[float, BeforeValidator(to_seconds), Field(ge=0, allow_inf_nan=False)]
_T = TypeVar("_T")
OrOff = Annotated[_T | None, BeforeValidator(off_to_none)]
DurationOrNever = Annotated[float, BeforeValidator(to_seconds_or_never), Field(ge=0)]
DurationOrOff = Annotated[float, BeforeValidator(to_seconds_or_never), Field(gt=0)]
Size = Annotated[int, BeforeValidator(to_bytes), Field(gt=0)]
Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS), BeforeValidator(to_workers)]
SizeOrAuto = Annotated[Literal["auto"] | Annotated[int, Field(gt=0)], BeforeValidator(to_bytes_or_auto)]


def check_address(value: str) -> str:
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):\d{1,5}", value) or int(value.rpartition(":")[2]) > 65535:
        raise ValueError("write an address as host:port, such as 127.0.0.1:8080 or [::1]:8080")
    return value


Address = Annotated[str, AfterValidator(check_address)]


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds, `text` as the settings have it."""

    count: int
    seconds: float
    text: str


def parse_rate(text: str) -> Rate:
    """Raises ValueError."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})/(s|m|h)", text)
    if match is None:
        raise ValueError("write a rate as a whole number above 0 and s, m or h, such as 60/m")
    return Rate(int(match[1]), _DURATION_UNITS[match[2]], text)


def _rate(text: str) -> str:
    parse_rate(text)
    return text


RateText = Annotated[
    str, AfterValidator(_rate), Field(json_schema_extra={"type": "string", "pattern": "^[1-9][0-9]{0,8}/(s|m|h)$"})
]


def variable(name: str) -> str:
    """An environment variable that holds a secret. Raises ValueError."""
    if name.upper().startswith("RELAY_"):
        raise ValueError("take a name that does not begin with RELAY_: these are settings")
    return name
