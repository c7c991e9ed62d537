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
    StreamSettings,
    TicketSettings,
    Timeouts,
    UpstreamSettings,
)
from relay.config.units import parse_duration

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
