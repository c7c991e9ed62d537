"""Reads the errors of upstreams, whatever their shape: an answer's body, an event's object, or plain text.

Upstreams that call themselves compatible tell their errors in a dozen shapes. All of them become one value here, and
nothing else looks into an upstream's error. Its words are for its client; the relay's log keeps code and type.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

JsonObject = dict[str, Any]

_LONGEST = 2000
# Of a text, what is looked at: an event may have megabytes, and nobody reads them.
_LOOKED_AT = 16 * 1024
_LONGEST_BEAT = 1024
_NOTHING = frozenset(
    ("", "null", "none", "nil", "undefined", "false", "0", "200", "ok", "success", "successful", "no error", "no_error",
     "{}", "[]")
)  # fmt: skip
_MEMBERS = ("error", "Error", "errors", "error_message", "error_msg", "errorMessage", "ErrorMessage", "errmsg", "err",
            "base_resp", "fault", "detail", "__type")  # fmt: skip
_WORDS = ("message", "msg", "error_message", "error_msg", "errorMessage", "ErrorMessage", "errmsg", "status_msg",
          "detail", "faultstring", "Message", "error", "reason", "title", "description")  # fmt: skip
_CODES = ("code", "error_code", "status_code", "errorcode", "errcode", "Code", "http_status", "status")
_TYPES = ("type", "error_type", "__type", "status")
# Where errors say when to come back, and what makes seconds of it.
_AFTER = (("retry_after", 1.0), ("retryAfter", 1.0), ("retry_after_seconds", 1.0), ("retry-after", 1.0),
          ("Retry-After", 1.0), ("retryDelay", 1.0), ("retry_after_ms", 0.001), ("retry-after-ms", 0.001))  # fmt: skip

# What the names of errors mean as a status, looked up without regard to case, `_`, `-` and spaces.
_STATUSES = {
    "invalidrequesterror": 400, "invalidrequest": 400, "badrequesterror": 400, "badrequest": 400,
    "invalidargument": 400, "failedprecondition": 400, "validationexception": 400, "validationerror": 400,
    "contextlengthexceeded": 400, "contentfilter": 400, "contentpolicyviolation": 400, "invalidprompt": 400,
    "authenticationerror": 401, "unauthorized": 401, "unauthenticated": 401, "invalidapikey": 401,
    "billingerror": 402, "insufficientbalance": 402, "insufficientcredits": 402,
    "permissionerror": 403, "permissiondenied": 403, "forbidden": 403, "accessdeniedexception": 403,
    "notfounderror": 404, "notfound": 404, "modelnotfound": 404, "modelnotfounderror": 404,
    "requesttoolarge": 413,
    "ratelimiterror": 429, "ratelimit": 429, "ratelimitexceeded": 429, "ratelimitreached": 429, "toomanyrequests": 429,
    "throttlingexception": 429, "throttling": 429, "resourceexhausted": 429, "insufficientquota": 429,
    "quotaexceeded": 429, "quotaexceedederror": 429, "servicequotaexceededexception": 429, "tokensratelimit": 429,
    "apierror": 500, "servererror": 500, "internalservererror": 500, "internalerror": 500, "internal": 500,
    "internalserverexception": 500,
    "badgateway": 502, "badgatewayerror": 502,
    "serviceunavailable": 503, "serviceunavailableerror": 503, "serviceunavailableexception": 503, "unavailable": 503,
    "serverisoverloaded": 503, "modelnotready": 503,
    "timeouterror": 504, "deadlineexceeded": 504, "gatewaytimeout": 504, "timeout": 504, "modeltimeoutexception": 504,
    "overloadederror": 529, "overloaded": 529,
}  # fmt: skip

_KEEP_ALIVE = re.compile(rb"\s*(?::.*|\[?(?:ping|pong|keep[-_ ]?alives?|heart[-_ ]?beat|hb)\]?\W*)?", re.I | re.S)
_TEXT_ERROR = re.compile(
    r"[^\w{\[]*(?:\[?(?:error|fatal|exception|failed|failure|traceback)\b"
    r"|(?:HTTP\S* )?[45]\d\d\b|<!doctype|<html|<\?xml)"
    r"|[^{\[].*\b(?:\w*error|\w*exception|unavailable|timed?[ -]?out|too many requests|bad gateway|overloaded"
    r"|rate limit\w*|quota|unauthorized|forbidden|out of memory|crashed|panic|disconnected"
    r"|connection (?:reset|refused|closed|lost|aborted))\b",
    re.I | re.S,
)
# In the names of types and codes that are an error's.
_FAILS = re.compile(
    r"err(?!and)|fail|fault(?!s)|exception|invalid|denied|refused|reject|abort|block|unavailable|exceeded|exhausted|overload"
    r"|forbidden|unauthori|insufficient|time[d_ -]*out|crash|limit_?(?:ed|reached)|rate[_ -]?limit(?!s)",
    re.I,
)
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*s?")
_STATUS = re.compile(r"(?<![\w.])([45]\d\d)(?![\w.])")
# Each of these looks at every character once, whatever it is given.
_TITLE = re.compile(r"<title\b[^<>]*>([^<]*)", re.I)
_TAG = re.compile(r"<[^<>]*>")
_UNSHOWN = re.compile(r"<(script|style)\b", re.I)
_SHOWN_AGAIN = {name: re.compile(f"</{name}", re.I) for name in ("script", "style")}


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """`status` is what the upstream said or its name for the error means, None where neither tells; `retry_after` is in
    seconds; `given` is the object that it stood in, as the upstream sent it. `message` is never empty."""

    message: str
    status: int | None = None
    code: str = ""
    type: str = ""
    retry_after: str = ""
    given: JsonObject = field(default_factory=dict)

    def describe(self) -> str:
        """The upstream's words, and when to come back where it said so."""
        if not self.retry_after or self.retry_after in self.message:
            return self.message
        after = self.retry_after
        when = f"Try again in {after} seconds" if after.isdigit() else f"Retry after {after}"
        return f"{self.message.rstrip('.')}. {when}."


def is_keep_alive(data: bytes) -> bool:
    """Is this data, which is no JSON, only there to keep the connection alive?"""
    if len(data) > _LONGEST_BEAT:
        return data[:_LONGEST_BEAT].lstrip()[:1] == b":"
    return _KEEP_ALIVE.fullmatch(data) is not None


def read_object(value: object, *, named: bool = False) -> UpstreamError | None:
    """The error that a JSON value is, None where it is none.

    Args:
        value: as it was parsed.
        named: it is known to be one, by its event's name or its answer's status.
    """
    if isinstance(value, list):
        return next((found for item in value[:8] if (found := read_object(item, named=named)) is not None), None)
    if isinstance(value, str):
        return _error(value, {}, {}) if named and _says(value) else None
    if not isinstance(value, dict):
        return None
    inner = _inner(value)
    if inner is not None:
        words, outer = inner, value
    elif named or value.get("object") == "error" or value.get("type") == "error" or _is_bare(value):
        words, outer = value, {}
    else:
        return None
    message = words if isinstance(words, str) else _first(words, _WORDS) or _first(outer, _WORDS)
    return _error(message, words if isinstance(words, dict) else {}, outer)


def read_text(data: bytes) -> UpstreamError | None:
    """The error that data which is no JSON tells in plain words, None where it does not look like one."""
    text = data[:_LOOKED_AT].decode("utf-8", "replace")
    if _TEXT_ERROR.match(text) is None:
        return None
    _, found, rest = text.partition(":")
    if found and rest.lstrip()[:1] in ("{", "["):  # `error: {…}`
        try:
            parsed = read_object(json.loads(rest), named=True)
        except (ValueError, RecursionError):
            parsed = None
        if parsed is not None:
            return parsed
    return _of_text(text)


def read_body(body: bytes, *, status: int, retry_after: str = "") -> UpstreamError:
    """The error that an answer's body tells, or the text of a body that tells none: JSON, HTML or plain text."""
    found = None
    try:
        parsed = orjson.loads(body)
    except ValueError:
        found = _of_text(body[:_LOOKED_AT].decode("utf-8", "replace")) if body.strip() else None
    else:
        found = read_object(parsed, named=status >= 400)
        if found is None:
            found = UpstreamError(_cut(body.decode("utf-8", "replace")))
    found = found or UpstreamError("no message")
    known = status if status >= 400 else found.status
    return UpstreamError(found.message, known, found.code, found.type, retry_after or found.retry_after, found.given)


def read_unframed(held: bytes) -> UpstreamError | None:
    """What a body says that was sent as an event stream and is none, by the bytes that are left of it."""
    if not held.strip() or held.startswith((b":", b"data:", b"event:", b"id:", b"retry:")):
        return None
    if held.startswith(b"\x1f\x8b"):
        return UpstreamError("It is compressed (gzip) without a Content-Encoding that says so.")
    return read_body(held, status=200)


def _inner(value: JsonObject) -> JsonObject | str | None:
    """The member that holds the error."""
    for name in _MEMBERS:
        given = value.get(name)
        if name == "base_resp" and isinstance(given, dict) and not given.get("status_code"):
            continue
        if name in ("errors", "detail") or (name == "error" and isinstance(given, list)):
            if name == "detail" and "choices" in value:
                continue
            given = given[0] if isinstance(given, list) and given else given
        if name in ("detail", "__type") and not isinstance(value.get("object", ""), str):
            continue
        if name == "detail" and _is_news(value):
            continue
        if name == "__type":
            return value if isinstance(given, str) and given else None
        if isinstance(given, dict) and _tells(given):
            return given
        if isinstance(given, str) and _says(given):
            return given
        if name == "error" and given is True and _first(value, _WORDS[:7]):
            return value
    return None


def _is_bare(value: JsonObject) -> bool:
    """An object of a code and words, and nothing of an answer."""
    if not _first(value, _WORDS):
        return False
    if value.keys() & {"choices", "id", "object", "delta", "response", "content", "usage"}:
        return not value.get("choices") and not value.get("delta") and _refuses(value)
    if value.get("success") is False or _is_failing(value.get("type")):
        return True
    return bool(_first(value, _CODES)) and not _is_news(value)


def _is_news(value: JsonObject) -> bool:
    """Does an object with words say of itself that it is something else than an error: how far the upstream has come,
    an event of a type that nobody else knows? Then its words are no error's."""
    codes = [value.get(name) for name in _CODES]
    if value.get("success") is False or _refuses(value) or any(map(_is_failing, codes)):
        return False
    if value.get("success") is True or any(type(code) is int and 100 <= code < 400 for code in codes):
        return True
    kinds = [kind for kind in map(value.get, ("type", "event")) if isinstance(kind, str) and kind]
    # A type with a colon is an address, as problems have one (RFC 9457).
    return isinstance(value.get("status"), str) or (
        bool(kinds) and not any(_is_failing(kind) or ":" in kind for kind in kinds)
    )


def _is_failing(name: object) -> bool:
    """Is it the name of an error's type, code or status?"""
    return isinstance(name, str) and (_FAILS.search(name[:100]) is not None or _status(name) is not None)


def _refuses(value: JsonObject) -> bool:
    """Does it have an HTTP status of a refusal?"""
    return any(type(v) is int and 400 <= v < 600 for v in map(value.get, _CODES))


def _tells(given: JsonObject) -> bool:
    """Does an object say anything? `{"message": "OK", "code": 200}` does not."""
    return any(
        _says(v) if isinstance(v, str) else bool(v) and not (k in _CODES and type(v) is int and 100 <= v < 400)
        for k, v in given.items()
    )


def _says(text: str) -> bool:
    return text.strip().rstrip(".!").lower() not in _NOTHING


def _first(value: JsonObject, names: tuple[str, ...]) -> str:
    for name in names:
        given = value.get(name)
        if isinstance(given, list) and given and isinstance(given[0], dict):  # FastAPI's list of what is wrong
            given = given[0].get("msg")
        if isinstance(given, str) and _says(given):
            return given
        if isinstance(given, int) and not isinstance(given, bool) and given:
            return str(given)
        if isinstance(given, dict) and (found := _first(given, names)):
            return found
    return ""


def _error(message: str, given: JsonObject, outer: JsonObject) -> UpstreamError:
    kind = next((v for v in (_first(given, _TYPES), _first(outer, _TYPES)) if v and v != "error"), "")
    code = _first(given, _CODES) or _first(outer, _CODES)
    status = next((s for s in map(_status, (code, kind, _first(outer, _CODES))) if s is not None), None)
    after = _retry_after(given) or _retry_after(outer)
    message = message or code or kind or "unknown error"
    return UpstreamError(_cut(message), status, code[:100], kind[:100], after[:40], given)


def _retry_after(told: JsonObject) -> str:
    """When an error says to come back, itself or in its details: in whole seconds, or in the words that told it."""
    details = told.get("details")
    nested = details[:8] if isinstance(details, list) else [told.get("metadata"), told.get("headers")]
    for found in (told, *nested):
        for name, scale in _AFTER if isinstance(found, dict) else ():
            given = found.get(name)
            if isinstance(given, str) and (seconds := _SECONDS.fullmatch(given.strip())):
                given = float(seconds[1])
            if type(given) in (int, float) and 0 < given < 1e9:
                return str(math.ceil(given * scale))
            if isinstance(given, str) and _says(given):
                return given
    return ""


def _status(name: str) -> int | None:
    if name.isdigit():
        return int(name) if len(name) == 3 and 400 <= int(name) < 600 else None
    return _STATUSES.get(re.sub(r"[\W_]", "", name[:200].rpartition("#")[2]).lower()[:40])


def _of_text(text: str) -> UpstreamError:
    if "<" in text[:200]:
        title = _TITLE.search(text)
        text = html.unescape(title[1] if title and title[1].strip() else _TAG.sub(" ", _shown(text)))
    text = " ".join(text.split())
    status = _STATUS.search(text[:200])
    return UpstreamError(_cut(text) or "no message", int(status[1]) if status else None)


def _shown(page: str) -> str:
    """A page without its scripts and styles."""
    parts, at = [], 0
    for begins in _UNSHOWN.finditer(page):
        if begins.start() < at:
            continue
        ends = _SHOWN_AGAIN[begins[1].lower()].search(page, begins.end())
        if ends is None:
            break
        parts.append(page[at : begins.start()])
        at = ends.start()
    return "".join([*parts, page[at:]])


def _cut(text: str) -> str:
    return text[:_LONGEST]
