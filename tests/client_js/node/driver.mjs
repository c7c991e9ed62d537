// Runs unmodified SDKs in streaming mode, with `fetch` swapped for the resuming one or as they ship.
//
//   node driver.mjs '{"baseURL": …, "resume": true, "warm": "model or null", "jobs": [["openai", "chat", "model"], …]}'
//
// With "leaveAfter" the user aborts after so many events, by the SDK's own means.
// Prints one JSON list of transcripts in the jobs' order. Every wait of the resuming fetch is asked for and cut short.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";
import { resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

globalThis.AI_SDK_LOG_WARNINGS = false;
const { baseURL, resume, warm, jobs, leaveAfter } = JSON.parse(process.argv[2]);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, Math.min(ms, 5)));
const fetch = resume ? resumingFetch(globalThis.fetch, { sleep, maxAttempts: 60 }) : globalThis.fetch;

const messages = [{ role: "user", content: "Say hello." }];
const openai = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "sk-test", fetch });
const anthropic = new Anthropic({ baseURL, apiKey: "sk-test", fetch });
const common = { baseURL: `${baseURL}/v1`, apiKey: "sk-test", fetch };
const ai = {
  openai: createOpenAI(common),
  anthropic: createAnthropic(common),
  compatible: createOpenAICompatible({ ...common, name: "relay", includeUsage: true }),
};
const inputSchema = jsonSchema({ type: "object", additionalProperties: true });
const tools = { get_weather: tool({ inputSchema }), get_time: tool({ inputSchema }) };

/** What a user sees of the Vercel AI SDK: its parts without the times and the ids that it draws itself. */
async function* aiParts(model, { signal: abortSignal }) {
  const result = streamText({ model, messages, tools, abortSignal, maxOutputTokens: 64, onError: () => {} });
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    yield part;
  }
}

const RUNNERS = {
  "openai chat": (model, options) =>
    openai.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } }, options),
  "openai responses": (model, options) =>
    openai.responses.create({ model, input: "Say hello.", stream: true }, options),
  "anthropic messages": (model, options) =>
    anthropic.messages.create({ model, messages, max_tokens: 64, stream: true }, options),
  "ai-openai chat": (model, options) => aiParts(ai.openai.chat(model), options),
  "ai-openai responses": (model, options) => aiParts(ai.openai.responses(model), options),
  "ai-anthropic messages": (model, options) => aiParts(ai.anthropic(model), options),
  "ai-compatible chat": (model, options) => aiParts(ai.compatible(model), options),
};

const DRAWN = new Set(["timestamp", "callId", "messageId", "performance", "headers", "request"]);
const stable = (key, value) => (DRAWN.has(key) ? undefined : value);

/** What a user can read of an error: some SDKs wrap the one of `fetch`. */
function said(error) {
  const one = `${error.name}: ${error.message ?? JSON.stringify(error)}`;
  return error.cause ? `${one}, because of ${said(error.cause)}` : one;
}

async function run([sdk, api, model]) {
  const seen = { events: [], error: null };
  const controller = new AbortController();
  try {
    for await (const event of await RUNNERS[`${sdk} ${api}`](model, { signal: controller.signal })) {
      seen.events.push(JSON.parse(JSON.stringify(event, stable)));
      if (seen.events.length === leaveAfter) controller.abort();
    }
  } catch (error) {
    seen.error = said(error);
  }
  return seen;
}

if (warm) {
  const body = JSON.stringify({ model: warm, messages, stream: true });
  const headers = { authorization: "Bearer sk-test", "content-type": "application/json" };
  await (await fetch(`${baseURL}/v1/chat/completions`, { method: "POST", headers, body })).text();
}
console.log(JSON.stringify(await Promise.all(jobs.map(run))));
