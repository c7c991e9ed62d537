// The chat of the AI SDK that is installed beside it, over its transport for a relay: node ai.mjs
//
// What stands for the relay is a log with ids, which is cut where a case says. Prints {"name of a case": null or what was
// wrong}. The stream is made, and read, by the SDK itself.

import assert from "node:assert/strict";
import { createUIMessageStream, createUIMessageStreamResponse } from "ai";
import { Chat as AnyChat } from "./chat.mjs";

const STREAM = "st_0123456789abcdefghijkl";
const USER = { id: "m1", role: "user", parts: [{ type: "text", text: "How warm is it?" }] };
const PARTS = [
  { type: "start", messageId: "m2" },
  { type: "start-step" },
  { type: "tool-input-start", toolCallId: "c1", toolName: "weather" },
  { type: "tool-input-delta", toolCallId: "c1", inputTextDelta: '{"city":"Zürich"}' },
  { type: "tool-input-available", toolCallId: "c1", toolName: "weather", input: { city: "Zürich" } },
  { type: "tool-output-available", toolCallId: "c1", output: { celsius: 21 } },
  { type: "finish-step" },
  { type: "start-step" },
  { type: "text-start", id: "t1" },
  ...["It is ", "21 °C", " in Zürich."].map((delta) => ({ type: "text-delta", id: "t1", delta })),
  { type: "text-end", id: "t1" },
  { type: "finish-step" },
  { type: "finish" },
];

/** The SDK's own bytes of these parts, each event with the relay's id. */
async function logged(parts) {
  const stream = createUIMessageStream({ execute: ({ writer }) => parts.forEach((part) => writer.write(part)) });
  const response = createUIMessageStreamResponse({ stream });
  const events = (await response.text()).split("\n\n").slice(0, -1);
  const frames = events.map((event, at) => `id: ${STREAM}.${at + 1}\n${event}\n\n`);
  return { frames, kind: response.headers.get("x-vercel-ai-ui-message-stream") };
}
const { frames: LOG, kind: KIND } = await logged(PARTS);
const HEAD = { "content-type": "text/event-stream", "relay-stream-id": STREAM, "relay-resumable": "true" };

const aborted = (signal) =>
  new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));

/** A relay that has `log`; each answer that is a stream ends as the next of `cuts` says: after so many bytes, or never. */
class Relay {
  requests = [];

  constructor({ log = LOG, cuts = [], live = true, upTo = Infinity } = {}) {
    Object.assign(this, { log, cuts: [...cuts], live, upTo });
    this.more = new Promise((resolve) => (this.goOn = resolve));
    this.answered = new Promise((resolve) => (this.answer = resolve));
  }

  fetch = async (url, { method = "GET", headers, body, signal } = {}) => {
    signal?.throwIfAborted();
    const asked = { method, path: String(url), body, headers: Object.fromEntries(new Headers(headers)) };
    this.requests.push(asked);
    const next = this.cuts.shift();
    if (next === "before the head") throw new TypeError("fetch failed");
    if (next === "late") await Promise.race([this.answered, aborted(signal)]);
    if (method === "DELETE") return new Response(null, { status: 204 });
    const after = Number(asked.headers["last-event-id"]?.split(".")[1] ?? 0);
    const named = asked.path.endsWith("/stream");
    if ((named && !this.live) || after === this.log.length) {
      return new Response(null, { status: 204, headers: named ? {} : { "relay-stream-id": STREAM } });
    }
    const bytes = new TextEncoder().encode(this.log.slice(after).join(""));
    return new Response(this.#body(bytes, next === "late" || !next ? { at: Infinity } : next, after, signal), {
      headers: { ...HEAD, "x-vercel-ai-ui-message-stream": KIND },
    });
  };

  #body(bytes, { at, cleanly }, after, signal) {
    const now = new TextEncoder().encode(this.log.slice(after, this.upTo).join("")).length;
    let [sent, ended] = [0, false];
    const end = (controller) => {
      ended = true;
      if (at === Infinity || cleanly) controller.close();
      else controller.error(new TypeError("terminated"));
    };
    return new ReadableStream({
      start(controller) {
        signal?.addEventListener("abort", () => ended || controller.error(signal.reason));
      },
      pull: async (controller) => {
        if (sent >= now) await this.more;
        if (ended || signal?.aborted) return;
        const part = bytes.subarray(sent, Math.min(sent + 64, at, sent < now ? now : Infinity));
        sent += part.length;
        if (part.length > 0) controller.enqueue(part);
        if (sent >= Math.min(at, bytes.length)) end(controller);
      },
    }, { highWaterMark: 0 });
  }

  count = (method) => this.requests.filter((asked) => asked.method === method).length;
}

const AT = { api: "http://app.test/api/chat" };
const sleep = (ms, signal) => new Promise((resolve) => setTimeout(resolve, 1)).then(() => signal?.throwIfAborted());

class Chat extends AnyChat {
  constructor({ relay, resuming, ...options }) {
    super({ fetch: relay.fetch, resuming: { sleep, maxAttempts: 50, ...resuming }, ...AT }, options);
  }
}

async function until(happened) {
  for (let tries = 0; !happened(); tries += 1) {
    assert(tries < 2000, `this did not come true: ${happened}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function sent(relay) {
  const chat = new Chat({ relay });
  await chat.sendMessage(structuredClone(USER));
  assert.equal(chat.error, undefined);
  assert.equal(chat.status, "ready");
  return chat.saved;
}
const UNCUT = await sent(new Relay());
const SIZE = new TextEncoder().encode(LOG.join("")).length;

const CASES = {
  async what_is_read_is_worth_reading() {
    assert.equal(UNCUT.length, 2);
    const kinds = UNCUT[1].parts.map((part) => part.type);
    assert.deepEqual(kinds, ["step-start", "tool-weather", "step-start", "text"]);
    assert.deepEqual(UNCUT[1].parts[1].output, { celsius: 21 });
    assert.equal(UNCUT[1].parts[3].text, "It is 21 °C in Zürich.");
  },

  async a_message_that_is_cut_anywhere_is_the_same_and_asked_for_once() {
    for (let at = 0; at < SIZE; at += 23) {
      for (const cleanly of [false, true]) {
        const relay = new Relay({ cuts: [{ at, cleanly }, { at: (at * 7) % 300, cleanly }] });
        assert.deepEqual(await sent(relay), UNCUT, `cut after ${at} bytes`);
        const [first, ...others] = relay.requests;
        assert.equal(new Set(relay.requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
        assert.equal(first.headers["last-event-id"], undefined);
        for (const { method, headers, body } of others) {
          assert.deepEqual([method, body], ["POST", first.body]);
          assert.match(headers["last-event-id"], /^st_/);
        }
      }
    }
  },

  async a_message_that_dies_before_its_head_joins_by_its_key() {
    const relay = new Relay({ cuts: ["before the head", "before the head"] });
    assert.deepEqual(await sent(relay), UNCUT);
    assert.equal(relay.requests.length, 3);
    assert.equal(new Set(relay.requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
  },

  async a_whole_message_is_asked_about_no_more() {
    const relay = new Relay();
    await sent(relay);
    assert.equal(relay.requests.length, 1);
    assert.deepEqual(Object.keys(JSON.parse(relay.requests[0].body)).slice(0, 2), ["id", "messages"]);
  },

  async a_page_that_is_loaded_again_has_the_same_messages() {
    for (let upTo = 0; upTo < LOG.length; upTo += 1) {
      const relay = new Relay({ upTo, cuts: [{ at: 90 + 31 * upTo }, { at: 200 }] });
      const chat = new Chat({ relay, messages: [USER] });
      const over = chat.resumeStream();
      await until(() => relay.requests.length > 0);
      relay.goOn();
      await over;
      assert.equal(chat.error, undefined);
      assert.deepEqual(chat.saved, UNCUT, `loaded after event ${upTo}`);
      assert.equal(relay.requests[0].path, "http://app.test/api/chat/chat-1/stream");
      assert.equal(relay.count("POST") + relay.count("DELETE"), 0);
    }
  },

  async a_page_that_is_loaded_after_the_end_is_left_as_it_is() {
    const relay = new Relay({ live: false });
    const chat = new Chat({ relay, messages: structuredClone(UNCUT) });
    await chat.resumeStream();
    assert.equal(chat.status, "ready");
    assert.deepEqual(chat.saved, UNCUT);
    assert.equal(relay.requests.length, 1);
  },

  async stop_ends_the_generation_once() {
    for (const resumed of [false, true]) {
      const relay = new Relay({ upTo: 10 });
      const chat = new Chat({ relay, messages: resumed ? [USER] : [] });
      const over = resumed ? chat.resumeStream() : chat.sendMessage(structuredClone(USER));
      await until(() => chat.messages.length > 1 && chat.text === "It is ");
      await chat.stop();
      await over;
      await until(() => relay.count("DELETE") > 0);
      assert.equal(relay.count("DELETE"), 1);
      const asked = relay.requests.find(({ method }) => method === "DELETE");
      assert.equal(asked.path, `http://app.test/streams/${STREAM}`);
      assert.equal(asked.headers["idempotency-key"], undefined);
      assert.equal(chat.status, "ready");
      assert.equal(chat.text, "It is ");
    }
  },

  async stop_before_the_answer_ends_the_generation_as_soon_as_it_is_known() {
    for (const resumed of [false, true]) {
      const relay = new Relay({ cuts: ["late"] });
      const chat = new Chat({ relay, messages: resumed ? [USER] : [] });
      const over = resumed ? chat.resumeStream() : chat.sendMessage(structuredClone(USER));
      await until(() => relay.requests.length === 1);
      await chat.stop();
      await over;
      assert.deepEqual([chat.status, chat.messages.length, relay.requests.length], ["ready", 1, 1]);
      relay.answer();
      await until(() => relay.count("DELETE") > 0);
      assert.equal(relay.requests.at(-1).path, `http://app.test/streams/${STREAM}`);
      assert.equal(relay.requests.length, 2);
    }
  },

  async a_component_that_is_mounted_twice_ends_nothing() {
    const relay = new Relay({ cuts: ["late"] });
    const chat = new Chat({ relay, messages: [USER] });
    const first = chat.resumeStream();
    chat.stop();
    const second = chat.resumeStream();
    relay.answer();
    await Promise.all([first, second]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(relay.count("DELETE"), 0);
    assert.deepEqual(chat.saved, UNCUT);
  },

  async stop_after_the_end_asks_for_nothing() {
    const relay = new Relay();
    const chat = new Chat({ relay });
    await chat.sendMessage(structuredClone(USER));
    await chat.stop();
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(relay.requests.length, 1);
  },

  async a_reconnect_that_takes_the_place_of_another_ends_nothing() {
    const relay = new Relay({ upTo: 10 });
    const chat = new Chat({ relay, messages: [USER] });
    const first = chat.resumeStream();
    await until(() => chat.messages.length > 1 && chat.text === "It is ");
    const second = chat.resumeStream();
    await until(() => relay.count("GET") > 1);
    relay.goOn();
    await Promise.all([first, second]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(relay.count("DELETE"), 0);
    assert.deepEqual(chat.saved, UNCUT);
  },

  async who_may_only_leave_ends_nothing() {
    const relay = new Relay({ upTo: 10 });
    const chat = new Chat({ relay, resuming: { stopOnAbort: false } });
    const over = chat.sendMessage(structuredClone(USER));
    await until(() => chat.messages.length > 1 && chat.text === "It is ");
    await chat.stop();
    await over;
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(relay.count("DELETE"), 0);
  },

  async an_end_that_the_relay_tells_is_the_chats_error() {
    const told = (parts) => `${parts.join("\n\n")}\n\n`;
    const end = [
      'data: {"type":"error","errorText":"The relay process that read the upstream is gone."}',
      `id: ${STREAM}.10e\ndata: [DONE]`,
    ];
    for (const at of [Infinity, 40]) {
      const relay = new Relay({ log: [...LOG.slice(0, 10), told(end)], cuts: [{ at: Infinity }] });
      if (at !== Infinity) relay.cuts = [{ at: LOG.slice(0, 10).join("").length + at }];
      const chat = new Chat({ relay, onError: () => {} });
      await chat.sendMessage(structuredClone(USER));
      assert.equal(chat.status, "error");
      assert.match(chat.error.message, /is gone/);
      assert.equal(chat.text, "It is ");
    }
  },

  async what_cannot_go_on_is_the_chats_error() {
    const relay = new Relay({ cuts: [{ at: 700 }, ...Array(9).fill("before the head")] });
    const chat = new Chat({ relay, resuming: { maxAttempts: 3 }, onError: () => {} });
    await chat.sendMessage(structuredClone(USER));
    assert.equal(chat.status, "error");
    assert.match(chat.error.message, /could not be resumed after event st_/);
  },
};

const told = {};
for (const [name, play] of Object.entries(CASES)) {
  told[name] = await play().then(() => null, (error) => String(error.stack));
}
console.log(JSON.stringify(told));
