import httpx2
from openai import OpenAI

from relay.client.httpx2 import ResumingTransport

client = OpenAI(http_client=httpx2.Client(transport=ResumingTransport()))
question = [{"role": "user", "content": "Tell me a story."}]

for chunk in client.chat.completions.create(model="gpt-4o", messages=question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
