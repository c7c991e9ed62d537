"""An agent of LangGraph with one tool. Its model is scripted; a real one is one line (`ChatOpenAI(model=…)`)."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, AnyMessage, BaseMessage
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition

PACE = float(os.environ.get("PACE", "0.2"))  # seconds between two words
TEXT = "Three trains go to Chur before noon, and one has a dining car."
runs: Counter[str] = Counter()  # how often the tool has run, for each thread


class ScriptedModel(BaseChatModel):
    """Asks for the timetable, and tells what it has."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("this model streams")

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        await asyncio.sleep(5 * PACE)
        if messages[-1].type == "tool":
            for word in TEXT.split():
                yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))
                await asyncio.sleep(PACE)
            return
        for part in ('{"t', 'o": "Ch', 'ur"}'):
            named = {"name": "timetable", "id": "call-1"} if part.startswith("{") else {"name": None, "id": None}
            chunk = ToolCallChunk(args=part, index=0, type="tool_call_chunk", **named)
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))
            await asyncio.sleep(PACE)


@tool
async def timetable(to: str, config: RunnableConfig) -> str:
    """The trains to a place."""
    await asyncio.sleep(8 * PACE)
    thread = config["configurable"]["thread"]
    runs[thread] += 1
    return f"Trains to {to}: 7:12, 9:12, 11:12 (run {runs[thread]})"


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


async def think(state: State) -> State:
    return {"messages": [await ScriptedModel().ainvoke(state["messages"])]}


graph = StateGraph(State)
graph.add_node("model", think)
graph.add_node("tools", ToolNode([timetable]))
graph.add_edge(START, "model")
graph.add_conditional_edges("model", tools_condition)
graph.add_edge("tools", "model")
agent = graph.compile()
