"""What a request names beside its text: models, and what is kept at the upstream.

With keys of the relay's own all callers are one account to the upstream. So a body may name, by its id, what another
owner has there (a response, a file, a conversation), or a model that the key may not ask for, in more places than
`model`. Here is where those places are; who may use them is decided elsewhere.

Rules: a name counts however it is spelled (case, spaces around it, `_` or none: some servers do not mind), and at any
depth. What is plainly content names nothing: text, a tool's schema, its arguments, metadata. An unknown name that ends
in `_id` or `_ids` counts, too: an API that grows opens nothing by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from relay.protocol import query as queries
from relay.protocol.dialect import JsonObject
from relay.protocol.members import FILES, OF_THE_REQUEST, RESPONSES, STEERING, STEERS, Meaning, meaning

# A string in one of these is the thing itself; only an object with an `id` names one, or what looks like a file's.
_BY_OBJECT = frozenset(("prompt", "audio", "voice", "video", "thread", "file", "files", "inputfile", "batch"))
_FILE_ID = re.compile(r"\s*file[-_].*", re.IGNORECASE | re.DOTALL)

_CURSORS = frozenset(("after", "before", "afterid", "beforeid"))
# Strings in these are text or words of the API's own.
_TEXTS = frozenset(
    ("role", "type", "text", "content", "name", "description", "id", "call_id", "arguments", "instructions", "status")
)
_ITEMS = frozenset(("input", "items"))
# How OpenRouter falls back, not to what.
_WAYS = ("fallback", "sort")
# What an item of the responses API brings of its own; one without any of it stands for what is kept under its id.
_OWN = {
    "message": ("content",),
    "reasoning": ("encrypted_content", "content"),
    "image_generation_call": ("result",),
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
    "compaction": ("encrypted_content",),
}
_BESIDE_CONTENT = frozenset(("id", "type", "status", "role", "phase", "created_by", "object", "summary"))
_ABSENT: tuple[Any, ...] = (None, "", [], {})
_LONGEST_ID = 256


MOST = 1000
"""How much a request may name."""
_STEP = 1000


class TooManyNamed(Exception):
    """A request names more than `MOST` models or things that are kept upstream."""


class Kept(NamedTuple):
    """`member` as the request spells it, `path` of what it names. `response` is its id where it is a response."""

    member: str
    path: str
    response: str | None = None


class Named(NamedTuple):
    """What a request names beside its text."""

    models: list[str]
    kept: list[Kept]


def of_body(body: JsonObject) -> Named:
    """All that a body names, its own `model` included. Raises TooManyNamed."""
    found = Named([], [])
    for _ in look(body, found):
        pass
    return found


def look(body: JsonObject, named: Named) -> Iterator[None]:
    """Add what a body names to `named`. A conversation of 100 messages takes 35 µs; where there is much more, it is
    looked through in steps of some milliseconds, between which others may have their turn. Raises TooManyNamed."""
    models, kept = named
    steps = 0
    answers: list[Kept] = []
    # Objects to look into, and whether they are of the conversation.
    pending: list[tuple[dict[str, Any], bool]] = [(body, False)]
    while pending:
        found, said = pending.pop()
        for name, value in found.items():
            kind = type(value)
            if (kind is str and name in _TEXTS) or value is None or kind is bool:
                continue
            if name == "content" and kind is list:  # the most frequent one
                pending += [(item, True) for item in _objects(value)]
                continue
            steps += 1
            if steps == _STEP:
                steps = 0
                yield
                if len(models) > MOST or len(kept) > MOST:
                    raise TooManyNamed
            means = meaning(name)
            plain = means.plain
            if means.chooses and not said:
                models += _chosen(plain, value)
            if plain in STEERS and (found is body or "model" in found):
                kept.append(Kept(name, STEERING))
            elif plain in OF_THE_REQUEST and kind is dict:
                kept += [Kept(each, STEERING) for each in value if meaning(each).plain in STEERS]
            if means.path is not None and (means.known or not said):
                kept += _ids(name, means, value, found)
            elif plain == "approvalrequestid" and kind is str:
                answers.append(Kept(name, RESPONSES + value[:_LONGEST_ID]))
            if (kind is not dict and kind is not list) or (means.content and not (plain == "text" and kind is dict)):
                continue  # `text` of the responses API is no text, but has the form of the answer
            if (plain == "parameters" and _is_function(found)) or (plain == "input" and _is_call(found)):
                continue
            said_there = said or means.message
            if kind is dict:
                pending.append((value, said_there))
                continue
            items = _objects(value)
            if plain in _ITEMS:
                kept += [
                    Kept("item_reference", RESPONSES + str(i.get("id"))[:_LONGEST_ID]) for i in items if _refers(i)
                ]
            pending += [(item, said_there) for item in items]
    if answers and not isinstance(body.get("previous_response_id"), str):
        asked = _approvals(body)
        kept += [answer for answer in answers if answer.path not in asked]
    if len(models) > MOST or len(kept) > MOST:
        raise TooManyNamed


def of_query(query: str, path: str) -> Named:
    """What the parameters of a query name: as members of a body do, and where the list at `path` goes on."""
    models: list[str] = []
    kept: list[Kept] = []
    for _, part, spelled in queries.parts(query):
        name, value = queries.name_of(spelled), queries.decoded(part.partition("=")[2]).decode("utf-8", "replace")
        means = meaning(name)
        if means.chooses:
            models += _chosen(means.plain, value)
        if means.plain in _CURSORS:
            if not path.startswith("/v1/models"):
                kept.append(Kept(name, path))
        elif means.path is not None:
            kept += _ids(name, means, value, {})
    return Named(models, kept)


def _objects(value: list[Any]) -> list[dict[str, Any]]:
    """The objects of a list, also of lists in it, but for those that are text and nothing else.

    Most of a conversation is `{"type": …, "text": "…"}`, and messages that have a `role` and a `content` alone.
    """
    found: list[dict[str, Any]] = []
    lists = [value]
    while lists:
        for item in lists.pop():
            kind = type(item)
            if kind is dict:
                size = len(item)
                if size == 2 and type(item.get("text")) is str and "type" in item:
                    continue
                if "content" in item and "role" in item and (size == 2 or (size == 3 and "type" in item)):
                    said = item["content"]
                    if type(said) is list:
                        lists.append(said)
                    elif type(said) is dict:
                        found.append(said)
                else:
                    found.append(item)
            elif kind is list:
                lists.append(item)
    return found


def _chosen(plain: str, value: Any) -> list[str]:
    """The models that a member chooses. LiteLLM's `fallbacks` hold names, requests, or what stands in for what."""
    if isinstance(value, str):
        return [] if plain == "route" and value in _WAYS else [value]
    if isinstance(value, dict):
        value = [value]
    stands_in = plain.endswith(("fallback", "fallbacks"))
    found: list[str] = []
    lists = [value] if isinstance(value, list) else []
    while lists and len(found) <= MOST:
        for item in lists.pop()[: MOST + 1]:
            if isinstance(item, str):
                found.append(item)
            elif isinstance(item, list):
                lists.append(item)
            elif isinstance(item, dict) and stands_in:
                lists += [listed for name, listed in item.items() if isinstance(listed, list) and name != "messages"]
            elif isinstance(item, dict):
                found += [item[each] for each in ("id", "name") if isinstance(item.get(each), str)]
    return found


def _ids(name: str, means: Meaning, value: Any, beside: dict[str, Any]) -> list[Kept]:
    """What a member names that is kept upstream."""
    path = means.path or ""
    if means.plain == "skillid" and beside.get("type") == "anthropic":  # the upstream's own, for everybody
        return []
    found: list[Kept] = []
    for item in value if isinstance(value, list) else [value]:
        if len(found) > MOST:
            break
        named = item
        if isinstance(item, dict):
            named = next((v for k, v in item.items() if meaning(k).plain == "id"), None)
        elif means.plain in _BY_OBJECT and not (path == FILES and isinstance(item, str) and _FILE_ID.fullmatch(item)):
            continue
        if not means.known and not isinstance(named, str):  # numbers are tokens' or speakers'
            continue
        if named is None or named == "" or isinstance(named, dict | list):
            continue
        response = str(named) if path == RESPONSES else None
        found.append(Kept(name, path + str(named)[:_LONGEST_ID], response))
    return found


def _is_function(tool: dict[str, Any]) -> bool:
    """A function's `parameters` are a schema. Those of a tool that runs upstream may choose a model."""
    return isinstance(tool.get("name"), str) and tool.get("type") in (None, "function", "custom")


def _is_call(part: dict[str, Any]) -> bool:
    """A tool's use in a conversation: its `input` is what a model wrote."""
    return str(part.get("type")).endswith(("tool_use", "tool_call"))


def _refers(item: dict[str, Any]) -> bool:
    """Does an item of the responses API stand for one that is kept?"""
    kind = item.get("type")
    if kind == "item_reference":
        return True
    if not item.get("id"):
        return False
    own = _OWN.get(kind) if isinstance(kind, str) else None
    return all(item.get(each) in _ABSENT for each in (own or item.keys() - _BESIDE_CONTENT))


def _approvals(body: JsonObject) -> set[str]:
    """The requests for approval that a body brings along with their answers."""
    items = body.get("input")
    return {
        RESPONSES + str(item.get("id"))[:_LONGEST_ID]
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and item.get("type") == "mcp_approval_request"
    }
