"""Which headers cross the relay: one test per rule and per threat."""

from __future__ import annotations

import pytest

from relay.protocol.credentials import shown
from relay.protocol.headers import (
    MAX_KEPT_BYTES,
    Headers,
    of_answer,
    of_resume,
    of_stream,
    request_id,
    to_client,
    to_upstream,
    trace_id,
    value,
)

HOP_BY_HOP = [
    b"Connection",
    b"Keep-Alive",
    b"Proxy-Authenticate",
    b"Proxy-Authorization",
    b"Proxy-Connection",
    b"TE",
    b"Trailer",
    b"Transfer-Encoding",
    b"Upgrade",
]


def upstream(
    headers: Headers, *, api_key: str | None = None, identity: bool = False, length: int | None = None
) -> Headers:
    """All but the request id, which always goes along."""
    sent = to_upstream(headers, api_key=api_key, identity=identity, length=length, request_id="req_1")
    return [item for item in sent if item != (b"x-request-id", b"req_1")]


class TestRequestId:
    def test_the_relay_s_own_goes_upstream_where_the_client_sent_none(self) -> None:
        sent = to_upstream([(b"x-a", b"1")], api_key=None, identity=False, length=None, request_id="req_1")
        assert sent == [(b"x-a", b"1"), (b"x-request-id", b"req_1")]

    def test_the_client_s_goes_upstream_as_it_is(self) -> None:
        sent = to_upstream([(b"X-Request-Id", b"abc")], api_key=None, identity=False, length=None, request_id="abc")
        assert sent == [(b"x-request-id", b"abc")]

    @pytest.mark.parametrize("given", [b"", b"a b", b"a\tb", b"x" * 129, "\u00e9".encode()])
    def test_one_that_is_not_fit_for_a_log_line_is_none(self, given: bytes) -> None:
        assert request_id(given) is None
        assert request_id(b"req_Az.9-_:/") == "req_Az.9-_:/"

    def test_the_trace_id_is_that_of_traceparent(self) -> None:
        parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert trace_id(parent) == "4bf92f3577b34da6a3ce929d0e0e4736"
        assert trace_id(parent.upper()) is None
        assert trace_id(None) is None


class TestToUpstream:
    @pytest.mark.parametrize("name", HOP_BY_HOP)
    def test_hop_by_hop_headers_end_here(self, name: bytes) -> None:
        assert upstream([(name, b"x"), (b"x-kept", b"1")]) == [(b"x-kept", b"1")]

    @pytest.mark.parametrize("listed", [b"x-secret, keep-alive", b"Keep-Alive ,X-Secret", b"x-SECRET", b",x-secret,"])
    def test_so_do_those_that_connection_names(self, listed: bytes) -> None:
        headers = [(b"X-Secret", b"1"), (b"connection", listed), (b"x-kept", b"1")]
        assert upstream(headers) == [(b"x-kept", b"1")]

    def test_of_every_connection_header(self) -> None:
        headers = [(b"connection", b"x-a"), (b"x-a", b"1"), (b"Connection", b"x-b"), (b"x-b", b"1")]
        assert upstream(headers) == []

    @pytest.mark.parametrize("name", [b"Host", b"Last-Event-ID", b"Expect", b"Cookie"])
    def test_what_is_the_relays_business_alone(self, name: bytes) -> None:
        assert upstream([(name, b"x")]) == []

    def test_all_else_goes_through_in_order_and_lower_case(self) -> None:
        headers = [
            (b"Content-Type", b"application/json"),
            (b"anthropic-version", b"2023-06-01"),
            (b"anthropic-beta", b"a"),
            (b"anthropic-beta", b"b"),
            (b"OpenAI-Organization", b"org"),
            (b"X-Stainless-Retry-Count", b"0"),
            (b"idempotency-key", b"k"),
            (b"traceparent", b"00-1-2-01"),
            (b"user-agent", b"x/1"),
            (b"session-id", b"s"),
            (b"thread-id", b"t"),
            (b"originator", b"codex_exec"),
            (b"version", b"0.171.0"),
            (b"x-codex-turn-state", b"u"),
            (b"chatgpt-account-id", b"a"),
        ]
        assert upstream(headers) == [(name.lower(), v) for name, v in headers]

    def test_without_compression(self) -> None:
        headers = [(b"Accept-Encoding", b"gzip, br"), (b"accept-encoding", b"zstd")]
        assert upstream(headers, identity=True) == [(b"accept-encoding", b"identity")]
        assert len(upstream(headers)) == 2

    def test_the_length_is_that_of_the_body_that_goes_out(self) -> None:
        headers = [(b"Content-Length", b"10")]
        assert upstream(headers, length=12) == [(b"content-length", b"12")]
        assert upstream(headers) == [(b"content-length", b"10")]
        assert upstream([(b"transfer-encoding", b"chunked")], length=0) == [(b"content-length", b"0")]


class TestCredentialsUpstream:
    @pytest.mark.parametrize("name", [b"Authorization", b"X-Api-Key", b"Api-Key"])
    def test_the_clients_own_go_on_as_they_came(self, name: bytes) -> None:
        assert upstream([(name, b"Bearer sk-1")]) == [(name.lower(), b"Bearer sk-1")]

    def test_a_key_takes_the_place_of_a_bearer(self) -> None:
        assert upstream([(b"Authorization", b"Bearer client")], api_key="sk-1") == [(b"authorization", b"Bearer sk-1")]

    def test_a_key_takes_the_place_of_a_key(self) -> None:
        assert upstream([(b"X-API-Key", b"client")], api_key="sk-1") == [(b"x-api-key", b"sk-1")]

    def test_a_key_for_a_client_without_one(self) -> None:
        assert upstream([], api_key="sk-1") == [(b"authorization", b"Bearer sk-1")]
        version = (b"anthropic-version", b"2023-06-01")
        assert upstream([version], api_key="sk-1") == [version, (b"x-api-key", b"sk-1")]

    @pytest.mark.parametrize("version", [[], [(b"anthropic-version", b"2023-06-01")]])
    def test_none_of_the_clients_credentials_leaks_beside_it(self, version: Headers) -> None:
        headers = [(b"Authorization", b"Bearer client"), (b"x-api-key", b"client"), (b"API-Key", b"client")]
        sent = upstream([*headers, (b"authorization", b"Bearer client2"), *version], api_key="sk-1")
        assert not [v for _, v in sent if b"client" in v]
        assert [b"sk-1" in v for _, v in sent].count(True) == 1


class TestToClient:
    @pytest.mark.parametrize("name", HOP_BY_HOP)
    def test_hop_by_hop_headers_end_here(self, name: bytes) -> None:
        assert to_client([(name, b"x"), (b"x-kept", b"1")]) == [(b"x-kept", b"1")]

    def test_so_do_those_that_connection_names(self) -> None:
        assert to_client([(b"Connection", b"X-Hop"), (b"x-hop", b"1")]) == []

    @pytest.mark.parametrize("name", [b"Set-Cookie", b"Alt-Svc"])
    def test_what_binds_a_client_to_the_upstreams_own_host(self, name: bytes) -> None:
        assert to_client([(name, b"x")]) == []

    def test_all_else_comes_back(self) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"2"),
            (b"content-encoding", b"gzip"),
            (b"retry-after", b"7"),
            (b"x-request-id", b"req"),
            (b"x-should-retry", b"false"),
            (b"www-authenticate", b"Bearer"),
            (b"link", b"a"),
            (b"link", b"b"),
        ]
        assert to_client(headers) == headers


class TestOfStream:
    @pytest.mark.parametrize(
        "name",
        [
            b"X-Request-Id",
            b"request-id",
            b"x-ratelimit-remaining-tokens",
            b"X-RateLimit-Reset-Requests",
            b"anthropic-ratelimit-tokens-remaining",
            b"ratelimit",
            b"RateLimit-Policy",
            b"openai-organization",
            b"openai-processing-ms",
            b"openai-model",
            b"anthropic-organization-id",
            b"X-Codex-Turn-State",
            b"x-models-etag",
            b"x-codex-primary-used-percent",
            b"x-reasoning-included",
            b"x-should-retry",
            b"retry-after",
            b"cf-ray",
        ],
    )
    def test_what_tells_of_the_request_and_of_who_answers_it_is_kept_as_of_a_whole_answer(self, name: bytes) -> None:
        assert of_stream([(name, b"v")]) == to_client([(name, b"v")]) == [(name.lower(), b"v")]

    @pytest.mark.parametrize(
        "name",
        [
            *HOP_BY_HOP,
            b"Content-Type",
            b"Content-Length",
            b"Content-Encoding",
            b"Cache-Control",
            b"X-Accel-Buffering",
            b"Set-Cookie",
            b"Server",
            b"Date",
            b"Relay-Stream-Id",
            b"Relay-Resumable",
            b"Access-Control-Allow-Origin",
            b"Location",
            b"X-Forwarded-For",
            b"x-accel-redirect",
            b"x_codex_turn_state",
        ],
    )
    def test_the_rest_is_the_relays_own(self, name: bytes) -> None:
        assert of_stream([(name, b"v")]) == []

    def test_those_that_connection_names_end_here(self) -> None:
        assert of_stream([(b"connection", b"x-hop"), (b"x-hop", b"1"), (b"x-kept", b"2")]) == [(b"x-kept", b"2")]


class TestOfResume:
    def test_it_has_what_the_stream_has_but_for_what_was_true_at_that_moment(self) -> None:
        lasting = [(b"x-request-id", b"r"), (b"x-codex-turn-state", b"t"), (b"openai-model", b"m")]
        passing = [
            (b"x-ratelimit-remaining-tokens", b"1"),
            (b"anthropic-ratelimit-tokens-remaining", b"1"),
            (b"ratelimit", b"a"),
            (b"retry-after", b"7"),
            (b"openai-processing-ms", b"4"),
        ]
        assert of_answer(lasting + passing) == (lasting + passing, lasting)
        assert of_answer(passing, ["ratelimit"])[1] == [(b"ratelimit", b"a")]

    def test_of_too_many_bytes_the_largest_go_first(self) -> None:
        small = [(b"x-%d" % n, b"v") for n in range(100)]
        huge = [(b"x-huge", b"h" * MAX_KEPT_BYTES), (b"x-large", b"l" * (MAX_KEPT_BYTES // 2))]
        assert of_resume([huge[0], *small, huge[1]]) == [*small, huge[1]]
        assert of_resume([(b"x-%d" % n, b"v" * 4096) for n in range(9)])[0] == (b"x-6", b"v" * 4096)
        assert of_resume(small) == small


class TestCredential:
    @pytest.mark.parametrize(
        ("headers", "found"),
        [
            ([], b""),
            ([(b"Authorization", b"Bearer sk-1")], b"sk-1"),
            ([(b"authorization", b"bearer  sk-1 ")], b"sk-1"),
            ([(b"authorization", b"BEARER sk-1")], b"sk-1"),
            ([(b"authorization", b"Basic abc")], b"Basic abc"),
            ([(b"X-Api-Key", b" sk-1 ")], b"sk-1"),
            ([(b"api-key", b"sk-1")], b"sk-1"),
            ([(b"cookie", b"sk-1")], b""),
            ([(b"authorization", b"")], b""),
        ],
    )
    def test_whichever_header_it_came_in(self, headers: Headers, found: bytes) -> None:
        assert shown(headers) == found

    @pytest.mark.parametrize("empty", [b"", b"Bearer", b"Bearer ", b"bearer   "])
    def test_an_empty_bearer_beside_a_key_does_not_make_all_keys_one_owner(self, empty: bytes) -> None:
        owners = {shown([(b"authorization", empty), (b"x-api-key", key)]) for key in (b"alice", b"bob")}
        assert len(owners) == 2


def test_value() -> None:
    headers = [(b"X-A", b"1"), (b"x-b", b"2"), (b"x-a", b"3")]
    assert value(headers, b"x-a") == b"1, 3"
    assert value(headers, b"x-b") == b"2"
    assert value(headers, b"x-c") is None
    assert value([(b"x-a", b"")], b"x-a") == b""


class TestPatterns:
    """What `upstreams[].headers` names, both ways and on every kind of answer."""

    ALL = ("*",)

    @pytest.mark.parametrize("name", [b"session_id", b"conversation_id", b"x_turn", b"Thread_ID"])
    def test_names_with_an_underscore_cross_where_they_are_named(self, name: bytes) -> None:
        sent = to_upstream([(name, b"1")], api_key=None, identity=False, length=None, request_id="r", more=self.ALL)
        assert (name.lower(), b"1") in sent
        assert to_client([(name, b"1")], self.ALL) == of_stream([(name, b"1")], self.ALL) == [(name.lower(), b"1")]
        assert upstream([(name, b"1")]) == to_client([(name, b"1")]) == of_stream([(name, b"1")]) == []

    @pytest.mark.parametrize(
        "name",
        [
            b"x_api_key",
            b"api_key",
            b"content_length",
            b"transfer_encoding",
            b"x_forwarded_for",
            b"x_real_ip",
            b"x_http_method_override",
            b"last_event_id",
            b"proxy_authorization",
            b"set_cookie",
        ],
    )
    def test_but_none_that_would_be_read_as_a_credential_as_framing_or_as_a_proxy_s(self, name: bytes) -> None:
        sent = to_upstream([(name, b"1")], api_key=None, identity=False, length=None, request_id="r", more=self.ALL)
        assert sent == [(b"x-request-id", b"r")]
        assert to_client([(name, b"1")], self.ALL) == of_stream([(name, b"1")], self.ALL) == []

    def test_they_hold_for_streams_and_resumes(self) -> None:
        answer = [(b"X-Turn-State", b"a"), (b"gate-run-id", b"b"), (b"x-other", b"c"), (b"x-request-id", b"d")]
        named = [(b"x-turn-state", b"a"), (b"gate-run-id", b"b")]
        other = [(b"x-other", b"c"), (b"x-request-id", b"d")]
        assert of_answer(answer, ["x-turn-*", "gate-*"]) == ([*named, *other], [*named, *other])
        assert of_answer(answer, []) == ([named[0], *other], [named[0], *other])

    @pytest.mark.parametrize(
        "name",
        [
            b"content-type",
            b"Content-Length",
            b"content-encoding",
            b"transfer-encoding",
            b"cache-control",
            b"x-accel-buffering",
            b"x-accel-redirect",
            b"relay-stream-id",
            b"access-control-allow-origin",
            b"set-cookie",
            b"incremental",
            b"date",
        ],
    )
    def test_what_a_stream_says_of_itself_no_pattern_changes(self, name: bytes) -> None:
        assert of_stream([(name, b"v")], self.ALL) == []

    def test_a_value_that_ends_its_line_goes_no_further(self) -> None:
        assert of_stream([(b"x-a", b"1\r\nrelay-stream-id: st"), (b"x-b", b"2")], self.ALL) == [(b"x-b", b"2")]

    def test_a_request_for_a_stream_says_so_once(self) -> None:
        given = [(b"incremental", b"?0")]
        sent = to_upstream(given, api_key=None, identity=False, length=None, request_id="r", incremental=True)
        assert [v for name, v in sent if name == b"incremental"] == [b"?1"]
        assert upstream(given) == given


class TestCredentialsOfGateways:
    FURTHER = frozenset((b"x-gate-key", b"gate-auth"))

    @pytest.mark.parametrize("name", [b"X-Gate-Key", b"gate-auth"])
    def test_they_tell_tenants_apart_who_share_another_one(self, name: bytes) -> None:
        shared = (b"authorization", b"Bearer dummy")
        owners = [shown([shared, (name, tenant)], self.FURTHER) for tenant in (b"A", b"B", b"")]
        assert len(set(owners)) == 3
        assert owners[2] == b"dummy"

    def test_a_scheme_is_none_of_it(self) -> None:
        assert shown([(b"gate-auth", b"Bearer k")], self.FURTHER) == shown([(b"x-gate-key", b"k")], self.FURTHER)

    def test_others_count_only_where_they_are_listed(self) -> None:
        assert shown([(b"authorization", b"Bearer k"), (b"x-gate-vip", b"A")]) == b"k"
        assert shown([(b"authorization", b"Bearer k"), (b"x-gate-vip", b"A")], {b"x-gate-vip"}) == b"A\0k"


def words(text: str) -> list[str]:
    return text.split()


OBEYED = words(
    """
    x-accel-redirect x-accel-expires x-accel-limit-rate x-accel-charset x-sendfile x-sendfile2 x-sendfile-temporary
    x-lighttpd-send-file x-lighttpd-send-tempfile x-litespeed-location x-litespeed-cache-control x-litespeed-purge
    x-litespeed-tag x-lsadc-backend x-reproxy-url x-reproxy-file x-reproxy-expected-size x-reproxy-cache-for
    x-offload-to-sharedmem x-uwsgi-file x-appengine-blobkey x-middleware-rewrite x-middleware-next
    x-middleware-override-headers x-envoy-immediate-health-check-fail x-envoy-degraded x-envoy-overloaded
    x-envoy-upstream-alt-stat-name x-haproxy-server x-traefik-retry x-varnish x-varnish-ttl x-ban-url x-purge
    x-purge-tag x-cache-tags x-cache-control x-cache-ttl x-key xkey x-esi x-do-esi x-drupal-cache-tags x-magento-tags
    surrogate-control surrogate-key edge-control edge-cache-tag cache-tag cache-tags cdn-cache-control
    cloudflare-cdn-cache-control vercel-cdn-cache-control akamai-cache-control netlify-cache-tag fastly-no-shield
    x-fastly-ttl akamai-grn x-akamai-edgescape x-vercel-set-bypass-cookie x-netlify-vary x-now-route x-azure-ref
    arr-disable-session-affinity x-arr-ssl fly-replay x-internal-redirect x-redirect-to
    content-security-policy content-security-policy-report-only x-content-security-policy x-webkit-csp
    x_accel_redirect x_sendfile content_security_policy relay-stream-id
    """
)


class TestWhatProxiesObey:
    @pytest.mark.parametrize("name", OBEYED)
    def test_no_upstream_steers_the_proxy_in_front_whatever_a_pattern_takes(self, name: str) -> None:
        for more in ((), ("*",), (name,)):
            assert to_client([(name.encode(), b"/etc/passwd")], more) == []
            assert of_answer([(name.encode(), b"/etc/passwd")], more) == ([], [])

    @pytest.mark.parametrize(
        "name",
        words("""x-request-id x-ratelimit-limit-requests x-should-retry x-cache x-powered-by x-codex-turn-state
        openai-processing-ms anthropic-organization-id x-accel-buffering cache-control x-portkey-cache-status
        x-models-etag x-robots-tag x-content-type-options x-vercel-id"""),
    )
    def test_what_tells_the_client_something_comes_back(self, name: str) -> None:
        assert to_client([(name.encode(), b"1")]) == [(name.encode(), b"1")]


STEERING = words(
    """
    openai-organization openai-project openai-beta anthropic-beta x-portkey-custom-host x-portkey-provider
    x-portkey-config x-portkey-virtual-key x-goog-api-key x-goog-user-project x-api-version
    x-litellm-tags x-model x-upstream-url
    x-ms-client-principal x-amz-security-token cf-access-client-secret helicone-auth helicone-target-url origin
    x-anything chatgpt-account-id cf-aig-authorization x-middleware-subrequest x-auth-token x-custom-llm-provider
    """
)
GOING_ALONG = words(
    """
    accept accept-language content-type content-encoding user-agent traceparent tracestate baggage idempotency-key
    anthropic-version anthropic-dangerous-direct-browser-access x-request-id x-client-request-id
    x-stainless-retry-count x-stainless-timeout prefer priority range if-none-match session-id thread-id
    conversation-id turn-id originator version x-session-id
    x-session-affinity x-claude-code-session-id x-app x-codex-turn-state x-codex-turn-metadata
    x-title http-referer
    """
)


class TestBesideTheRelaysOwnKey:
    """Whoever asks is the relay's account to the upstream: what would steer that stays here."""

    @pytest.mark.parametrize("name", STEERING)
    def test_what_chooses_an_account_a_provider_or_a_feature_stays_here(self, name: str) -> None:
        given = [(name.encode(), b"theirs")]
        assert not [v for _, v in upstream(given, api_key="sk-1") if v == b"theirs"]

    @pytest.mark.parametrize("name", GOING_ALONG)
    def test_what_is_harmless_goes_along(self, name: str) -> None:
        assert (name.encode(), b"1") in upstream([(name.encode(), b"1")], api_key="sk-1")

    @pytest.mark.parametrize("name", ["anthropic-beta", "openai-organization", "x-portkey-provider", "helicone-id"])
    def test_what_the_upstream_s_headers_name_goes_along_too(self, name: str) -> None:
        for more in ([name], [f"{name[:7]}*"], ["*"]):
            sent = to_upstream(
                [(name.encode(), b"1")], api_key="sk-1", identity=False, length=None, request_id="r", more=more
            )
            assert (name.encode(), b"1") in sent

    @pytest.mark.parametrize("name", ["x-goog-api-key", "x-auth-token", "helicone-auth", "authorization", "x-api-key"])
    def test_a_credential_only_where_it_is_named_in_full_and_none_of_the_apis_own(self, name: str) -> None:
        given = [(name.encode(), b"theirs")]
        for more, goes in (
            (["*"], False),
            ([f"{name[:4]}*"], False),
            ([name], name not in ("authorization", "x-api-key")),
        ):
            sent = to_upstream(given, api_key="sk-1", identity=False, length=None, request_id="r", more=more)
            assert ((name.encode(), b"theirs") in sent) == goes
            assert len([v for _, v in sent if b"sk-1" in v]) == 1
