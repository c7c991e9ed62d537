"""Transports that make a stock SDK come back to a stream of the relay after a cut.

    from openai import OpenAI
    import httpx2
    from relay.client.httpx2 import ResumingTransport

    client = OpenAI(base_url="http://relay:8080/v1", http_client=httpx2.Client(transport=ResumingTransport()))

`relay.client.httpx` is the same for `httpx` (openai before 3, anthropic before 2). Promises:

* The SDK sees one seamless stream: every event once, whole, byte for byte, in order, up to the end of its API; or
  `ResumeFailed`, an error of its own HTTP library, never a silent end.
* Nothing is generated twice because of a cut: a stream is asked for by its last id. A POST that died before its answer
  began is repeated only under an `Idempotency-Key`, which is sent only to an address that has proved to be a relay's.
* Anything else goes through untouched: other requests, servers that are no relay, streams without a log, refusals.

An SDK's own retry is a new request, so it has a new key and may start a new generation; `streams.attach_retries` makes
the relay join those too.

| module | what |
|---|---|
| `events` | bytes to whole events; which one is the last of its API |
| `policy` | when to try again, and for how long |
| `resumption` | one stream's state: position, cuts, answers; no I/O |
| `planning` | which requests are covered, and what is added to them |
| `blocking`, `awaiting` | the state machine on a transport's I/O, written once for both libraries |
| `httpx`, `httpx2` | the transports of each library |

Only the standard library and one of the two HTTP libraries may be imported here, and of the relay only
`relay.protocol.ids` (tests/client/test_imports.py).
"""
