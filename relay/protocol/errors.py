"""Every refusal that the relay itself answers before a stream, as one tree.

    ApiError
    ├── BadRequest                     400  invalid_json, missing_model, invalid_request …
    │   ├── InvalidLastEventId         400  invalid_last_event_id
    │   └── ResumeNotSupported         400  resume_not_supported
    ├── InvalidApiKey                  401  invalid_api_key
    ├── PathNotAllowed                 403  path_not_allowed
    ├── TicketRefused                  403  invalid_ticket, ticket_expired, ticket_read_only
    ├── ModelNotFound                  404  model_not_found
    ├── NotFound                       404  not_found
    ├── StreamNotFound                 404  stream_not_found
    ├── MethodNotAllowed               405  method_not_allowed
    ├── RequestTimeout                 408  request_timeout
    ├── IdempotencyKeyInFlight         409  idempotency_key_in_flight
    ├── StreamExpired                  410  stream_expired
    ├── PositionUnknown                410  position_unknown
    ├── ResponseIdAmbiguous            410  response_id_ambiguous
    ├── ContentTooLarge                413  request_too_large
    ├── UnsupportedContentEncoding     415  unsupported_content_encoding
    ├── IdempotencyKeyReused           422  idempotency_key_reused
    ├── HeadersTooLarge                431  headers_too_large
    ├── TooManyRequests                429  too_many_readers, too_many_streams, rate_limit_exceeded
    ├── UpstreamUnreachable            502  upstream_unreachable
    ├── UpstreamMalformed              502  upstream_malformed
    ├── UpstreamTimeout                504  upstream_timeout
    └── Unavailable                    503  draining, too_busy
        ├── StoreBehind                503  store_behind
        └── StoreUnavailable           503  store_unavailable
            └── EncryptionKeyMissing   503  store_unavailable

A resume that can never work is 400, 404 or 410, and what another try may get is 409, 429 or 503 with `Retry-After`:
SDKs retry 408, 409, 429 and 5xx by themselves.
How an error is spelled is the dialect's business (`relay.protocol.dialect`). Every message says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """`status` is the HTTP status, `code` the machine-readable reason, `headers` what goes with the answer."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.headers = dict(headers or {})


class BadRequest(ApiError):
    status = 400
    code = "invalid_request"


class InvalidLastEventId(BadRequest):
    code = "invalid_last_event_id"


class ResumeNotSupported(BadRequest):
    code = "resume_not_supported"

    def __init__(self) -> None:
        super().__init__(
            "This stream was relayed without a log, so it cannot be resumed. Send the request again "
            "without Last-Event-ID."
        )


class InvalidApiKey(ApiError):
    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "This relay does not know the API key, or it has expired. Send one that the relay's operator has issued, "
            "as Authorization: Bearer or as x-api-key.",
            headers={"www-authenticate": "Bearer"},
        )


class PathNotAllowed(ApiError):
    status = 403
    code = "path_not_allowed"


class TicketRefused(ApiError):
    status = 403
    code = "invalid_ticket"


class ModelNotFound(ApiError):
    status = 404
    code = "model_not_found"


class NotFound(ApiError):
    status = 404
    code = "not_found"


class StreamNotFound(ApiError):
    status = 404
    code = "stream_not_found"

    def __init__(self) -> None:
        super().__init__(
            "No such stream for this credential. Check the id and use the credential that started the stream, "
            "or send the request again without Last-Event-ID."
        )


class MethodNotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(ApiError):
    status = 408
    code = "request_timeout"


class IdempotencyKeyInFlight(ApiError):
    status = 409
    code = "idempotency_key_in_flight"

    def __init__(self) -> None:
        super().__init__(
            "A request with this Idempotency-Key is in flight and cannot be joined at the moment. "
            "Send it again after Retry-After, with the same key.",
            headers={"retry-after": "1"},
        )


class StreamExpired(ApiError):
    status = 410
    code = "stream_expired"

    def __init__(self) -> None:
        super().__init__(
            "This stream is no longer kept (streams.retention has passed since its end). "
            "Send the request again without Last-Event-ID."
        )


class PositionUnknown(ApiError):
    status = 410
    code = "position_unknown"

    def __init__(self) -> None:
        super().__init__(
            "The log does not hold the event after this position. Read the stream from its start "
            "(Last-Event-ID: <stream id>.0), or send the request again without Last-Event-ID."
        )


class ResponseIdAmbiguous(ApiError):
    status = 410
    code = "response_id_ambiguous"

    def __init__(self) -> None:
        super().__init__(
            "The upstream has given this response id to more than one answer. Read yours by its stream: "
            "GET /streams/{id}, with the Relay-Stream-Id of its request; or send the request again."
        )


class ContentTooLarge(ApiError):
    status = 413
    code = "request_too_large"


class UnsupportedContentEncoding(ApiError):
    status = 415
    code = "unsupported_content_encoding"


class IdempotencyKeyReused(ApiError):
    status = 422
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another request body. Use a new key for a new request.")


class HeadersTooLarge(ApiError):
    status = 431
    code = "headers_too_large"


class TooManyRequests(ApiError):
    status = 429
    code = "too_many_streams"


class UpstreamUnreachable(ApiError):
    status = 502
    code = "upstream_unreachable"


class UpstreamMalformed(ApiError):
    status = 502
    code = "upstream_malformed"


class UpstreamTimeout(ApiError):
    status = 504
    code = "upstream_timeout"


class Unavailable(ApiError):
    status = 503
    code = "too_busy"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The relay cannot reach its store at the moment. Try again after Retry-After.",
            headers={"retry-after": "2"},
        )


class StoreBehind(Unavailable):
    code = "store_behind"

    def __init__(self) -> None:
        super().__init__(
            "The log does not hold this position yet: the stream runs ahead of a store that was away. "
            "Come back with the same Last-Event-ID after Retry-After.",
            headers={"retry-after": "1"},
        )


class EncryptionKeyMissing(StoreUnavailable):
    """An entry of the log was encrypted under a `key`, by its name, that this replica does not have; another may."""

    def __init__(self, key: str = "") -> None:
        super().__init__()
        self.key = key
