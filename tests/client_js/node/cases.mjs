// Plays the table of scripts that every client plays (tests/client/cases.py): node cases.mjs '"path of cases.json"'
//
// Prints {"name of the case": null or what was wrong}. Time is virtual: waits and parts like `+6` let it pass.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { ResumeError, resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

const [STREAM, OTHER] = [`st_${"s".repeat(22)}`, `st_${"o".repeat(22)}`];
const HEAD = {
  "relay-stream-id": STREAM,
  "relay-resumable": "true",
  "content-type": "text/event-stream; charset=utf-8",
};
const BREAKS = { lost: "lost", unreachable: "unreachable", slow: "slow" };
const PATHS = { chat: "/v1/chat/completions", messages: "/v1/messages", responses: "/v1/responses" };
const SETTINGS = {
  max_attempts: (value) => ({ maxAttempts: value }),
  max_elapsed: (value) => ({ maxElapsedMs: value * 1000 }),
  deadline: (value) => ({ deadlineMs: value * 1000 }),
  longest_delay: (value) => ({ longestDelayMs: value * 1000 }),
  max_event_bytes: (value) => ({ maxEventBytes: value }),
  assume_relay: (value) => ({ assumeRelay: value }),
};
const named = (text) => text.replaceAll("$", STREAM);
const frame = (n, data = "{}", stream = STREAM) => `id: ${stream}.${n}\ndata: ${data}\n\n`;

/** The bytes of one word. */
function part(word) {
  const fixed = {
    hb: ": hb\n",
    beat: "event: keepalive\ndata: {}\n\n",
    plain: "data: {}\n\n",
    error: 'data: {"error":{"code":"max_duration"}}\n\n',
  };
  if (word in fixed) return fixed[word];
  const [, kind, size, n, last] = /^([a-z]*?)(?:(\d+):)?(\d+)(!?)$/.exec(word);
  if (kind === "retry") return `id: ${STREAM}.${n}\nretry: ${size}\ndata: {}\n\n`;
  if (kind === "big") return frame(n, "x".repeat(Number(size)));
  if (kind === "fill") return `data: ${"x".repeat(Number(n))}`;
  if (kind === "half") return frame(n).slice(0, 9);
  if (kind === "other") return frame(n, "{}", OTHER);
  if (kind === "stop") return `id: ${STREAM}.${n}\nevent: message_stop\ndata: {}\n\n`;
  if (kind === "e") return `id: ${STREAM}.${n}e\ndata: [DONE]\n\n`;
  return frame(n, last ? "[DONE]" : "{}");
}
const body = (words) => words.split(" ").filter(Boolean).map(part).join("");

function timeOut() {
  return Object.assign(new TypeError("fetch failed"), {
    cause: Object.assign(new Error("slow"), { name: "HeadersTimeoutError" }),
  });
}
const broken = (word) => (word === "slow" ? timeOut() : new TypeError(BREAKS[word]));

function answer(step, clock) {
  if (typeof step === "string") throw broken(step);
  const { status, headers, parts } = Array.isArray(step) ? { status: 200, headers: {}, parts: step } : step;
  const all = new Headers(parts ? HEAD : {});
  if (step.type) all.set("content-type", step.type);
  if (step.stream) all.set("relay-stream-id", step.stream === "same" ? STREAM : OTHER);
  if (step.retry_after) all.set("retry-after", step.retry_after);
  for (const [name, value] of Object.entries(headers ?? {})) all.set(name, value);
  const text = "code" in step ? JSON.stringify({ error: { message: "sk-secret", code: step.code } }) : step.text;
  if (status === 204) return new Response(null, { status, headers: all });
  if (text !== undefined) return new Response(text, { status, headers: all });
  const left = [...(parts ?? [])];
  const pull = (controller) => {
    for (;;) {
      const word = left.shift();
      if (word === undefined) return controller.close();
      if (word in BREAKS) return controller.error(broken(word));
      if (word[0] !== "+") return controller.enqueue(new TextEncoder().encode(body(word)));
      clock.now += Number(word.slice(1)) * 1000;
    }
  };
  return new Response(new ReadableStream({ pull }, { highWaterMark: 0 }), { status, headers: all });
}

async function play(wanted) {
  const [clock, waits, requests, told] = [{ now: 0 }, [], [], []];
  let steps = [];
  const native = async (url, init) => {
    requests.push({ url: new URL(url), headers: new Headers(init.headers) });
    return answer(steps.shift(), clock);
  };
  const sleep = async (ms) => {
    waits.push(ms / 1000);
    clock.now += ms;
  };
  const on =
    (name) =>
    ({ lastEventId }) =>
      told.push(`${name} ${lastEventId.split(".")[1]}`);
  const settings = Object.entries(wanted.policy ?? {}).map(([name, value]) => SETTINGS[name](value));
  const fetch = resumingFetch(native, {
    ...{
      random: () => 1,
      now: () => clock.now,
      sleep,
      onCut: on("cut"),
      onResume: on("resume"),
      onGaveUp: on("gave_up"),
    },
    ...(wanted.base_urls && { baseUrls: wanted.base_urls }),
    ...(wanted.fresh && { headers: () => ({ authorization: `Bearer ${requests.length}` }) }),
    ...Object.assign({}, ...settings),
  });
  const headers = Object.fromEntries(Object.entries(wanted.headers ?? {}).map(([name, value]) => [name, named(value)]));
  const post = { method: "POST", headers, body: '{"model": "m", "stream": true}' };
  const ask = async () => {
    const seen = { status: 0, text: "", error: null };
    try {
      const response = wanted.get
        ? await fetch(`http://relay.test${named(wanted.get)}`, { headers })
        : await fetch(`http://relay.test${PATHS[wanted.api ?? "chat"]}`, post);
      seen.status = response.status;
      const [reader, decoder] = [response.body?.getReader(), new TextDecoder()];
      for (let read; reader && !(read = await reader.read()).done;) seen.text += decoder.decode(read.value);
    } catch (error) {
      seen.error = error;
    }
    return seen;
  };
  if (wanted.known) {
    steps = [["1!"]];
    await fetch(`http://relay.test${PATHS.chat}`, { method: "POST", body: '{"stream": true}' }).then((one) =>
      one.text(),
    );
    requests.length = 0;
    clock.now = 0;
  }
  steps = [...wanted.script];
  let seen;
  for (let n = 0; n < (wanted.requests ?? 1); n += 1) seen = await ask();
  assert.deepEqual(steps, [], "not all of the script was asked for");
  checkError(wanted.error ?? null, seen.error);
  assert.equal(seen.status, wanted.status ?? 200);
  if (wanted.seen !== null) assert.equal(seen.text, body(wanted.seen));
  checkRequests(wanted, requests);
  if (wanted.waits) assert.deepEqual(waits, wanted.waits);
  if (wanted.told) assert.deepEqual(told, wanted.told);
  const { gaveUp: gave_up, ...rest } = fetch.counters;
  if (wanted.counters) assert.deepEqual({ ...rest, gave_up }, wanted.counters);
}

function checkError(wanted, error) {
  if (wanted === null) return assert.equal(error, null);
  if (wanted.own) return assert.equal(error?.message, wanted.own === "slow" ? "fetch failed" : wanted.own);
  assert.ok(error instanceof ResumeError, `${error}`);
  assert.ok(!error.message.includes("sk-secret"));
  // A refusal that ended the tries is the cause of what is thrown.
  const code = error.reason === "refused" ? error.code : (error.cause?.code ?? null);
  const found = { reason: error.reason, status: error.status, code, last: error.lastEventId.split(".")[1] };
  for (const [name, value] of Object.entries(wanted)) assert.equal(found[name], value, name);
}

function checkRequests({ asked, keys, hosts, paths, credentials }, requests) {
  const all = (name) => requests.map(({ headers }) => headers.get(name));
  if (asked)
    assert.deepEqual(
      all("last-event-id").map((id) => id && id.split(".")[1]),
      asked,
    );
  const letters = new Map([[null, "-"]]);
  const letter = (key) => letters.get(key) ?? letters.set(key, String.fromCharCode(96 + letters.size)).get(key);
  if (keys) assert.equal(all("idempotency-key").map(letter).join(""), keys);
  if (hosts)
    assert.deepEqual(
      requests.map(({ url }) => url.host),
      hosts,
    );
  if (paths)
    assert.deepEqual(
      requests.map(({ url }) => url.pathname + url.search),
      paths.map(named),
    );
  if (credentials) assert.deepEqual(all("authorization"), credentials);
}

const found = {};
for (const wanted of JSON.parse(readFileSync(JSON.parse(process.argv[2]), "utf8"))) {
  found[wanted.name] = await play(wanted).then(
    () => null,
    (error) => `${error.stack ?? error}`,
  );
}
console.log(JSON.stringify(found));
