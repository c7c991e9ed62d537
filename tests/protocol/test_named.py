"""What a request names beside its text: the table row by row, the depths, the spellings, and what names nothing."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from relay.protocol.members import KEPT
from relay.protocol.named import Kept, Named, TooManyNamed, look, of_body, of_query

OBJECTS_ONLY = ("prompt", "audio", "voice", "video", "thread", "inputfile", "batch")


def kept(body: Any) -> list[tuple[str, str]]:
    return [(item.member, item.path) for item in of_body(body).kept]


@pytest.mark.parametrize("name", KEPT)
def test_every_row_of_the_table_at_every_depth(name: str) -> None:
    path = f"{KEPT[name]}id-1"
    value: Any = {"id": "id-1"} if name in (*OBJECTS_ONLY, "file", "files") else "id-1"
    for body in (
        {name: value},
        {name: [value]},
        {"tools": [{"type": "x", name: value}]},
        {"extra_body": {"a": [[{name: value}]]}},
        {"messages": [{"role": "user", "content": [{"type": "x", name: value}]}]},
        {"input": [{"role": "user", "content": [{"type": "x", name: value}]}]},
        {"requests": [{"custom_id": "1", "params": {name: value}}]},
    ):
        assert kept(body) == [(name, path)], body
    nothings: list[Any] = [None, "", [], {}, True, False]
    for nothing in nothings:
        assert kept({name: nothing}) == []


FILE = "/v1/files/file-1"
NAMED = {
    '{"previous_response_id":"resp_1"}': ["/v1/responses/resp_1"],
    '{"conversation":"conv_1"}': ["/v1/conversations/conv_1"],
    '{"conversation":{"id":"conv_1"}}': ["/v1/conversations/conv_1"],
    '{"conversation":{" ID ":"conv_1"}}': ["/v1/conversations/conv_1"],
    '{"prompt":{"id":"pmpt_1","version":"2","variables":{"a":{"type":"input_file","file_id":"file-1"}}}}': [
        "/v1/prompts/pmpt_1",
        FILE,
    ],
    '{"tools":[{"type":"file_search","vector_store_ids":["vs_1","vs_2"]}]}': [
        "/v1/vector_stores/vs_1",
        "/v1/vector_stores/vs_2",
    ],
    '{"tools":[{"type":"code_interpreter","container":"cntr_1"}]}': ["/v1/containers/cntr_1"],
    '{"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file-1"]}}]}': [FILE],
    '{"tools":[{"type":"shell","environment":{"type":"container_reference","container_id":"cntr_1"}}]}': [
        "/v1/containers/cntr_1"
    ],
    '{"tools":[{"type":"image_generation","input_image_mask":{"file_id":"file-1"}}]}': [FILE],
    '{"container":{"id":"c_1","skills":[{"skill_id":"sk_1"},{"type":"anthropic","skill_id":"pptx"}]}}': [
        "/v1/containers/c_1",
        "/v1/skills/sk_1",
    ],
    '{"input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]}': [FILE],
    '{"input":[{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","file_id":"file-1"}]}]}': [
        FILE
    ],
    '{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]}': [FILE],
    '{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"file-1"}}]}]}': [
        FILE
    ],
    '{"messages":[{"role":"user","content":[{"type":"container_upload","file_id":"file-1"}]}]}': [FILE],
    '{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"source":{"file_id":"file-1"}}]}]}]}': [
        FILE
    ],
    '{"messages":[{"role":"assistant","audio":{"id":"audio_1"}}]}': ["/v1/audio/audio_1"],
    '{"input_file_id":"file-1","endpoint":"/v1/chat/completions"}': [FILE],
    '{"training_file":"file-1","validation_file":"file-2"}': [FILE, "/v1/files/file-2"],
    '{"files":["file-1","some text"]}': [FILE],
    '{"assistant_id":"asst_1","thread_id":"t_1"}': ["/v1/assistants/asst_1", "/v1/threads/t_1"],
    '{"input":[{"type":"item_reference","id":"msg_1"}]}': ["/v1/responses/msg_1"],
    '{"input":[{"type":"item_reference","ID":"msg_1"}]}': ["/v1/responses/None"],
    '{"input":[{"id":"msg_1"}]}': ["/v1/responses/msg_1"],
    '{"input":[{"type":"reasoning","id":"rs_1","summary":[]}]}': ["/v1/responses/rs_1"],
    '{"input":[{"type":"image_generation_call","id":"ig_1","status":"completed"}]}': ["/v1/responses/ig_1"],
    '{"input":[{"type":"mcp_approval_response","approval_request_id":"mcpr_1","approve":true}]}': [
        "/v1/responses/mcpr_1"
    ],
    '{"Previous_Response_Id":"resp_1"}': ["/v1/responses/resp_1"],
    '{"previousResponseId":"resp_1"}': ["/v1/responses/resp_1"],
    '{" previous_response_id\\n":"resp_1"}': ["/v1/responses/resp_1"],
    '{"previous\\u005fresponse\\u005fid":"resp_1"}': ["/v1/responses/resp_1"],
    '{"previous-response-id":"resp_1"}': ["/v1/responses/resp_1"],
    '{"fileIds":["file-1"]}': [FILE],
    '{"some_new_thing_id":"x_1"}': ["/v1/some_new_things/x_1"],
    '{"tools":[{"type":"new","memoryStoreIds":["m_1"]}]}': ["/v1/memory_stores/m_1"],
}


@pytest.mark.parametrize("body", NAMED)
def test_what_names_state(body: str) -> None:
    assert [path for _, path in kept(json.loads(body))] == NAMED[body]


SCHEMA = {"type": "object", "properties": {"model": {"type": "string"}, "file_id": {"default": "file-1"}}, "id": "x"}
NOTHING: list[Any] = [
    {"model": "m", "messages": [{"role": "user", "content": "previous_response_id file_id"}]},
    {"prompt": "a text"},
    {"prompt": ["a text", [1, 2]]},
    {"input": ["a", "b"]},
    {"audio": {"voice": "alloy", "format": "wav"}, "voice": "alloy"},
    {"metadata": {"file_id": "file-1", "conversation_id": "c"}, "client_metadata": {"thread_id": "t"}},
    {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
    {"tools": [{"name": "f", "input_schema": SCHEMA}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
    {"messages": [{"content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"file_id": "file-1"}}]}]},
    {"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "x"}]},
    {"messages": [{"content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}]}]},
    {"messages": [{"tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": '{"file_id":"x"}'}}]}]},
    {"messages": [{"content": [{"type": "file", "file": {"file_data": "data:", "filename": "a.pdf"}}]}]},
    {"messages": [{"content": [{"type": "document", "source": {"type": "base64", "data": "x"}}]}]},
    {
        "input": [
            {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}
        ]
    },
    {"input": [{"type": "message", "id": "m", "content": [{"text": "x", "annotations": [{"file_id": "file-1"}]}]}]},
    {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}]},
    {"input": [{"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}]},
    {"input": [{"type": "function_call_output", "id": "fco_1", "call_id": "c", "output": ""}]},
    {"input": [{"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "f", "input": "x"}]},
    {"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}]},
    {"input": [{"type": "image_generation_call", "id": "ig_1", "result": "base64"}]},
    {
        "input": [
            {"type": "mcp_approval_request", "id": "mcpr_1", "arguments": "{}", "name": "n", "server_label": "s"},
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
        ]
    },
    {"stop_token_ids": [1, 2], "allowed_token_ids": [3], "speaker_id": 4},
    {"session_id": "s", "user_id": "u", "litellm_trace_id": "t", "tools": [{"type": "mcp", "connector_id": "c"}]},
    {"tool_choice": {"type": "function", "name": "f"}, "stop": ["\n"], "user": "u", "prompt_cache_key": "k"},
    {"query": "q", "documents": [{"text": "t", "file_id": "file-1", "model": "x"}]},
]


@pytest.mark.parametrize("body", NOTHING, ids=lambda body: json.dumps(body)[:80])
def test_what_is_content_names_nothing(body: Any) -> None:
    assert kept(body) == []
    assert of_body(body).models == ([body["model"]] if "model" in body else [])


def test_an_approval_of_the_response_that_a_request_goes_on_from_is_of_that_response() -> None:
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    assert of_body({"previous_response_id": "resp_1", "input": [answer]}).kept == [
        Kept("previous_response_id", "/v1/responses/resp_1", "resp_1")
    ]


MODELS = {
    '{"model":"a"}': ["a"],
    '{"model":"a","Model":"b","MODEL ":"c"," model":"d","mod\\u0065l_":"e"}': ["a", "b", "c", "d", "e"],
    '{"models":["a","b"]}': ["a", "b"],
    '{"models":"a"}': ["a"],
    '{"models":[["a"],"b"]}': ["b", "a"],
    '{"models":[{"id":"a"},{"name":"b"}]}': ["a", "b"],
    '{"fallbacks":["a",{"model":"b","messages":[{"role":"user","content":"x"}]}]}': ["a", "b"],
    '{"fallbacks":[{"mine":["a","b"]}]}': ["a", "b"],
    '{"context_window_fallbacks":[{"mine":["a"]}],"default_fallbacks":["b"]}': ["a", "b"],
    '{"tools":[{"type":"image_generation","model":"a"},{"type":"advisor","model":"b"}]}': ["a", "b"],
    '{"tools":[{"type":"openrouter:image_generation","name":"x","parameters":{"model":"a"}}]}': ["a"],
    '{"plugins":[{"id":"web","model":"a"}]}': ["a"],
    '{"extra_body":{"models":["a"],"extra_body":{"model":"b"}}}': ["a", "b"],
    '{"session":{"input_audio_transcription":{"model":"a"}}}': ["a"],
    '{"requests":[{"custom_id":"1","params":{"model":"a","messages":[{"model":"x"}]}}]}': ["a"],
    '{"embedding_model":"a","model_name":"b","modelId":"c","deployment_id":"d"}': ["a", "b", "c", "d"],
    '{"route":"a","preset":"b"}': ["a", "b"],
    '{"route":"fallback"}': [],
    '{"model":null,"models":[],"fallbacks":{},"model_":3}': [],
    '{"provider":{"order":["x"]},"engine":"exa","reasoning":{"effort":"high"}}': [],
}


@pytest.mark.parametrize("body", MODELS)
def test_every_model_that_a_body_chooses(body: str) -> None:
    assert sorted(of_body(json.loads(body)).models) == sorted(MODELS[body])


def test_what_a_query_names() -> None:
    found = of_query("model=a&Models[]=b;fallbacks=c&beta=true&api-version=1&previous_response_id=resp%5F1", "/v1/x")
    assert found.models == ["a", "b", "c"]
    assert found.kept == [Kept("previous_response_id", "/v1/responses/resp_1", "resp_1")]
    assert [item.path for item in of_query("f%69le_id=file-1&after=batch_1&limit=2", "/v1/batches").kept] == [
        "/v1/files/file-1",
        "/v1/batches",
    ]
    assert of_query("after_id=claude-1&limit=2&before_id=x", "/v1/models").kept == []


N = 100_000
ODD: dict[str, Callable[[], Any]] = {
    "names of their own": lambda: {f"k{i}": 1 for i in range(N)},
    "long names": lambda: {"x" * 200 + f"{i}_id": "a" for i in range(N)},
    "objects": lambda: {"x": [{"y": []} for _ in range(N)]},
    "approvals": lambda: {"input": [{"type": "mcp_approval_response", "approval_request_id": "m"} for _ in range(900)]},
}


@pytest.mark.parametrize("body", ODD)
def test_a_large_body_is_looked_through_in_small_steps(body: str) -> None:
    """The longest step of a second's work is a fraction of it, whatever is in it: others have their turn."""
    looked_through = ODD[body]()
    gc.freeze()  # what other tests have left is no part of it
    try:
        longest, began = 0.0, time.process_time()
        for _ in look(looked_through, Named([], [])):
            longest, began = max(longest, time.process_time() - began), time.process_time()
    finally:
        gc.unfreeze()
    assert longest < 0.3


TOO_MUCH: dict[str, Callable[[], Any]] = {
    "file ids": lambda: {"file_ids": ["f"] * 500_000},
    "models": lambda: {"models": ["m"] * 500_000},
    "lists of models": lambda: {"models": [["m"]] * 2000},
    "fallbacks": lambda: {"fallbacks": [{"a": ["b"]} for _ in range(2000)]},
    "unknown ids": lambda: {f"k{i}_id": "x" for i in range(N)},
    "items": lambda: {"input": [{"type": "item_reference", "id": f"i{i}"} for i in range(2000)]},
}


@pytest.mark.parametrize("body", TOO_MUCH)
def test_what_names_too_much_is_not_held_against_all_patterns(body: str) -> None:
    named = TOO_MUCH[body]()
    began = time.process_time()
    with pytest.raises(TooManyNamed):
        of_body(named)
    assert time.process_time() - began < 1


def test_no_nesting_is_too_deep() -> None:
    deep: Any = {"model": "a"}
    for _ in range(900):
        deep = {"x": [deep]}
    assert of_body(deep).models == ["a"]
