"""What every refusal of the relay's own is; the tree of them is `relay.protocol.errors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ApiError(Exception):
    """`status` is the HTTP status, `code` the machine-readable reason, `headers` what goes with the answer.

    `further_codes` are those that a refusal of this class may bear beside its own.
    """

    status = 500
    code = "internal_error"
    further_codes: ClassVar[tuple[str, ...]] = ("no_response",)

    def __init__(self, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Args:
        message: for the client: what happened, and what to do.
        code: another one than the class's own.
        headers: response headers; `retry-after` is in seconds (RFC 9110, section 10.2.3).
        """
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.headers = dict(headers or {})
