// Stands for a model: it asks for the weather, waits for it and tells it, a word at a time. A real one is one line:
// `openai("gpt-5")` of "@ai-sdk/openai".

import { simulateReadableStream } from "ai";
import { MockLanguageModelV4 } from "ai/test";

export const PACE = Number(process.env.PACE ?? 0.2) * 1000; // milliseconds between two words
const WORDS = "In Zürich it is 21 °C and sunny, so take a hat.".split(" ");
const usage = { inputTokens: { total: 10 }, outputTokens: { total: 20 } };
const finish = (unified) => ({ type: "finish", finishReason: { unified, raw: unified }, usage });

const ASKS = [
  { type: "stream-start", warnings: [] },
  { type: "tool-input-start", id: "call-1", toolName: "weather" },
  ...['{"ci', 'ty":"Zü', 'rich"}'].map((delta) => ({ type: "tool-input-delta", id: "call-1", delta })),
  { type: "tool-input-end", id: "call-1" },
  { type: "tool-call", toolCallId: "call-1", toolName: "weather", input: '{"city":"Zürich"}' },
  finish("tool-calls"),
];
const TELLS = [
  { type: "stream-start", warnings: [] },
  { type: "text-start", id: "text-1" },
  ...WORDS.map((word) => ({ type: "text-delta", id: "text-1", delta: `${word} ` })),
  { type: "text-end", id: "text-1" },
  finish("stop"),
];

export const model = new MockLanguageModelV4({
  doStream: async ({ prompt, abortSignal }) => {
    const chunks = prompt.at(-1).role === "tool" ? TELLS : ASKS;
    const stream = simulateReadableStream({ chunks, initialDelayInMs: 5 * PACE, chunkDelayInMs: PACE });
    return { stream: stream.pipeThrough(new TransformStream(), { signal: abortSignal }) };
  },
});
