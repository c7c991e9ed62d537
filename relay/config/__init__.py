"""Settings: what can be set, how it is written, and where it is read from."""

from relay.config.auth import AuthSettings, KeySettings
from relay.config.loading import SettingsError, load
from relay.config.settings import (
    CorsSettings,
    DrainSettings,
    LimitSettings,
    LogSettings,
    Settings,
    StoreSettings,
    TicketSettings,
)
from relay.config.streams import StreamSettings
from relay.config.units import parse_duration
from relay.config.upstreams import Timeouts, UpstreamSettings

__all__ = [
    "AuthSettings",
    "CorsSettings",
    "DrainSettings",
    "KeySettings",
    "LimitSettings",
    "LogSettings",
    "Settings",
    "SettingsError",
    "StoreSettings",
    "StreamSettings",
    "TicketSettings",
    "Timeouts",
    "UpstreamSettings",
    "load",
    "parse_duration",
]
