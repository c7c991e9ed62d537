"""Every refusal that the relay itself answers before a stream, as one tree.

    ApiError
    ├── BadRequest                     400  invalid_request, invalid_json, missing_model
    │   ├── InvalidLastEventId         400  invalid_last_event_id
    │   └── ResumeNotSupported         400  resume_not_supported
    ├── InvalidApiKey                  401  invalid_api_key
    ├── PathNotAllowed                 403  path_not_allowed
    ├── OriginNotAllowed               403  origin_not_allowed
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
    ├── UnsupportedContentEncoding     415  unsupported_encoding
    ├── UnsupportedMediaType           415  unsupported_media_type
    ├── HostNotAllowed                 421  host_not_allowed
    ├── IdempotencyKeyReused           422  idempotency_key_reused
    ├── UpgradeRequired                426  upgrade_required
    ├── HeadersTooLarge                431  headers_too_large
    ├── TooManyRequests                429  too_many_streams, too_many_readers, rate_limit_exceeded
    ├── UpstreamUnreachable            502  upstream_unreachable
    ├── UpstreamDisconnected           502  upstream_disconnected
    ├── UpstreamMalformed              502  upstream_malformed
    ├── UpstreamTimeout                504  upstream_timeout
    └── Unavailable                    503  too_busy, draining
        ├── BodiesFull                 503  bodies_full
        ├── StoreBehind                503  store_behind
        └── StoreUnavailable           503  store_unavailable
            └── EncryptionKeyMissing   503  store_unavailable

Of a stream that failed the finished answer is 424, with its outcome as the code (`relay.api.finished`).
A resume that can never work is 400, 404 or 410, and what another try may get is 409, 429 or 503 with `Retry-After`:
SDKs retry 408, 409, 429 and 5xx by themselves.
How an error is spelled is the dialect's business (`relay.protocol.dialect`). Every message says what to do.
"""

from __future__ import annotations

from relay.protocol.api_error import ApiError as ApiError


class BadRequest(ApiError):
    """The request's syntax or framing is wrong (RFC 9110, section 15.5.1)."""

    status = 400
    code = "invalid_request"
    further_codes = ("invalid_json", "missing_model")


class InvalidLastEventId(BadRequest):
    """`Last-Event-ID` (WHATWG HTML, section 9.2.4) is no event id of this API's streams."""

    code = "invalid_last_event_id"


class ResumeNotSupported(BadRequest):
    """The stream has no log: its id says so, and nothing was looked up."""

    code = "resume_not_supported"

    def __init__(self) -> None:
        """The message is the same for every stream."""
        super().__init__(
            "This stream was relayed without a log, so it cannot be resumed. Send the request again "
            "without Last-Event-ID."
        )


class InvalidApiKey(ApiError):
    """The credential is unknown or has expired (RFC 9110, section 15.5.2, which demands `WWW-Authenticate`)."""

    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        """The message does not say which of the two it is."""
        super().__init__(
            "This relay does not know the API key, or it has expired. Send one that the relay's operator has issued, "
            "as Authorization: Bearer or as x-api-key.",
            headers={"www-authenticate": "Bearer"},
        )


class PathNotAllowed(ApiError):
    """Upstream, the request would act for all keys of this relay, and this key may not (RFC 9110, section 15.5.4)."""

    status = 403
    code = "path_not_allowed"


class OriginNotAllowed(ApiError):
    """A page of another origin asks where a key of the relay's own is lent (RFC 9110, section 15.5.4)."""

    status = 403
    code = "origin_not_allowed"

    def __init__(self) -> None:
        """The message names `cors.origins`."""
        super().__init__(
            "Pages of other origins may not use this relay: it lends its own key. Open the page at this relay's own "
            "address, or add the page's origin to cors.origins."
        )


class TicketRefused(ApiError):
    """The ticket does not open this stream, or not for this method (RFC 9110, section 15.5.4)."""

    status = 403
    code = "invalid_ticket"
    further_codes = ("ticket_expired", "ticket_read_only")


class ModelNotFound(ApiError):
    """No upstream serves the model (RFC 9110, section 15.5.5)."""

    status = 404
    code = "model_not_found"


class NotFound(ApiError):
    """Nothing is at this path (RFC 9110, section 15.5.5)."""

    status = 404
    code = "not_found"


class StreamNotFound(ApiError):
    """The stream is unknown or another owner's; both are answered alike (RFC 9110, section 15.5.5)."""

    status = 404
    code = "stream_not_found"

    def __init__(self) -> None:
        """The message is the same for an unknown stream and another owner's."""
        super().__init__(
            "No such stream for this credential. Check the id and use the credential that started the stream, "
            "or send the request again without Last-Event-ID."
        )


class MethodNotAllowed(ApiError):
    """The path has other methods; `allow` lists them (RFC 9110, section 15.5.6)."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(ApiError):
    """The request's body did not come in time (RFC 9110, section 15.5.9)."""

    status = 408
    code = "request_timeout"


class IdempotencyKeyInFlight(ApiError):
    """The key's first request runs where it cannot be joined (RFC 9110, section 15.5.10)."""

    status = 409
    code = "idempotency_key_in_flight"

    def __init__(self) -> None:
        """The same request may join a moment later: `retry-after` is 1 second."""
        super().__init__(
            "A request with this Idempotency-Key is in flight and cannot be joined at the moment. "
            "Send it again after Retry-After, with the same key.",
            headers={"retry-after": "1"},
        )


class StreamExpired(ApiError):
    """The stream's log is no longer kept (RFC 9110, section 15.5.11)."""

    status = 410
    code = "stream_expired"

    def __init__(self) -> None:
        """The message names `streams.retention`."""
        super().__init__(
            "This stream is no longer kept (streams.retention has passed since its end). "
            "Send the request again without Last-Event-ID."
        )


class PositionUnknown(ApiError):
    """The stream has ended, and its log lacks what follows this position (RFC 9110, section 15.5.11)."""

    status = 410
    code = "position_unknown"

    def __init__(self) -> None:
        """The message names the position that always works, the stream's start."""
        super().__init__(
            "The log does not hold the event after this position. Read the stream from its start "
            "(Last-Event-ID: <stream id>.0), or send the request again without Last-Event-ID."
        )


class ResponseIdAmbiguous(ApiError):
    """One response id names several streams of one owner (RFC 9110, section 15.5.11)."""

    status = 410
    code = "response_id_ambiguous"

    def __init__(self) -> None:
        """The message says how to read each of them."""
        super().__init__(
            "The upstream has given this response id to more than one answer. Read yours by its stream: "
            "GET /streams/{id}, with the Relay-Stream-Id of its request; or send the request again."
        )


class ContentTooLarge(ApiError):
    """The request's body is larger than its limit (RFC 9110, section 15.5.14)."""

    status = 413
    code = "request_too_large"


class UnsupportedContentEncoding(ApiError):
    """The request's body is compressed in a way that the relay cannot read (RFC 9110, section 15.5.16)."""

    status = 415
    code = "unsupported_encoding"


class UnsupportedMediaType(ApiError):
    """The request's body is of a kind that is not read here (RFC 9110, section 15.5.16)."""

    status = 415
    code = "unsupported_media_type"

    def __init__(self) -> None:
        """The message names the kind that is read."""
        super().__init__("This path takes JSON. Send the body with the header Content-Type: application/json.")


class HostNotAllowed(ApiError):
    """The name under which the relay was asked is none of its own (RFC 9110, section 15.5.20)."""

    status = 421
    code = "host_not_allowed"

    def __init__(self) -> None:
        """The message names `hosts`."""
        super().__init__(
            "This relay is not to be had under this name: it lends its own key, and a page could have the name point "
            "here. Use the relay's address, or add the name to `hosts`."
        )


class IdempotencyKeyReused(ApiError):
    """The key was used with another body (RFC 9110, section 15.5.21)."""

    status = 422
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        """The message is the same for every key."""
        super().__init__("This Idempotency-Key was used with another request body. Use a new key for a new request.")


class UpgradeRequired(ApiError):
    """A WebSocket is asked for, and there is none (RFC 9110, section 15.5.22): clients that know the answer take to
    HTTP at once."""

    status = 426
    code = "upgrade_required"

    def __init__(self) -> None:
        """The message names the way that there is."""
        super().__init__(
            'This relay speaks no WebSocket. Send the request as a POST over HTTP, with "stream": true for events.',
            headers={"upgrade": "websocket", "connection": "upgrade"},
        )


class HeadersTooLarge(ApiError):
    """The request's header section is larger than its limit (RFC 6585, section 5)."""

    status = 431
    code = "headers_too_large"


class TooManyRequests(ApiError):
    """A limit of streams, readers or requests is reached (RFC 6585, section 4)."""

    status = 429
    code = "too_many_streams"
    further_codes = ("too_many_readers", "rate_limit_exceeded")


class UpstreamUnreachable(ApiError):
    """No connection to the upstream was had, so it knows nothing of the request (RFC 9110, section 15.6.3)."""

    status = 502
    code = "upstream_unreachable"


class UpstreamDisconnected(ApiError):
    """The upstream's connection ended before its answer, which it may have begun (RFC 9110, section 15.6.3)."""

    status = 502
    code = "upstream_disconnected"

    def __init__(self, message: str) -> None:
        """SDKs are told not to try again by themselves: what was generated is paid for."""
        super().__init__(message, headers={"x-should-retry": "false"})


class UpstreamMalformed(ApiError):
    """The upstream's answer is none of its API's (RFC 9110, section 15.6.3)."""

    status = 502
    code = "upstream_malformed"


class UpstreamTimeout(ApiError):
    """The upstream did not answer in time (RFC 9110, section 15.6.5)."""

    status = 504
    code = "upstream_timeout"

    def __init__(self, message: str) -> None:
        """SDKs are told not to try again by themselves: what was generated is paid for."""
        super().__init__(message, headers={"x-should-retry": "false"})


class Unavailable(ApiError):
    """This relay cannot take the request now; another one may (RFC 9110, section 15.6.4)."""

    status = 503
    code = "too_busy"
    further_codes = ("draining",)


class BodiesFull(Unavailable):
    """The request bodies in flight leave no room for this one."""

    code = "bodies_full"

    def __init__(
        self, message: str = "The request bodies in flight on this relay are as large as limits.bodies allows."
    ) -> None:
        """`retry-after` is 1 second: most bodies are in flight for less."""
        super().__init__(f"{message} Send this one again after Retry-After.", headers={"retry-after": "1"})


class StoreUnavailable(Unavailable):
    """The store cannot be reached, or takes nothing."""

    code = "store_unavailable"

    def __init__(self) -> None:
        """`retry-after` is 2 seconds."""
        super().__init__(
            "The relay cannot reach its store at the moment. Try again after Retry-After.",
            headers={"retry-after": "2"},
        )


class StoreBehind(Unavailable):
    """The position is beyond what the log holds of a live stream: it will come."""

    code = "store_behind"

    def __init__(self) -> None:
        """`retry-after` is 1 second."""
        super().__init__(
            "The log does not hold this position yet: the stream runs ahead of a store that was away. "
            "Come back with the same Last-Event-ID after Retry-After.",
            headers={"retry-after": "1"},
        )


class EncryptionKeyMissing(StoreUnavailable):
    """An entry of the log is encrypted under a key that this replica does not have; another may."""

    def __init__(self, key: str = "") -> None:
        """`key` is the name of the key, never the key; it is for the log only."""
        super().__init__()
        self.key = key
