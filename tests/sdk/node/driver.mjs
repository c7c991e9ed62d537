// Runs the official JavaScript SDKs, unmodified, in streaming mode: the twin of ../driver.py.
//
//   node driver.mjs BASE_URL '[["chat", "model-name", "raw"], …]'
//
// A job's fourth part is as in driver.py. Prints one JSON list of transcripts in the jobs' order. Nothing of the relay may be imported here.

import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const PROMPT = [{ role: "user", content: "Say hello." }];
const TELLING_HEADERS = ["x-request-id", "request-id", "retry-after", "www-authenticate"];
const TELLING_PREFIXES = ["x-ratelimit-", "anthropic-ratelimit-"];

const [baseURL, jobs] = [process.argv[2], JSON.parse(process.argv[3])];
const KEYS = { chat: "sk-test", responses: "sk-test", messages: "sk-ant-test" };
const client = (api, { key = KEYS[api], retries = 0 } = {}) =>
  api === "messages"
    ? new Anthropic({ baseURL, apiKey: key, maxRetries: retries, timeout: 30_000 })
    : new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: key, maxRetries: retries, timeout: 30_000 });
const openai = client("chat");
const anthropic = client("messages");

const telling = (headers) =>
  Object.fromEntries(
    [...(headers ?? [])].filter(([k]) => TELLING_HEADERS.includes(k) || TELLING_PREFIXES.some((p) => k.startsWith(p))),
  );

const describe = (error) => ({
  class: error.constructor.name,
  message: error.message,
  headers: telling(error.headers),
  status_code: error.status ?? null,
  code: error.code ?? null,
  type: error.type ?? null,
  param: error.param ?? null,
  body: error.error ?? null,
  request_id: error.requestID ?? null,
});

async function collect(stream, seen) {
  for await (const event of stream) seen.events.push(structuredClone(event));
}

async function raw(create, body, seen, { headers, body: more, stop_after: stopAfter }) {
  const { data, response } = await create({ ...body, ...more }, { headers }).withResponse();
  seen.headers = telling(response.headers);
  for await (const event of data) {
    seen.events.push(structuredClone(event));
    if (seen.events.length === stopAfter)
      await fetch(`${baseURL}/streams/${response.headers.get("relay-stream-id")}`, { method: "DELETE", headers });
  }
}

async function helper(stream, seen, final) {
  await collect(stream, seen);
  seen.final = await stream[final]();
}

const RUNNERS = {
  chat: {
    raw: (model, seen, options) => {
      const { completions } = client("chat", options).chat;
      const body = { model, messages: PROMPT, stream: true, stream_options: { include_usage: true } };
      return raw(completions.create.bind(completions), body, seen, options);
    },
    helper: (model, seen) =>
      helper(openai.chat.completions.stream({ model, messages: PROMPT }), seen, "finalChatCompletion"),
    get: async (path, seen, options) => (seen.final = await client("chat", options).get(path, { headers: options.headers })),
  },
  responses: {
    raw: (model, seen, options) => {
      const { responses } = client("responses", options);
      return raw(responses.create.bind(responses), { model, input: "Say hello.", stream: true }, seen, options);
    },
    helper: (model, seen) =>
      helper(openai.responses.stream({ model, input: "Say hello." }), seen, "finalResponse"),
    get: async (path, seen, options) => (seen.final = await client("responses", options).get(path, { headers: options.headers })),
  },
  messages: {
    raw: (model, seen, options) => {
      const { messages } = client("messages", options);
      const body = { model, messages: PROMPT, max_tokens: 64, stream: true };
      return raw(messages.create.bind(messages), body, seen, options);
    },
    helper: (model, seen) =>
      helper(anthropic.messages.stream({ model, messages: PROMPT, max_tokens: 64 }), seen, "finalMessage"),
    get: async (path, seen, options) =>
      (seen.final = await client("messages", options).get(`/v1${path}`, { headers: options.headers })),
  },
};

// What a user makes of the raw events.
const ASSEMBLERS = {
  chat(events) {
    let [text, reasoning, usage] = ["", "", null];
    const tools = new Map();
    for (const event of events) {
      usage = event.usage ?? usage;
      for (const { delta = {} } of event.choices ?? []) {
        text += delta.content ?? "";
        reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
        for (const detail of delta.reasoning_details ?? []) reasoning += detail.text ?? "";
        for (const call of delta.tool_calls ?? []) {
          if (!tools.has(call.index)) tools.set(call.index, { id: "", name: "", arguments: "" });
          const tool = tools.get(call.index);
          tool.id += call.id ?? "";
          tool.name += call.function?.name ?? "";
          tool.arguments += call.function?.arguments ?? "";
        }
      }
    }
    return { text, tools: [...tools.values()], reasoning, usage };
  },
  messages(events) {
    let [text, reasoning, usage] = ["", "", null];
    const tools = new Map();
    for (const { index, content_block: block, delta, ...event } of events) {
      const more = event.usage ?? event.message?.usage;
      usage = more ? { ...usage, ...more } : usage;
      if (block?.type === "tool_use") tools.set(index, { id: block.id, name: block.name, arguments: "" });
      if (delta?.type === "input_json_delta") tools.get(index).arguments += delta.partial_json;
      text += delta?.text ?? "";
      reasoning += delta?.thinking ?? "";
    }
    return { text, tools: [...tools.values()], reasoning, usage };
  },
  responses(events) {
    let [text, reasoning, usage] = ["", "", null];
    const tools = new Map();
    for (const event of events) {
      usage = event.response?.usage ?? usage;
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.reasoning_summary_text.delta") reasoning += event.delta;
      if (event.type === "response.output_item.added" && event.item.type === "function_call")
        tools.set(event.output_index, { id: event.item.call_id, name: event.item.name, arguments: "" });
      if (event.type === "response.function_call_arguments.delta")
        tools.get(event.output_index).arguments += event.delta;
    }
    return { text, tools: [...tools.values()], reasoning, usage };
  },
};

async function run([api, model, mode, options = {}]) {
  const seen = { events: [], headers: {}, final: null, error: null };
  while (options.once && !existsSync(options.once)) await sleep(20);
  try {
    await RUNNERS[api][mode](model, seen, options);
  } catch (error) {
    seen.error = describe(error);
  }
  return mode === "raw" ? { ...seen, ...ASSEMBLERS[api](seen.events) } : seen;
}

process.stdout.write(JSON.stringify(await Promise.all(jobs.map(run))));
