"""The dashboard of the person on call: is anyone hurt, by what, and whose part is it.

Rows stand in the order of those questions. Thresholds are those of deploy/prometheus/alerts.rules.yaml, so that a
red number here and an alert there mean the same.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.panels import (
    API,
    BLUE,
    FOUND,
    GENERATION,
    GREEN,
    GREY,
    MISSED,
    OUTCOMES,
    PER_SECOND,
    PURPLE,
    RED,
    REPLICA,
    RESULTS,
    YELLOW,
    Ask,
    Panel,
    board,
    graph,
    number,
    percentiles,
    quantile,
    rate,
    rows_of,
    share,
)

UID, TITLE = "relay-on-call", "Relay / on call"
REFUSED = "5..|429|unreachable|disconnected|timeout"
OF_RELAYS = f"and on (job, instance) relay_build_info{{{REPLICA}}}"
EACH = "{{pod}} {{instance}}"


def dashboard() -> Dashboard:
    rows = [
        ("Is anyone hurt?", _hurt()),
        ("What do clients get?", _traffic()),
        ("How fast is it?", _speed()),
        ("Is it the upstream?", _upstreams()),
        ("Do clients that come back find their stream?", _resumes()),
        ("Is it the store?", _store()),
        ("Is it a replica?", _replicas()),
        ("Tokens", _tokens()),
    ]
    text = "For the person on call. What each alert means and what to do is in deploy/prometheus/RUNBOOK.md."
    return board(UID, TITLE, text, ("relay-streams", "One stream, one model"), rows)


def _hurt() -> list[Panel]:
    ended = rate("relay_streams_total", f'{GENERATION}, outcome=~"completed|failed"')
    failed = rate("relay_streams_total", f'{GENERATION}, outcome="failed"')
    missed = rate("relay_resumes_total", f'{API}, result=~"{MISSED}"')
    resumes = rate("relay_resumes_total", f'{API}, result=~"{FOUND}|{MISSED}"')
    refused = rate("relay_upstream_responses_total", f'{GENERATION}, status=~"{REFUSED}"')
    answers = rate("relay_upstream_responses_total", GENERATION)
    memory = f"relay_store_memory_used_bytes{{{REPLICA}}} / (relay_store_memory_limit_bytes{{{REPLICA}}} > 0)"
    return [
        number(
            "Streams that fail",
            "Of the streams that came to an end by themselves, how many ended with an error. Clients that left "
            "(abandoned, stopped) are not counted. Red: look at Failures by cause.",
            share(failed, ended),
            unit="percentunit",
            steps=[(None, GREEN), (0.01, YELLOW), (0.05, RED)],
            decimals=1,
        ),
        number(
            "First token, p95",
            "From the last byte of a request to its first token. Red: from 10 s on the relay answers before the "
            "upstream does (streams.patience). Look at First token by upstream.",
            quantile(0.95, "relay_time_to_first_token_seconds", GENERATION),
            unit="s",
            steps=[(None, GREEN), (5, YELLOW), (10, RED)],
        ),
        number(
            "Resumes that miss",
            "Of the clients that came back, how many did not get their stream. Red: look at Resumes by result.",
            share(missed, resumes),
            unit="percentunit",
            steps=[(None, GREEN), (0.02, YELLOW), (0.1, RED)],
            decimals=1,
        ),
        number(
            "Upstream refusals",
            "Answers of upstreams with 5xx or 429, and calls that got no answer. Red: look at Answers of upstreams; "
            "the relay only passes them on.",
            share(refused, answers),
            unit="percentunit",
            steps=[(None, GREEN), (0.05, YELLOW), (0.2, RED)],
            decimals=1,
        ),
        number(
            "Store",
            "Down: some replica cannot reach its store. Streams in flight go on, and meanwhile can be resumed on their "
            "own replica only. Look at the store's own health first.",
            f"min(relay_store_up{{{REPLICA}}})",
            unit="short",
            steps=[(None, RED), (1, GREEN)],
            words={"0": "Down", "1": "Up"},
        ),
        number(
            "Store memory",
            "The fullest server of the store, of what it may use. Red: a store that is full takes no events; raise "
            "its maxmemory or lower streams.retention.",
            f"max({memory})",
            unit="percentunit",
            steps=[(None, GREEN), (0.7, YELLOW), (0.85, RED)],
            decimals=0,
        ),
        number(
            "Replicas",
            "Relay processes that answer scrapes. None: the relay is down, or Prometheus has lost it.",
            f"count(relay_build_info{{{REPLICA}}})",
            unit="short",
            steps=[(None, RED), (1, GREEN)],
        ),
        number(
            "Draining",
            "Replicas that were told to stop and wait for their streams. Normal during a deployment; it should end "
            "within drain.timeout.",
            f"sum(relay_draining{{{REPLICA}}})",
            unit="short",
            steps=[(None, GREEN), (1, YELLOW)],
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        graph(
            "Streams in flight and readers",
            "Generations that run now, and connections that read one. Readers well below streams: clients are gone "
            "and the relay pays for tokens until streams.abandon_after.",
            [
                Ask(f"sum(relay_streams_active{{{GENERATION}}})", "streams"),
                Ask(f"sum(relay_readers_active{{{GENERATION}}})", "readers"),
            ],
            unit="short",
            colors={"streams": BLUE, "readers": PURPLE},
        ),
        graph(
            "Ended streams by outcome",
            "Completed, stopped (DELETE) and abandoned (nobody read for streams.abandon_after) are no failures.",
            [Ask(rate("relay_streams_total", GENERATION, "outcome"), "{{outcome}}")],
            unit=PER_SECOND,
            stacked=True,
            colors=OUTCOMES,
        ),
        graph(
            "Failures by cause",
            "upstream_*: ask the provider. store_lost: the store. producer_lost: a replica died or hung; see Is it a "
            "replica? shutdown: drain.timeout is shorter than streams take. *_too_large, max_duration: a limit.",
            [Ask(rate("relay_mid_stream_failures_total", GENERATION, "cause"), "{{cause}}")],
            unit=PER_SECOND,
            stacked=True,
        ),
    ]


def _speed() -> list[Panel]:
    return [
        graph(
            "First token",
            "What a user waits for. If p50 rises, the upstream or the relay is slow for all; if only p99 does, look "
            "at one model in the other dashboard. A dot is one stream: its label is the stream's id.",
            percentiles("relay_time_to_first_token_seconds", GENERATION, exemplar=True),
            unit="s",
            steps=[(None, GREEN), (10, RED)],
        ),
        graph(
            "Between tokens",
            "How evenly text flows, as it comes from the upstream. If it is high here, the upstream stutters. If "
            "users complain and it is low, look at Append and at what stands between the relay and them.",
            percentiles("relay_inter_token_seconds", GENERATION),
            unit="s",
        ),
        graph(
            "Duration of completed streams",
            "A rise with steady token rates means longer answers. Compare p99 with drain.timeout and with the "
            "time-outs of proxies in front.",
            percentiles("relay_stream_duration_seconds", f'{GENERATION}, outcome="completed"'),
            unit="s",
        ),
    ]


def _upstreams() -> list[Panel]:
    return [
        graph(
            "Answers of upstreams",
            "By HTTP status, or unreachable, disconnected or timeout. 401: a key. 429: a quota; ask for more or route "
            "elsewhere. 5xx: the provider's status page.",
            [Ask(rate("relay_upstream_responses_total", GENERATION, "status"), "{{status}}")],
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "First token by upstream, p95",
            "One line that rises alone is that upstream's trouble: move its models to another one.",
            [Ask(quantile(0.95, "relay_time_to_first_token_seconds", GENERATION, "upstream"), "{{upstream}}")],
            unit="s",
            steps=[(None, GREEN), (10, RED)],
        ),
        graph(
            "Refusals of the relay itself",
            "By code, refused resumes among them. too_many_streams: raise limits or add replicas. draining: normal "
            "in a deployment. invalid_*, missing_model: a client is wrong. store_unavailable: see the store.",
            [Ask(rate("relay_refusals_total", API, "code"), "{{code}}")],
            unit=PER_SECOND,
            stacked=True,
        ),
    ]


def _resumes() -> list[Panel]:
    return [
        graph(
            "Resumes by result",
            "live, replay, complete, joined: found. stream_expired: clients come back later than streams.retention. "
            "stream_not_found: another store, another credential, or ids that were made up. position_unknown: the "
            "store lost entries. store_behind: the store is back, and does not hold yet what was shown meanwhile. A "
            "jump of live after a deployment is what the relay is for.",
            [Ask(rate("relay_resumes_total", API, "result"), "{{result}}")],
            unit=PER_SECOND,
            stacked=True,
            colors=RESULTS,
        ),
        graph(
            "Replayed events and heartbeats",
            "Replayed: what clients had missed when they came back. Heartbeats: signs of life on silent streams; "
            "many of them mean that upstreams think for long, or hang.",
            [
                Ask(rate("relay_replayed_events_total", GENERATION), "replayed events"),
                Ask(rate("relay_heartbeats_total", GENERATION), "heartbeats"),
            ],
            unit=PER_SECOND,
        ),
        graph(
            "Abandoned generations and degraded streams",
            "Abandoned: nobody came back and the upstream call was cancelled. Degraded: streams that began without a "
            "log because the store was away, and cannot be resumed; any of these is the store's trouble. Malformed: "
            "events that an upstream sent out of its API's format. Upstream resumed, lost: answers that broke off "
            "where the upstream can go on; continued: by another call, which is billed. Webhook: attempts to tell of "
            "a detached generation's end.",
            [
                Ask(rate("relay_streams_total", f'{GENERATION}, outcome="abandoned"'), "abandoned"),
                Ask(rate("relay_streams_degraded_total", GENERATION), "degraded"),
                Ask(rate("relay_malformed_events_total", GENERATION), "malformed events"),
                Ask(rate("relay_upstream_resumes_total", GENERATION, "result"), "upstream {{result}}"),
                Ask(rate("relay_webhooks_total", REPLICA, "result"), "webhook {{result}}"),
            ],
            unit=PER_SECOND,
            colors={"abandoned": GREY, "degraded": RED},
        ),
    ]


def _store() -> list[Panel]:
    return [
        graph(
            "Append",
            "One flush of events to the store; a client sees an event after it. From 100 ms on, text visibly "
            "stutters: look at the store's CPU, its disk (appendfsync) and the network.",
            percentiles("relay_append_seconds", REPLICA),
            unit="s",
            steps=[(None, GREEN), (0.1, RED)],
        ),
        graph(
            "Events in one flush",
            "All that arrives during a flush goes out with the next one. A rise means load or a slower store, and is "
            "how the relay keeps up; it is no fault by itself.",
            percentiles("relay_append_batch_events", REPLICA),
            unit="short",
        ),
        graph(
            "Events written, flushes not taken",
            "Events that clients may see, and flushes that the store refused or did not answer. Any of the latter: "
            "see the store's log (full, read-only, failing over).",
            [
                Ask(rate("relay_events_total", GENERATION), "events"),
                Ask(rate("relay_append_failures_total", REPLICA), "flushes not taken"),
            ],
            unit=PER_SECOND,
            colors={"events": GREEN, "flushes not taken": RED},
        ),
        graph(
            "Store reached, by replica",
            "1 while every server of the store answers. One line at 0: that replica's network. All at 0: the store.",
            [Ask(f"min by (pod, instance) (relay_store_up{{{REPLICA}}})", EACH)],
            unit="short",
            width=12,
            bounds=(0, 1),
        ),
        graph(
            "Memory of the store",
            "The fullest server. It holds streams.retention of finished streams: if it grows with steady traffic, "
            "retention is long or eviction is off and keys of others are there.",
            [
                Ask(f"max(relay_store_memory_used_bytes{{{REPLICA}}})", "used"),
                Ask(f"max(relay_store_memory_limit_bytes{{{REPLICA}}})", "limit"),
            ],
            unit="bytes",
            width=12,
            colors={"used": BLUE, "limit": RED},
        ),
    ]


def _replicas() -> list[Panel]:
    return [
        graph(
            "Streams by replica",
            "Should be even. A replica that has none is draining or unready; one that has all sits behind a "
            "load balancer that does not balance.",
            [Ask(f"sum by (pod, instance) (relay_streams_active{{{GENERATION}}})", EACH)],
            unit="short",
        ),
        graph(
            "CPU by replica",
            "One process uses one core at most. From 0.8 on, first tokens and gaps suffer: add replicas or workers. "
            "Replicas with several workers do not report it.",
            [
                Ask(
                    f"sum by (pod, instance) (rate(process_cpu_seconds_total[$__rate_interval]) {OF_RELAYS})",
                    EACH,
                )
            ],
            unit="short",
            steps=[(None, GREEN), (0.8, RED)],
        ),
        graph(
            "Memory by replica",
            "Grows with streams in flight and slow readers. If it grows without them, restart one replica and "
            "report it. Replicas with several workers do not report it.",
            [Ask(f"sum by (pod, instance) (process_resident_memory_bytes {OF_RELAYS})", EACH)],
            unit="bytes",
        ),
        graph(
            "Draining by replica",
            "1 from SIGTERM on. A line that stays longer than drain.timeout: a replica that does not end.",
            [Ask(f"max by (pod, instance) (relay_draining{{{REPLICA}}})", EACH)],
            unit="short",
            bounds=(0, 1),
        ),
        rows_of(
            "What runs",
            "More than one version outside a deployment: a roll-out has stopped half-way.",
            {"replicas": Ask(f"count by (version, python) (relay_build_info{{{REPLICA}}})")},
            units={"replicas": "short"},
            width=16,
            sort="replicas",
        ),
    ]


def _tokens() -> list[Panel]:
    return [
        graph(
            "Tokens per second, by kind",
            "By the upstream's own count, added when a stream ends. Nothing for chat streams: set the upstream's "
            "usage to observe.",
            [Ask(rate("relay_tokens_total", GENERATION, "kind"), "{{kind}}")],
            unit=PER_SECOND,
            width=12,
        ),
        graph(
            "Output tokens per second, by model",
            "Which model the load, and the bill, comes from.",
            [Ask(rate("relay_tokens_total", f'{GENERATION}, kind="output"', "model"), "{{model}}")],
            unit=PER_SECOND,
            width=12,
            stacked=True,
        ),
    ]
