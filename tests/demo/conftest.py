"""A real Chromium, as the playground's tests start it."""

from tests.playground.conftest import browser, chromium

__all__ = ["browser", "chromium"]
