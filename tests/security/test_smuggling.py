"""Request smuggling: what two servers may read in two ways is refused, and its connection closed.

The cases are those of the public lists, under their names there: PortSwigger's http-request-smuggler (`DesyncBox`),
Http11Probe, http-garden's quirks and trophies, and those of RFC 9112 and RFC 9113 themselves. A scripted upstream
records what arrives. No case may make two requests of one, none may bring a framing header upstream, and after a
refusal nothing more is read from the connection.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay.http.heads import Malformed, Received
from tests.security.wire import H2, request, say
from tests.support.processes import RelayProcess
from tests.support.scripted import Cut, Head, ScriptedUpstream, Send, json_response
from tests.support.site import Site

SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nhost: x\r\nx-smuggled: 1\r\n\r\n"
AFTER_CHUNKS = b"0\r\n\r\n" + SMUGGLED
CL = b"content-length: %d" % len(AFTER_CHUNKS)
TE = b"transfer-encoding: chunked"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        for path in ("POST /v1/files", "GET /v1/files", "OPTIONS /v1/files", "GET /v1/models", "GET /v1/smuggled"):
            upstream.on_path(path, *json_response(200, {"ok": True}))
        upstream.on_path("HEAD /v1/files", Head(200, {}, "length"))
        config = {"upstreams": [{"name": "scripted", "base_url": upstream.url}], "limits": {"read_timeout": "4s"}}
        with RelayProcess(config) as relay:
            yield Site(upstream, relay)
        heads = [(call.path, call.headers) for call in upstream.calls]
        assert not [head for head in heads if "smuggled" in repr(head).lower()]


def post(*lines: bytes, body: bytes = AFTER_CHUNKS, method: bytes = b"POST", version: bytes = b"1.1") -> bytes:
    head = [b"%b /v1/files HTTP/%b" % (method, version), b"host: relay.test", *lines, b"", b""]
    return b"\r\n".join(head) + body


def te(line: bytes) -> bytes:
    """A Content-Length that covers the body, and a Transfer-Encoding that ends it at its beginning."""
    return post(CL, line)


REFUSED: dict[str, bytes] = {
    # Content-Length beside Transfer-Encoding, plain and in the ways of writing it that some server understands.
    "vanilla": te(TE),
    "the other way round": post(TE, CL),
    "nospace1": te(b"transfer-encoding:chunked"),
    "valueprefix1": te(b"transfer-encoding:  chunked"),
    "tabsuffix": te(b"transfer-encoding: chunked\t"),
    "prefix1:9": te(b"transfer-encoding: \tchunked"),
    "spacefix1:9": te(b"transfer-encoding:\tchunked"),
    "UPPERCASE": te(b"TRANSFER-ENCODING: chunked"),
    "multiCase": te(b"tRANSFER-ENCODING: chUNked"),
    "connection": te(b"connection: transfer-encoding\r\n" + TE),
    "commaCow": te(b"transfer-encoding: chunked, identity"),
    "cowComma": te(b"transfer-encoding: identity, chunked"),
    "nested": te(b"transfer-encoding: identity, chunked, identity"),
    "dualchunk": te(TE + b"\r\ntransfer-encoding: identity"),
    "revdualchunk": te(b"transfer-encoding: identity\r\n" + TE),
    "chunked twice": post(TE, TE, body=b"0\r\n\r\n"),
    "quoted": te(b'transfer-encoding: "chunked"'),
    "aposed": te(b"transfer-encoding: 'chunked'"),
    "lazygrep": te(b"transfer-encoding: chunk"),
    "qencode": te(b"transfer-encoding: =?iso-8859-1?B?Y2h1bmtlZA==?="),
    "accentCH": te(b"transfer-encoding: ch\x96nked"),
    "empty": te(b"transfer-encoding:"),
    "identity": te(b"transfer-encoding: identity"),
    "gzip": post(b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"),
    # A name, or what stands around it, that one server takes for Transfer-Encoding and another does not.
    "space1": te(b"transfer-encoding : chunked"),
    "spjunk": te(b"transfer-encoding x: chunked"),
    "spacejoin1": te(b"transfer encoding: chunked"),
    "backslash": te(b"transfer\\encoding: chunked"),
    "nel": te(b"transfer-encoding\x85: chunked"),
    "nbsp": te(b"transfer-encoding\xa0: chunked"),
    "shy": te(b"transfer\xadencoding: chunked"),
    "accentTE": te(b"transf\x82r-encoding: chunked"),
    "namesuffix1:0": te(b"transfer-encoding\0: chunked"),
    "namesuffix1:9": te(b"transfer-encoding\t: chunked"),
    "no colon": te(b"transfer-encoding chunked"),
    "no name": te(b": chunked"),
    "before the first header": b"POST /v1/files HTTP/1.1\r\n host: x\r\n" + CL + b"\r\n\r\n" + AFTER_CHUNKS,
    # Control characters in a value.
    "spacefix1:11": te(b"transfer-encoding:\x0bchunked"),
    "prefix1:0": te(b"transfer-encoding: \0chunked"),
    "suffix1:0": te(b"transfer-encoding: chunked\0"),
    "suffix1:12": te(b"transfer-encoding: chunked\x0c"),
    "0dsuffix": te(b"transfer-encoding: chunked\r"),
    "0dspam": te(b"tra\rnsfer-encoding: chunked"),
    "0dwrap": te(b"foo: bar\r\n\rtransfer-encoding: chunked"),
    "badsetupCR": te(b"foo: bar\rtransfer-encoding: chunked"),
    # Obsolete folding.
    "nameprefix1": te(b"foo: bar\r\n transfer-encoding: chunked"),
    "nameprefix2": te(b"foo: bar\r\n\ttransfer-encoding: chunked"),
    "tabwrap": te(b"transfer-encoding:\r\n\tchunked"),
    "doublewrapped": te(b"transfer-encoding:\r\n \r\n chunked"),
    "SMUG-TE-OBS-FOLD": te(b"transfer-encoding:\r\n chunked"),
    "a folded length": post(b"content-length:\r\n %d" % len(AFTER_CHUNKS)),
    "RFC9112-5.1-OBS-FOLD": post(b"x-folded: a\r\n b", CL),
    # Bare LF.
    "badsetupLF": te(b"foo: bar\ntransfer-encoding: chunked"),
    "linewrapped1": te(b"transfer-encoding:\n chunked"),
    "gareth1": te(b"transfer-encoding\n : chunked"),
    "vertwrap": te(b"transfer-encoding: \n\x0bchunked"),
    "bodysplit": te(b"foo: barn\n\ntransfer-encoding: chunked"),
    "all lines in LF": post(CL).replace(b"\r\n", b"\n"),
    "a head that ends in LF LF": b"GET /v1/models HTTP/1.1\r\nhost: x\n\n" + SMUGGLED,
    "a head that ends in CRLF LF": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\n" + SMUGGLED,
    "a request line in LF": b"GET /v1/models HTTP/1.1\nhost: x\r\n\r\n" + SMUGGLED,
    # Lengths.
    "CL-plus": post(b"content-length: +%d" % len(AFTER_CHUNKS)),
    "CL-minus": post(b"content-length: -%d" % len(AFTER_CHUNKS)),
    "CL-spacepad": post(b"content-length: 0 %d" % len(AFTER_CHUNKS)),
    "CL-e": post(b"content-length: 5e0"),
    "CL-dec": post(b"content-length: 5.0"),
    "CL-hex": post(b"content-length: 0x5"),
    "CL-underscore": post(b"content-length: 1_0"),
    "CL-unicode": post("content-length: ٥".encode()),
    "CL-commaprefix": post(b"content-length: 0, %d" % len(AFTER_CHUNKS)),
    "CL-commasuffix": post(b"content-length: %d, 0" % len(AFTER_CHUNKS)),
    "CL-comma-same": post(b"content-length: 5, 5"),
    "CL-empty": post(b"content-length:"),
    "CL-huge": post(b"content-length: 99999999999999999999999999"),
    "CL-error": post(b"x-invalid y: \r\ncontent-length: 5"),
    "two lengths": post(CL, b"content-length: 0"),
    "the same length twice": post(CL, CL),
    # Versions and hosts.
    "http1.0": post(TE, version=b"1.0"),
    "http1.0 and nothing more": post(TE, version=b"1.0", body=b"5\r\nhello\r\n0\r\n\r\n"),
    "a version to come": post(CL, version=b"1.9"),
    "an HTTP/2 request line": post(CL, version=b"2.0"),
    "no version": b"GET /v1/models\r\n\r\n" + SMUGGLED,
    "two hosts": post(b"host: other.test", CL),
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n" + SMUGGLED,
    "an empty line first": b"\r\n" + SMUGGLED,
    "two spaces": b"GET  /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" + SMUGGLED,
    "a tab in the request line": b"GET\t/v1/models HTTP/1.1\r\nhost: x\r\n\r\n" + SMUGGLED,
    "TLS": b"\x16\x03\x01\x00\xf1\x01\x00\x00\xed\x03\x03" + SMUGGLED,
    "HTTP/2 in the middle": post(CL) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    # Chunks.
    "chunk size in LF": post(TE, body=b"5\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk data in LF": post(TE, body=b"5\r\nhello\n0\r\n\r\n" + SMUGGLED),
    "chunk data in anything": post(TE, body=b"5\r\nhelloXX0\r\n\r\n" + SMUGGLED),
    "last chunk in LF": post(TE, body=b"0\n\n" + SMUGGLED),
    "trailer in LF": post(TE, body=b"0\r\nx: y\n\n" + SMUGGLED),
    "trailer folded": post(TE, body=b"0\r\nx: y\r\n z\r\n\r\n" + SMUGGLED),
    "trailer framing": post(TE, body=b"0\r\ntransfer-encoding: chunked\r\n\r\n" + SMUGGLED),
    "chunk size 0x": post(TE, body=b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size signed": post(TE, body=b"+5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size negative": post(TE, body=b"-5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size underscore": post(TE, body=b"0_5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size overflow": post(TE, body=b"10000000000000005\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size with space behind": post(TE, body=b"5 \r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size with space before": post(TE, body=b" 5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size empty": post(TE, body=b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size of words": post(TE, body=b"five\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk extension with CR": post(TE, body=b"5;a\rb\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk extension with LF": post(TE, body=b"5;a\nb\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk extension with NUL": post(TE, body=b"5;a\0b\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
}

# What may follow these is a connection's next request, so they say that there is none: (request, body upstream).
CLOSE = b"connection: close"
HARMLESS: dict[str, tuple[bytes, bytes]] = {
    "a length": (post(CL, CLOSE), AFTER_CHUNKS),
    "chunks": (post(TE, CLOSE, body=b"5\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "CL-pad": (post(b"content-length: 0%d" % len(AFTER_CHUNKS), CLOSE), AFTER_CHUNKS),
    "CL-bigpad": (post(b"content-length: 00000000000%d" % len(AFTER_CHUNKS), CLOSE), AFTER_CHUNKS),
    "CL-expect": (post(CL, CLOSE, b"expect: 100-continue"), AFTER_CHUNKS),
    "CL-expect-obfs": (post(CL, CLOSE, b"expect: x 100-continue"), AFTER_CHUNKS),
    "no length": (post(CLOSE, body=b""), b""),
    "underjoin1": (post(CL, CLOSE, b"transfer_encoding: chunked"), AFTER_CHUNKS),
    "underjoin of a length": (post(CL, CLOSE, b"content_length: 0"), AFTER_CHUNKS),
    "encode": (post(CL, CLOSE, b"transfer-%45ncoding: chunked"), AFTER_CHUNKS),
    "contentEnc": (post(CL, CLOSE, b"content-encoding: chunked"), AFTER_CHUNKS),
    "connection names the length": (post(b"connection: close, content-length", CL), AFTER_CHUNKS),
    "range": (post(CL, CLOSE, b"range: bytes=0-0"), AFTER_CHUNKS),
    "te": (post(CL, CLOSE, b"te: chunked", b"trailer: content-length"), AFTER_CHUNKS),
    "options": (post(CL, CLOSE, method=b"OPTIONS"), AFTER_CHUNKS),
    "a trailer": (post(TE, CLOSE, body=b"5\r\nhello\r\n0\r\nx-smuggled: 1\r\n\r\n"), b"hello"),
    "a chunk extension": (post(TE, CLOSE, body=b'5;a="b"\r\nhello\r\n0\r\n\r\n'), b"hello"),
    "a padded chunk size": (post(TE, CLOSE, body=b"0000005\r\nhello\r\n000\r\n\r\n"), b"hello"),
    # CL.0: an upstream that reads no body here would take it for the connection's next request.
    "get": (post(CL, CLOSE, method=b"GET"), b""),
    "head": (post(CL, CLOSE, method=b"HEAD"), b""),
    "get in chunks": (post(TE, CLOSE, body=b"5\r\nhello\r\n0\r\n\r\n", method=b"GET"), b""),
    # Upgrades that a proxy may believe in and then be blind to.
    "h2c": (
        post(CL, b"connection: close, upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"),
        AFTER_CHUNKS,
    ),
    "h2c without a body": (
        post(b"connection: close, upgrade", b"upgrade: h2c", b"http2-settings: AAMAAABk", body=b"", method=b"GET"),
        b"",
    ),
}

FRAMING = {"transfer-encoding", "te", "trailer", "upgrade", "http2-settings", "expect", "content-length", "connection"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_is_refused_and_its_connection_closed(site: Site, case: str) -> None:
    before = len(site.upstream.calls)
    heard = say(site.relay.url, REFUSED[case])
    expected = 2 if case == "HTTP/2 in the middle" else 1
    assert len(heard.statuses) == expected, heard.data
    assert heard.statuses[-1] in (400, 501, 505), heard.data
    assert heard.closed
    assert len(site.upstream.calls) == before + expected - 1


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("case", ["all lines in LF", "tabwrap", "vanilla", "two lengths", "trailer in LF", "0dsuffix"])
def test_however_tcp_cuts_it(site: Site, case: str, cut: int) -> None:
    before = len(site.upstream.calls)
    data = REFUSED[case]
    heard = say(site.relay.url, *(data[i : i + cut] for i in range(0, len(data), cut)))
    assert heard.closed
    assert heard.statuses in ([400], [])  # what is still sent may make a reset that overtakes the answer
    assert len(site.upstream.calls) == before


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_not_ambiguous_is_one_request_and_brings_no_framing_upstream(site: Site, case: str) -> None:
    data, body = HARMLESS[case]
    before = len(site.upstream.calls)
    heard = say(site.relay.url, data)
    assert [status for status in heard.statuses if status != 100] == [200], heard.data
    (call,) = site.upstream.calls[before:]
    assert (call.path, call.body) == ("/v1/files", body)
    names = [name.lower() for name, _ in call.headers]
    framing = [name for name in names if name in FRAMING or "_" in name or "%" in name or "smuggled" in name]
    assert framing in ([], ["content-length"], ["transfer-encoding"])


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\n\n", b"\n\r\n", b"\n\n"])
def test_a_cut_changes_nothing_of_where_a_head_ends(end: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nhost: x" + end + b"body\nwith LF"
    for cut in range(len(head)):
        received = Received(1000)
        if end == b"\r\n\r\n":
            received.data += head[:cut]
            found = received.take_head()
            received.data += head[cut:]
            assert (found or received.take_head()) == b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
            assert bytes(received.data) == b"body\nwith LF"
            continue
        with pytest.raises(Malformed):  # noqa: PT012
            received.data += head[:cut]
            received.take_head()
            received.data += head[cut:]
            received.take_head()


def test_requests_that_were_sent_together_stay_apart(site: Site) -> None:
    """Pipelining as it should be: each request has its answer, in order, and its own body."""
    before = len(site.upstream.calls)
    heard = say(site.relay.url, post(CL) + post(TE, body=b"5\r\nhello\r\n0\r\n\r\n") + post(CL, CLOSE))
    assert heard.statuses == [200] * 3
    assert [call.body for call in site.upstream.calls[before:]] == [AFTER_CHUNKS, b"hello", AFTER_CHUNKS]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_that_breaks_off_is_no_whole_request_upstream(site: Site, framing: str) -> None:
    """The client's end in the middle of an upload does not become the upload's end."""
    before = len(site.upstream.calls)
    half = post(b"content-length: 100", body=b"half") if framing == "length" else post(TE, body=b"64\r\nhalf")
    heard = say(site.relay.url, half)
    assert heard.closed
    assert heard.statuses in ([], [408])
    assert len(site.upstream.calls) == before
    assert say(site.relay.url, post(CL, CLOSE)).statuses == [200]
    assert [call.body for call in site.upstream.calls[before:]] == [AFTER_CHUNKS]


RESPONSES: dict[str, tuple[Head, bytes]] = {
    "more than its length": (
        Head(200, {"content-length": "2"}, "close"),
        b"okHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
    ),
    "length and chunks": (
        Head(200, {"content-length": "2", "transfer-encoding": "chunked"}, "close"),
        b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
    ),
    "two lengths": (
        Head(200, {"content-length": "2", "Content-Length": "60"}, "close"),
        b"okHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
    ),
}


@pytest.mark.parametrize("case", RESPONSES)
def test_an_upstreams_answer_is_never_two(site: Site, case: str) -> None:
    """Response splitting: what follows an answer on its connection belongs to nobody."""
    head, body = RESPONSES[case]
    site.upstream.on_path("GET /v1/answers", head, Send(body), Cut())
    asking = b"GET /v1/answers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    for _ in range(2):
        heard = say(site.relay.url, asking)
        assert heard.data.count(b"HTTP/1.1 ") <= 1
        assert b"forged" not in heard.data
    assert say(site.relay.url, asking.replace(b"answers", b"models")).data.endswith(b'{"ok": true}')


# -- HTTP/2 --------------------------------------------------------------------------------------------------------

_POST = (b"POST", b"/v1/files")
BAD_HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    # PortSwigger's names.
    "http2hide": request(*_POST, (b"foo", b"b\r\ntransfer-encoding: chunked\r\nx: x")),
    "h2path": request(b"POST", b"/v1/files HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: x"),
    "h2method": request(b"POST /v1/smuggled HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: x", b"/v1/files"),
    "h2name": request(*_POST, (b"transfer-encoding: chunked\r\nxz", b"x")),
    "h2colon": request(*_POST, (b"transfer-encoding: chunked", b"chunked")),
    "h2space": request(*_POST, (b"transfer-encoding chunked ", b"chunked")),
    "h2prefix": request(*_POST, (b":transfer-encoding", b"chunked")),
    "http2case": request(*_POST, (b"transfer-Encoding", b"chunked")),
    "vanilla": request(*_POST, (b"transfer-encoding", b"chunked")),
    # Targets and methods with a space, which the next hop's request line would be split at.
    "space in the path": request(b"GET", b"/v1/smuggled HTTP/1.1"),
    "tab in the path": request(b"GET", b"/v1/models\tHTTP/1.1"),
    "CR in the path": request(b"GET", b"/v1/models\rx: y"),
    "LF in the path": request(b"GET", b"/v1/models\nx: y"),
    "NUL in the path": request(b"GET", b"/v1/models\0"),
    "no ASCII in the path": request(b"GET", b"/v1/mod\xc3\xa9ls"),
    "space in the query": request(b"GET", b"/v1/models?a=b HTTP/1.1"),
    "space in the method": request(b"GET /v1/smuggled", b"/v1/models"),
    "no ASCII in the method": request(b"G\xc3\x8bT", b"/v1/models"),
    "empty method": request(b"", b"/v1/models"),
    "empty path": request(b"GET", b""),
    # RFC 9113, sections 8.1 to 8.3.
    "connection": request(*_POST, (b"connection", b"keep-alive")),
    "keep-alive": request(*_POST, (b"keep-alive", b"timeout=5")),
    "proxy-connection": request(*_POST, (b"proxy-connection", b"close")),
    "upgrade": request(*_POST, (b"upgrade", b"h2c")),
    "te other than trailers": request(*_POST, (b"te", b"chunked")),
    "two paths": request(b"GET", b"/v1/models", (b":path", b"/v1/smuggled")),
    "two paths together": [*request()[:4], (b":path", b"/v1/smuggled"), *request()[4:]],
    "two methods": [(b":method", b"POST"), *request()],
    "two authorities": [(b":authority", b"other.test"), *request()],
    "no method": request()[1:],
    "no scheme": [item for item in request() if item[0] != b":scheme"],
    "no path": [item for item in request() if item[0] != b":path"],
    "no authority and no host": [item for item in request() if item[0] != b":authority"],
    "a host that is not the authority": request(b"GET", b"/v1/models", (b"host", b"other.test")),
    "status in a request": [(b":status", b"200"), *request()],
    "unknown pseudo-header": [(b":protocol2", b"x"), *request()],
    "pseudo-header after a header": [(b"x-first", b"1"), *request()],
    "upper case name": request(b"GET", b"/v1/models", (b"X-Smuggled", b"1")),
    "empty name": request(b"GET", b"/v1/models", (b"", b"1")),
    "LF in a value": request(b"GET", b"/v1/models", (b"x-a", b"1\nx-smuggled: 1")),
    "CR in a value": request(b"GET", b"/v1/models", (b"x-a", b"1\rx-smuggled: 1")),
    "NUL in a value": request(b"GET", b"/v1/models", (b"x-a", b"1\0")),
    "space around a value": request(b"GET", b"/v1/models", (b"x-a", b" 1 ")),
    "two lengths": request(*_POST, (b"content-length", b"5"), (b"content-length", b"0")),
    "the same length twice": request(*_POST, (b"content-length", b"5"), (b"content-length", b"5")),
    "CL-plus": request(*_POST, (b"content-length", b"+5")),
    "CL-underscore": request(*_POST, (b"content-length", b"0_5")),
    "CL-commasuffix": request(*_POST, (b"content-length", b"5, 0")),
    # The body's own length is another.
    "h2CL": request(*_POST, (b"content-length", b"0")),
    "CL too short": request(*_POST, (b"content-length", b"4")),
    "CL too long": request(*_POST, (b"content-length", b"6")),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_a_malformed_request_over_http2_goes_nowhere(site: Site, case: str) -> None:
    before = len(site.upstream.calls)
    head = BAD_HEADS[case]
    body = b"hello" if (b":method", b"GET") not in head else None
    with H2(site.relay.url) as client:
        number = client.send(head, body)
        assert client.wait(number), "neither stream nor connection has ended"
        answer = client.answers[number]
        assert client.closed or answer.reset or answer.header(b":status") in (b"400", b"405")
    assert len(site.upstream.calls) == before
    with H2(site.relay.url) as client:
        number = client.send(request())
        client.wait(number)
        assert client.answers[number].header(b":status") == b"200"


ALONE = [
    *("space in the path", "no ASCII in the path", "space in the query", "space in the method"),
    *("no ASCII in the method", "the same length twice"),
]


@pytest.mark.parametrize("case", ALONE)
def test_a_malformed_request_that_the_relay_sees_ends_alone(site: Site, case: str) -> None:
    """Over one connection come the requests of a proxy's many clients."""
    head = BAD_HEADS[case]
    with H2(site.relay.url) as client:
        number = client.send(head, b"hello" if (b":method", b"GET") not in head else None)
        assert client.wait(number)
        answer = client.answers[number]
        assert answer.reset or answer.header(b":status") in (b"400", b"405")
        other = client.send(request())
        client.wait(other)
        assert client.answers[other].header(b":status") == b"200"


def test_a_request_over_http2_brings_nothing_of_its_framing_upstream(site: Site) -> None:
    before = len(site.upstream.calls)
    with H2(site.relay.url) as client:
        number = client.send(request(*_POST, (b"te", b"trailers"), (b"trailer", b"x-smuggled")), b"hello", end=False)
        client.h2.send_headers(number, [(b"x-smuggled", b"1")], end_stream=True)
        client.flush()
        client.wait(number)
        assert client.answers[number].header(b":status") == b"200"
    (call,) = site.upstream.calls[before:]
    assert (call.path, call.body) == ("/v1/files", b"hello")
    assert not {"te", "trailer", "x-smuggled"} & {name.lower() for name, _ in call.headers}
    assert call.header("host") == site.upstream.url.removeprefix("http://")
