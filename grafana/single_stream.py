"""The dashboard for a question about one stream, one model or one tenant: which one was it, and is it alone.

Metrics hold no stream ids and no tenants: exemplars lead from a slow bucket to a stream's id, and the id to its log
line and to its own state.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.panels import (
    API,
    FOUND,
    GENERATION,
    GREEN,
    MISSED,
    OUTCOMES,
    PER_SECOND,
    RED,
    Ask,
    Panel,
    board,
    buckets,
    graph,
    quantile,
    rate,
    rows_of,
    words,
)

UID, TITLE = "relay-streams", "Relay / one stream, one model"

_FIND = """**With an id** (`st_…`, the `Relay-Stream-Id` header, or the part of an event's id before the dot)

```
curl -H "Authorization: Bearer $KEY" -H "Accept: application/json" $RELAY/streams/st_…
```

says how it stands: live or ended, outcome, events, tokens. `$KEY` is the credential that started it; every other \
one gets 404.

**In the logs**, whoever's it was: each stream writes one line `stream ended` where it ran, and one `stream resumed` \
for each return.

```
grep 'stream=st_…'             # log.format: text
jq 'select(.stream=="st_…")'   # log.format: json
```

**Without an id**: hover over a dot here. A dot is one stream in its bucket, and its `stream_id` is the id. \
(Prometheus needs `--enable-feature=exemplar-storage`, and a relay with `workers: 1`.)

**A tenant** is no label. Its lines in the log have the same `owner`.
"""


def dashboard() -> Dashboard:
    rows = [
        ("Which stream was it?", _which()),
        ("First token: who is slow?", _first_token()),
        ("After the first token", _after()),
        ("Failures", _failures()),
        ("Coming back", _resumes()),
        ("Tokens", _tokens()),
    ]
    text = "For a question about one stream, one model, one upstream or one tenant."
    return board(UID, TITLE, text, ("relay-on-call", "On call"), rows)


def _which() -> list[Panel]:
    return [
        words("How to find a stream", _FIND, width=8, height=12),
        buckets(
            "Time to first token",
            "Streams by bucket. Hover over a dot high up for the id of a slow stream, then look for it in the logs.",
            "relay_time_to_first_token_seconds",
            GENERATION,
            width=8,
        ),
        buckets(
            "Duration",
            "Streams by bucket, whatever their outcome. A band at one height is a time-out: compare it with "
            "streams.upstream_idle_timeout, streams.max_duration and those of proxies.",
            "relay_stream_duration_seconds",
            GENERATION,
            width=8,
        ),
    ]


def _first_token() -> list[Panel]:
    histogram = "relay_time_to_first_token_seconds"
    by = "api, upstream, model"
    columns = {
        "p50": Ask(quantile(0.5, histogram, GENERATION, by, "$__range")),
        "p95": Ask(quantile(0.95, histogram, GENERATION, by, "$__range")),
        "streams": Ask(f"round(sum by ({by}) (increase({histogram}_count{{{GENERATION}}}[$__range])))"),
    }
    return [
        _by("First token by api, p95", histogram, "api", "All apis rise together: the relay, its store or a network."),
        _by("First token by upstream, p95", histogram, "upstream", "One upstream alone: its trouble."),
        _by("First token by model, p95", histogram, "model", "One model alone: its queue or its prompts' length."),
        rows_of(
            "Slowest models",
            "Over the time shown. `model` is the pattern of the settings that matched, never a client's string.",
            columns,
            units={"p50": "s", "p95": "s", "streams": "short"},
            width=24,
            sort="p95",
        ),
    ]


def _after() -> list[Panel]:
    return [
        _by(
            "Between tokens by model, p95",
            "relay_inter_token_seconds",
            "model",
            "Stutter as it comes from the upstream. A model that stutters alone is overloaded or batches its output.",
        ),
        graph(
            "Duration by outcome, p95",
            "failed near a round number of seconds: a time-out. abandoned: how long the relay went on for nobody.",
            [Ask(quantile(0.95, "relay_stream_duration_seconds", GENERATION, "outcome"), "{{outcome}}", True)],
            unit="s",
            colors=OUTCOMES,
        ),
        graph(
            "Events of a stream, mean",
            "Events by streams that ended. Much fewer for one model: its answers are cut short, or it sends large "
            "chunks.",
            [
                Ask(
                    f"{rate('relay_events_total', GENERATION, 'model')} / "
                    f"({rate('relay_streams_total', GENERATION, 'model')} > 0)",
                    "{{model}}",
                )
            ],
            unit="short",
        ),
    ]


def _failures() -> list[Panel]:
    failed = f"increase(relay_mid_stream_failures_total{{{GENERATION}}}[$__range])"
    return [
        graph(
            "Failures by model",
            "Compare with Answers by upstream: if both rise, it is the provider.",
            [Ask(rate("relay_mid_stream_failures_total", GENERATION, "model"), "{{model}}")],
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "Refused answers by upstream",
            "5xx, 429 and calls without an answer, with non-streamed requests. Clients see them as they are.",
            [
                Ask(
                    rate(
                        "relay_upstream_responses_total",
                        f'{GENERATION}, status=~"[45]..|unreachable|disconnected|timeout|other"',
                        "upstream, status",
                    ),
                    "{{upstream}} {{status}}",
                )
            ],
            unit=PER_SECOND,
            stacked=True,
        ),
        rows_of(
            "Failures by cause and model",
            "Over the time shown. The causes are explained in relay/protocol/README.md under How a stream ends; each "
            "failed stream has a line `stream ended` at level warning in the log.",
            {"streams": Ask(f"round(sum by (upstream, model, cause) ({failed})) > 0")},
            units={"streams": "short"},
            width=8,
            sort="streams",
        ),
    ]


def _resumes() -> list[Panel]:
    return [
        graph(
            "Resumes by api",
            "Who comes back, and whether they find their stream. `other`: GET /streams/{id} with a bad id.",
            [
                Ask(rate("relay_resumes_total", f'{API}, result=~"{FOUND}"', "api"), "{{api}} found"),
                Ask(rate("relay_resumes_total", f'{API}, result=~"{MISSED}"', "api"), "{{api}} missed"),
            ],
            unit=PER_SECOND,
        ),
        graph(
            "Refused resumes by result",
            "stream_not_found for one api only: its client keeps ids across credentials. invalid_last_event_id: it "
            "sends ids that are not the relay's.",
            [Ask(rate("relay_resumes_total", f'{API}, result!~"{FOUND}"', "api, result"), "{{api}} {{result}}")],
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "Replayed events by api and model",
            "How much clients had missed when they came back. Large: long outages, or clients that always start over.",
            [Ask(rate("relay_replayed_events_total", GENERATION, "api, model"), "{{api}} {{model}}")],
            unit=PER_SECOND,
        ),
    ]


def _tokens() -> list[Panel]:
    total = f"round(sum by (upstream, model) (increase(relay_tokens_total{{{GENERATION}, kind=%s}}[$__range])))"
    return [
        graph(
            "Output tokens per second, by model",
            "By the upstream's own count, added when a stream ends.",
            [Ask(rate("relay_tokens_total", f'{GENERATION}, kind="output"', "model"), "{{model}}")],
            unit=PER_SECOND,
            stacked=True,
        ),
        rows_of(
            "Tokens by model",
            "Over the time shown. Streams whose upstream tells no usage are missing here.",
            {"input": Ask(total % '"input"'), "output": Ask(total % '"output"')},
            units={"input": "short", "output": "short"},
            width=8,
            sort="output",
        ),
        graph(
            "Streams that nobody waited for",
            "Stopped by their client, or abandoned: tokens that were paid for and not read to the end.",
            [
                Ask(
                    rate("relay_streams_total", f'{GENERATION}, outcome=~"stopped|abandoned"', "model, outcome"),
                    "{{model}} {{outcome}}",
                )
            ],
            unit=PER_SECOND,
            stacked=True,
        ),
    ]


def _by(title: str, histogram: str, label: str, description: str) -> Panel:
    first = histogram == "relay_time_to_first_token_seconds"  # it alone has exemplars, and an alert
    ask = Ask(quantile(0.95, histogram, GENERATION, label), f"{{{{{label}}}}}", exemplar=first)
    return graph(title, description, [ask], unit="s", steps=[(None, GREEN), (10, RED)] if first else ())
