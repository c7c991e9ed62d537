"""What a user of the OpenAI SDK sees of a failure: python run_failing.py '{"url": …, "timeout": …, "attempts": …}'

Prints as JSON the types of the error that was raised, how long it took, and what `failure_of` finds in it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai

from relay.client.policy import Policy

try:
    import httpx2 as http

    from relay.client.httpx2 import ResumingTransport, failure_of
except ModuleNotFoundError:
    import httpx as http

    from relay.client.httpx import ResumingTransport, failure_of


def main() -> None:
    argument = json.loads(sys.argv[1])
    policy = Policy(assume_relay=True, max_attempts=argument["attempts"], first_delay=0.05, silence=5)
    client = openai.OpenAI(
        base_url=argument["url"] + "/v1",
        api_key="sk-test",
        timeout=argument["timeout"],
        http_client=http.Client(transport=ResumingTransport(policy=policy)),
    )
    messages: Any = [{"role": "user", "content": "Say hello."}]
    seen: dict[str, Any] = {"error": [], "found": None}
    begun = time.monotonic()
    try:
        for _ in client.chat.completions.create(model="m", messages=messages, stream=True):
            pass
    except Exception as error:
        seen["error"] = [kind.__name__ for kind in type(error).__mro__]
        failure = failure_of(error)
        if failure is not None:
            seen["found"] = [failure.reason, failure.last_event_id, error.__cause__ is failure or error is failure]
    seen["took"] = time.monotonic() - begun
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
