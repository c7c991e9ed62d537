"""Transports that make a stock SDK come back to a stream of the relay after a cut.

    from openai import OpenAI
    import httpx2
    from relay.client.httpx2 import ResumingTransport

    client = OpenAI(base_url="http://relay:8080/v1", http_client=httpx2.Client(transport=ResumingTransport()))

`relay.client.httpx` is the same for `httpx` (openai before 3, anthropic before 2). Promises:

* The SDK sees one seamless stream: every event once, whole, byte for byte, in order, up to the end of its API; or
  `ResumeFailed`, an error of its own HTTP library, never a silent end.
* Nothing is generated twice because of a cut: a stream is asked for by its last id. A POST that died before its answer
  began is repeated only under an `Idempotency-Key`, which is sent only to an address that has proved to be a relay's,
  and an SDK's own retry of it has the same key and the rest of the same tries.
* Everything is bounded: tries, the time of an outage, what is read of a refusal, one unfinished event.
* Anything else goes through untouched: other requests, servers that are no relay, streams without a log, refusals.

README.md beside this file has the details.

| module | what |
|---|---|
| `events`, `decoding` | bytes to whole events; which one is the last of its API; what was compressed on the way |
| `policy` | when to try again, and for how long; counters |
| `resumable_stream`, `failure_messages` | one stream's state: position, cuts, answers; no I/O; what its failures say |
| `request_plan` | which requests are covered, and what is added to them |
| `cancellation`, `credentials` | waits and attempts that a close ends at once; credentials made anew |
| `async_transport` | the state machine on a transport's I/O, for both libraries; `sync_transport` is written from it |
| `httpx` | the transports; `httpx2` is written from it |

Only the standard library and one of the two HTTP libraries may be imported here, and of the relay only
`relay.protocol.ids` (tests/client/test_imports.py).
"""
