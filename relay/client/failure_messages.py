"""What a failure tells its reader: what has happened, and what to do."""

from __future__ import annotations

from relay.client.policy import Bound

_NEW_ANSWER = "Send the request again for a new answer."

ADVICE = {
    "stream_not_found": "The relay does not have this stream for this credential. Check that all replicas behind the "
    f"address share one store. {_NEW_ANSWER}",
    "stream_expired": f"The relay no longer keeps this stream. {_NEW_ANSWER}",
    "position_unknown": f"The relay's log has lost what followed. {_NEW_ANSWER}",
    "response_id_ambiguous": "The upstream has given this response id to more than one answer. Read yours by "
    f"GET /streams/{{id}} with the Relay-Stream-Id of its request. {_NEW_ANSWER}",
    "resume_not_supported": f"This stream was relayed without a log. {_NEW_ANSWER}",
    "invalid_api_key": "The credential is no longer accepted. Renew it, or give the transport `headers` that are "
    f"made anew for each request. {_NEW_ANSWER}",
}
ADVICE_WITHOUT_CODE = f"Check what stands between this client and the relay. {_NEW_ANSWER}"
WRONG_STREAM = (
    "Something that is not this stream has answered a resume. Let POST requests with their Last-Event-ID header, and "
    "answers with their Relay-Stream-Id header, pass between this client and the relay unchanged."
)
DIFFERENT_AFTER_RESUME = (
    f"What came without an id is told otherwise than before, so it cannot be known what is missing. {_NEW_ANSWER}"
)
WITHOUT_IDS = f"The stream went on without ids, so nobody can come back to it, and it ended too soon. {_NEW_ANSWER}"
EVENT_TOO_LARGE = (
    "An event is larger than {} bytes. Raise max_event_bytes of the transport's policy where such events are meant."
)

_READ_ON = "The generation may go on: send the request with Last-Event-ID {last_event_id} to read on, or raise "
BUDGET_EXHAUSTED: dict[Bound, str] = {
    "max_attempts": "Gave up after {attempts} attempts in {elapsed:.1f} s{why}. "
    + _READ_ON
    + "max_attempts of the transport's policy.",
    "max_elapsed": "Gave up after {attempts} attempts in {elapsed:.1f} s, because the next one would come later than "
    "max_elapsed ({bound:g} s) allows{why}. " + _READ_ON + "max_elapsed of the transport's policy.",
    "deadline": "Gave up after {attempts} attempts in {elapsed:.1f} s, because the deadline of the whole stream "
    "({bound:g} s) has come{why}. " + _READ_ON + "deadline of the transport's policy.",
}
