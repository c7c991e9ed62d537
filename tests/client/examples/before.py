from openai import OpenAI

client = OpenAI()
question = [{"role": "user", "content": "Tell me a story."}]

for chunk in client.chat.completions.create(model="gpt-4o", messages=question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
