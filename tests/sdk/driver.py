"""Runs the official Python SDKs, unmodified, in streaming mode and prints what a user of them would see.

    python driver.py BASE_URL '[["chat", "model-name", "raw"], …]'

A job is an API (chat, messages, responses), a model and a mode: "raw" iterates `create(stream=True)`,
"helper" the SDK's own accumulating stream, "get" asks for the path that stands in the model's place. A fourth part may
hold `key`, `retries`, `headers` and `body` of the request, `stop_after` so many events by a DELETE of the stream, and
`once`, a file that is to be there before it begins. All jobs run at once, each in a thread; the output is one JSON
list of transcripts in the jobs' order. Nothing of the relay may be imported here: this file runs with one SDK
generation on its path and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import anthropic
import openai

BASE_URL = sys.argv[1]
PROMPT = [{"role": "user", "content": "Say hello."}]
TELLING_HEADERS = ("x-request-id", "request-id", "retry-after", "www-authenticate")
TELLING_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")

Transcript = dict[str, Any]


def main() -> None:
    jobs = json.loads(sys.argv[2])
    for make_client in (openai_client, anthropic_client):
        make_client()  # before the threads race for it
    with ThreadPoolExecutor(len(jobs)) as pool:
        transcripts = list(pool.map(lambda job: run(*job), jobs))
    json.dump(transcripts, sys.stdout)


def run(api: str, model: str, mode: str, options: dict[str, Any] | None = None) -> Transcript:
    seen: Transcript = {"events": [], "headers": {}, "final": None, "error": None}
    options = options or {}
    while "once" in options and not Path(options["once"]).exists():
        time.sleep(0.02)
    try:
        RUNNERS[api, mode](model, seen, options)
    except Exception as error:
        seen["error"] = describe(error)
    return {**seen, **ASSEMBLERS[api](seen["events"])} if mode == "raw" else seen


def describe(error: Exception) -> Transcript:
    response = getattr(error, "response", None)
    return {
        "class": type(error).__name__,
        "message": str(error),
        "headers": telling(response.headers) if response is not None else {},
        **{name: getattr(error, name, None) for name in ("status_code", "code", "type", "param", "body", "request_id")},
    }


def telling(headers: Any) -> dict[str, str]:
    found = {name.lower(): value for name, value in headers.items()}
    return {k: v for k, v in found.items() if k in TELLING_HEADERS or k.startswith(TELLING_PREFIXES)}


def dump(thing: Any) -> Any:
    return thing.model_dump(mode="json", exclude_unset=True, warnings=False) if thing is not None else None


def collect(stream: Any, seen: Transcript) -> None:
    for event in stream:
        seen["events"].append(dump(event))


def collect_raw(stream: Any, seen: Transcript, options: dict[str, Any]) -> None:
    seen["headers"] = telling(stream.response.headers)
    for event in stream:
        seen["events"].append(dump(event))
        if len(seen["events"]) == options.get("stop_after"):
            stop(stream.response.headers["relay-stream-id"], options["headers"])


def stop(name: str, headers: dict[str, str]) -> None:
    url = f"{BASE_URL}/streams/{name}"
    urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="DELETE")).close()


@cache
def openai_client(key: str = "sk-test", retries: int = 0) -> Any:
    return openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=key, max_retries=retries, timeout=30)


@cache
def anthropic_client(key: str = "sk-ant-test", retries: int = 0) -> Any:
    return anthropic.Anthropic(base_url=BASE_URL, api_key=key, max_retries=retries, timeout=30)


# One function for each API and mode. The clients are shared: making one costs 100 ms of certificate parsing.


def client_of(make: Callable[..., Any], options: dict[str, Any]) -> Any:
    return make(**{name: options[name] for name in ("key", "retries") if name in options})


def more_of(options: dict[str, Any]) -> dict[str, Any]:
    return {f"extra_{name}": options[name] for name in ("headers", "body") if name in options}


def chat_raw(model: str, seen: Transcript, options: dict[str, Any]) -> None:
    create = client_of(openai_client, options).chat.completions.create
    usage = {"include_usage": True}
    stream = create(model=model, messages=PROMPT, stream=True, stream_options=usage, **more_of(options))
    collect_raw(stream, seen, options)


def chat_helper(model: str, seen: Transcript, options: dict[str, Any]) -> None:
    with openai_client().chat.completions.stream(model=model, messages=PROMPT) as stream:
        collect(stream, seen)
        seen["final"] = dump(stream.get_final_completion())


def responses_raw(model: str, seen: Transcript, options: dict[str, Any]) -> None:
    create = client_of(openai_client, options).responses.create
    collect_raw(create(model=model, input="Say hello.", stream=True, **more_of(options)), seen, options)


def responses_helper(model: str, seen: Transcript, options: dict[str, Any]) -> None:
    with openai_client().responses.stream(model=model, input="Say hello.") as stream:
        collect(stream, seen)
        seen["final"] = dump(stream.get_final_response())


def messages_raw(model: str, seen: Transcript, options: dict[str, Any]) -> None:
    create = client_of(anthropic_client, options).messages.create
    collect_raw(create(model=model, messages=PROMPT, max_tokens=64, stream=True, **more_of(options)), seen, options)


def messages_helper(model: str, seen: Transcript, options: dict[str, Any]) -> None:
    with anthropic_client().messages.stream(model=model, messages=PROMPT, max_tokens=64) as stream:
        collect(stream, seen)
        seen["final"] = dump(stream.get_final_message())


def get_from(make: Callable[..., Any], prefix: str) -> Callable[[str, Transcript, dict[str, Any]], None]:
    def get(path: str, seen: Transcript, options: dict[str, Any]) -> None:
        answer = client_of(make, options).get(prefix + path, cast_to=object, options={"headers": options["headers"]})
        seen["final"] = answer

    return get


# What a user makes of the raw events.


def assemble_chat(events: Iterable[Any]) -> Transcript:
    text, reasoning, usage = "", "", None
    tools: dict[int, dict[str, str]] = {}
    for event in events:
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            reasoning += "".join(detail.get("text") or "" for detail in delta.get("reasoning_details") or [])
            for call in delta.get("tool_calls") or []:
                tool = tools.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                function = call.get("function") or {}
                tool["id"] += call.get("id") or ""
                tool["name"] += function.get("name") or ""
                tool["arguments"] += function.get("arguments") or ""
    return {"text": text, "tools": list(tools.values()), "reasoning": reasoning, "usage": usage}


def assemble_messages(events: Iterable[Any]) -> Transcript:
    text, reasoning = "", ""
    usage: dict[str, Any] = {}
    tools: dict[int, dict[str, str]] = {}
    for event in events:
        usage |= event.get("usage") or (event.get("message") or {}).get("usage") or {}
        block, delta = event.get("content_block") or {}, event.get("delta") or {}
        if block.get("type") == "tool_use":
            tools[event["index"]] = {"id": block["id"], "name": block["name"], "arguments": ""}
        if delta.get("type") == "input_json_delta":
            tools[event["index"]]["arguments"] += delta["partial_json"]
        text += delta.get("text") or ""
        reasoning += delta.get("thinking") or ""
    return {"text": text, "tools": list(tools.values()), "reasoning": reasoning, "usage": usage or None}


def assemble_responses(events: Iterable[Any]) -> Transcript:
    text, reasoning, usage = "", "", None
    tools: dict[int, dict[str, str]] = {}
    for event in events:
        usage = (event.get("response") or {}).get("usage") or usage
        item = event.get("item") or {}
        match event["type"]:
            case "response.output_text.delta":
                text += event["delta"]
            case "response.reasoning_summary_text.delta":
                reasoning += event["delta"]
            case "response.output_item.added" if item.get("type") == "function_call":
                tools[event["output_index"]] = {"id": item["call_id"], "name": item["name"], "arguments": ""}
            case "response.function_call_arguments.delta":
                tools[event["output_index"]]["arguments"] += event["delta"]
    return {"text": text, "tools": list(tools.values()), "reasoning": reasoning, "usage": usage}


RUNNERS: dict[tuple[str, str], Callable[[str, Transcript, dict[str, Any]], None]] = {
    ("chat", "raw"): chat_raw,
    ("chat", "helper"): chat_helper,
    ("chat", "get"): get_from(openai_client, ""),
    ("messages", "raw"): messages_raw,
    ("messages", "helper"): messages_helper,
    ("messages", "get"): get_from(anthropic_client, "/v1"),
    ("responses", "raw"): responses_raw,
    ("responses", "helper"): responses_helper,
    ("responses", "get"): get_from(openai_client, ""),
}
ASSEMBLERS: dict[str, Callable[[Iterable[Any]], Transcript]] = {
    "chat": assemble_chat,
    "messages": assemble_messages,
    "responses": assemble_responses,
}

if __name__ == "__main__":
    main()
