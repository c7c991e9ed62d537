"""OpenAI's package, unmodified, reading its other event streams: `python openai_streams_run.py URL` prints of each what
its user sees, the events' types and the error's code.

Nothing of the relay may be imported here: this file runs with the SDK on its path and nothing else.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="sk-one", max_retries=0)


def ask(name: str) -> Any:
    if name == "images":
        return client.images.generate(prompt="A river.", model="m", stream=True, partial_images=2)
    if name == "edits":
        return client.images.edit(image=("a.png", io.BytesIO(b"\x89PNG")), prompt="A river.", model="m", stream=True)
    if name == "transcript":
        return client.audio.transcriptions.create(file=("a.mp3", io.BytesIO(b"ID3")), model="m", stream=True)
    return client.completions.create(model="m", prompt="A river.", stream=True)


def read(name: str) -> dict[str, Any]:
    seen: list[str] = []
    try:
        seen.extend(getattr(event, "type", None) or event.object for event in ask(name))
    except openai.APIError as error:
        return {"seen": seen, "error": error.code}
    return {"seen": seen, "error": None}


print(json.dumps({name: read(name) for name in ("images", "edits", "transcript", "completions")}))
