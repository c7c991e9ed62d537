// The EventSource of the client, fed by hand: node events.mjs. Prints {"name of a case": null or what was wrong}.

import assert from "node:assert/strict";
import { RelayEventSource } from "../../../relay/client/js/events.js";

const STREAM = "st_0123456789abcdefghijkl";
const HEAD = { "content-type": "text/event-stream", "relay-stream-id": STREAM, "relay-resumable": "true" };
const URL_ = "http://app.test/api/runs";
const OVER = new Response(null, { status: 204, headers: { "relay-stream-id": STREAM } });
const frame = (n, lines) => `id: ${STREAM}.${n}\n${lines}\n\n`;
const [LOST, HANG] = [new TypeError("terminated"), Symbol("hang")];

/** What the connections bring in turn: texts of a body, which an Error ends; another answer; or an Error. */
function connections(...bodies) {
  const requests = [];
  const fetch = async (url, init) => {
    init.signal?.throwIfAborted();
    requests.push({ url, ...init, headers: Object.fromEntries(new Headers(init.headers)) });
    const body = init.method === "DELETE" ? new Response(null, { status: 204 }) : bodies.shift();
    if (body instanceof Error) throw body;
    if (!Array.isArray(body)) return body.clone();
    const [head, parts] = body[0] && typeof body[0] === "object" && !(body[0] instanceof Error)
      ? [body[0], body.slice(1)]
      : [HEAD, [...body]];
    const start = (controller) => init.signal?.addEventListener("abort", () => controller.error(init.signal.reason));
    const pull = (controller) => {
      const next = parts.shift();
      if (next === HANG) return new Promise(() => {});
      if (next === undefined) return controller.close();
      if (next instanceof Error) return controller.error(next);
      controller.enqueue(typeof next === "string" ? new TextEncoder().encode(next) : next);
    };
    return new Response(new ReadableStream({ start, pull }, { highWaterMark: 0 }), { headers: head });
  };
  const sleep = async (ms, signal) => {
    await new Promise((resolve) => setTimeout(resolve, 1));
    signal?.throwIfAborted();
  };
  const open = (options) => new RelayEventSource(URL_, { fetch, sleep, ...options });
  return { requests, open, fetch };
}

/** All that a source dispatches to these names until it is over: [type, name, data, id] of events, type of the rest. */
async function heard(source, ...names) {
  const seen = [];
  for (const name of names) {
    source.addEventListener(name, (event) => {
      seen.push(event.data === undefined ? event.type : [event.type, event.name, event.data, event.lastEventId]);
    });
  }
  await source.finished;
  return seen;
}

async function until(happened) {
  for (let tries = 0; !happened(); tries += 1) {
    assert(tries < 2000, `this did not come true: ${happened}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const CASES = {
  async events_of_any_name_are_heard_by_name_and_by_all() {
    const { open } = connections([frame(1, "event: tool\ndata: a\ndata: b"), frame(2, "data: c"), frame(3, "event: *\ndata: d")], OVER);
    const source = open();
    const all = heard(source, "*");
    const seen = await heard(source, "tool", "message", "open", "error");
    assert.deepEqual(seen, ["open", ["tool", "tool", "a\nb", `${STREAM}.1`], ["message", "message", "c", `${STREAM}.2`], "error"]);
    assert.deepEqual((await all).map(([, name, data]) => [name, data]), [["tool", "a\nb"], ["message", "c"], ["*", "d"]]);
    assert.equal(source.readyState, source.CLOSED);
    assert.equal(source.lastEventId, `${STREAM}.3`);
  },

  async handlers_are_called_as_an_event_sources_are() {
    const { open } = connections([frame(1, "data: a"), frame(2, "event: error\ndata: b")], OVER);
    const [source, seen] = [open(), []];
    source.onopen = ({ type }) => seen.push([type, source.readyState]);
    source.onmessage = ({ data, origin }) => seen.push([data, origin]);
    source.onerror = ({ data }) => seen.push([data ?? "over", source.readyState]);
    await source.finished;
    assert.deepEqual(seen, [["open", 1], ["a", ""], ["b", 1], ["over", 2]]);
  },

  async a_cut_is_told_and_gone_on_from_with_the_same_request() {
    const body = new FormData();
    body.set("question", "why");
    for (const [method, given] of [["POST", '{"a":1}'], ["POST", body], ["PUT", "x"], ["GET", undefined]]) {
      const { open, requests } = connections(
        [frame(1, "data: a"), frame(2, "event: b\ndata: b").slice(0, 30), LOST],
        [frame(2, "event: b\ndata: b")],
        OVER,
      );
      const source = open({ method, body: given, headers: { "x-csrf": "t" }, credentials: "include" });
      const seen = await heard(source, "*", "open", "error");
      const told = seen.map((one) => (typeof one === "string" ? one : one[2]));
      assert.deepEqual(told, ["open", "a", "error", "open", "b", "error"]);
      assert.deepEqual(requests.map(({ headers }) => headers["last-event-id"]), [undefined, `${STREAM}.1`, `${STREAM}.2`]);
      for (const asked of requests) {
        assert.deepEqual([asked.url, asked.method, asked.body ?? undefined], [URL_, method, given]);
        assert.deepEqual([asked.headers["x-csrf"], asked.credentials], ["t", "include"]);
        assert.equal(asked.headers.accept, "text/event-stream");
      }
      const keys = new Set(requests.map(({ headers }) => headers["idempotency-key"]));
      assert.deepEqual([keys.size, keys.has(undefined)], [1, method !== "POST"]);
    }
  },

  async an_end_is_asked_about_whatever_the_last_event_was() {
    for (const last of ["data: [DONE]", "event: message_stop\ndata: {}", "event: error\ndata: {}", 'data: {"type":"error"}']) {
      const { open, requests } = connections([frame(1, last)], [frame(2, "data: more")], OVER);
      const seen = await heard(open(), "*");
      assert.deepEqual(seen.at(-1).slice(2), ["more", `${STREAM}.2`]);
      assert.equal(requests.length, 3);
    }
  },

  async an_end_that_the_relay_tells_is_the_end() {
    const { open, requests } = connections([frame(1, "data: a"), frame("1e", "event: error\ndata: {}")]);
    assert.deepEqual((await heard(open(), "*")).map(([, name]) => name), ["message", "error"]);
    assert.equal(requests.length, 1);
  },

  async a_stream_by_its_id_or_name_goes_on_by_its_id() {
    for (const path of [`/streams/${STREAM}`, "/streams?name=chat-1", "/relay/streams?name=chat-1"]) {
      const { fetch, requests } = connections([frame(1, "data: a"), LOST], [frame(2, "data: b")], OVER);
      const source = new RelayEventSource(`http://app.test${path}`, { fetch, sleep: async () => {} });
      assert.equal((await heard(source, "message")).length, 2);
      const byId = `http://app.test${path.startsWith("/relay") ? "/relay" : ""}/streams/${STREAM}`;
      assert.deepEqual(requests.map(({ url }) => url), [`http://app.test${path}`, byId, byId]);
    }
  },

  async it_goes_on_after_the_id_that_it_is_given() {
    const { open, requests } = connections([frame(5, "data: e")], OVER);
    const source = open({ lastEventId: `${STREAM}.4` });
    assert.equal((await heard(source, "message")).length, 1);
    assert.equal(requests[0].headers["last-event-id"], `${STREAM}.4`);
  },

  async nothing_to_read_is_the_end() {
    const { open } = connections(new Response(null, { status: 204 }));
    assert.deepEqual(await heard(open(), "*", "open", "error"), ["error"]);
  },

  async it_comes_back_for_as_long_as_it_is_open() {
    const { open, requests } = connections(...Array(200).fill(LOST), [frame(1, "data: a"), LOST], ...Array(200).fill(LOST), OVER);
    let time = 0;
    const source = open({ now: () => time, sleep: async (ms) => void (time += Math.max(ms, 60_000)) });
    assert.equal((await heard(source, "message")).length, 1);
    assert.equal(requests.length, 402);
  },

  async a_refusal_ends_it_with_what_to_do() {
    const refused = { status: 401, headers: { "content-type": "application/json" } };
    for (const [answer, said] of [
      [new Response("{}", refused), /no event stream: 401, application\/json.*renew a refused credential/],
      [new Response("<html>", { headers: { "content-type": "text/html" } }), /no event stream: 200, text\/html/],
    ]) {
      const [source, errors] = [connections(answer).open(), []];
      source.onerror = ({ error }) => errors.push(error);
      await assert.rejects(source.finished, said);
      assert.match(errors[0].message, said);
      assert.equal(source.readyState, 2);
    }
  },

  async a_refused_resume_ends_it_with_the_relays_code() {
    const gone = new Response('{"error":{"code":"stream_expired"}}', { status: 410 });
    const source = connections([frame(1, "data: a"), LOST], gone).open();
    await assert.rejects(source.finished, ({ code, lastEventId }) => code === "stream_expired" && lastEventId === `${STREAM}.1`);
  },

  async a_stream_without_a_log_is_read_and_its_cut_is_said() {
    const plain = { "content-type": "text/event-stream" };
    const bytes = new TextEncoder().encode("\ufeffid: 7\r\ndata: Zürich\r\ndata\r\n\r\nevent: x\ndata\n\n: no\r\rdata:b\r\rdata: half");
    for (let size = 1; size < 9; size += 1) {
      const parts = [];
      for (let at = 0; at < bytes.length; at += size) parts.push(bytes.subarray(at, at + size));
      const seen = await heard(connections([plain, ...parts]).open(), "*");
      assert.deepEqual(seen.map((one) => one.slice(1)), [["message", "Zürich\n", "7"], ["x", "", "7"], ["message", "b", "7"]]);
    }
    await assert.rejects(connections([plain, "data: a\n\n", LOST]).open().finished, /no log to go on from/);
  },

  async close_leaves_and_stop_ends_the_generation() {
    for (const how of ["close", "stop"]) {
      const { open, requests } = connections([frame(1, "data: a"), HANG]);
      const [source, seen] = [open(), []];
      source.addEventListener("*", () => source[how]());
      source.addEventListener("error", () => seen.push("error"));
      await source.finished;
      if (how === "stop") await until(() => requests.length > 1);
      await new Promise((resolve) => setTimeout(resolve, 10));
      const ended = requests.slice(1).map(({ method, url }) => [method, url]);
      assert.deepEqual(ended, how === "stop" ? [["DELETE", `http://app.test/streams/${STREAM}`]] : []);
      assert.deepEqual([source.readyState, seen], [2, []]);
    }
  },

  async stop_before_the_answer_ends_the_generation_as_soon_as_it_is_known() {
    for (const how of ["close", "stop"]) {
      const { fetch, requests } = connections([frame(1, "data: a"), HANG]);
      let answer;
      const answered = new Promise((resolve) => (answer = resolve));
      let aborted = false;
      const late = async (url, init) => {
        if (init.method === "DELETE") return fetch(url, init);
        init.signal.addEventListener("abort", () => (aborted = true));
        await answered;
        return fetch(url, { ...init, signal: undefined });
      };
      const source = new RelayEventSource(URL_, { fetch: late, sleep: async () => {} });
      await new Promise((resolve) => setTimeout(resolve, 5));
      source[how]();
      await source.finished;
      assert.equal(source.readyState, 2);
      await new Promise((resolve) => setTimeout(resolve, 5));
      assert.equal(aborted, how === "close");
      answer();
      if (how === "stop") await until(() => requests.length === 2);
      await new Promise((resolve) => setTimeout(resolve, 10));
      assert.deepEqual(requests.slice(1).map(({ method }) => method), how === "stop" ? ["DELETE"] : []);
    }
  },

  async a_source_that_is_closed_says_nothing_more() {
    const { open } = connections([frame(1, "data: a") + frame(2, "data: b")]);
    const [source, seen] = [open(), []];
    source.addEventListener("message", ({ data }) => seen.push(data) && source.close());
    await source.finished;
    assert.deepEqual(seen, ["a"]);
    const early = open();
    early.close();
    await early.finished;
    assert.equal(early.readyState, 2);
  },

  async a_page_that_is_seen_again_comes_back_where_nothing_was_heard() {
    const page = Object.assign(new EventTarget(), { visibilityState: "hidden" });
    const network = new EventTarget();
    globalThis.document = page;
    globalThis.addEventListener = network.addEventListener.bind(network);
    globalThis.removeEventListener = network.removeEventListener.bind(network);
    const beating = { ...HEAD, "relay-heartbeat": "600" };
    const event = (type, more) => Object.assign(new Event(type), more);
    const visible = (state) => ((page.visibilityState = state), page.dispatchEvent(new Event("visibilitychange")));
    const now = Date.now;
    const RESTORED = { persisted: true };
    const LATER = 700_000;
    const turns = [
      // what happens, how much later, and whether it comes back
      [() => visible("hidden"), LATER, false],
      [() => visible("visible"), 0, false],
      [() => visible("visible"), LATER, true],
      [() => network.dispatchEvent(event("pageshow", { persisted: false })), LATER, false],
      [() => network.dispatchEvent(event("pageshow", RESTORED)), 0, true],
      [() => network.dispatchEvent(event("online")), 0, true],
    ];
    try {
      for (const [happen, later, comesBack] of turns) {
        const { open, requests } = connections([beating, frame(1, "data: a"), HANG], [frame(2, "data: b")], OVER);
        const source = open();
        const seen = [];
        source.addEventListener("message", ({ data }) => seen.push(data));
        await until(() => seen.length > 0);
        await new Promise((resolve) => setTimeout(resolve, 5));
        Date.now = () => now() + later;
        happen();
        if (comesBack) await source.finished;
        else await new Promise((resolve) => setTimeout(resolve, 20));
        Date.now = now;
        assert.deepEqual([seen.length, requests.length], comesBack ? [2, 3] : [1, 1], String(happen));
        source.close();
      }
    } finally {
      Date.now = now;
      for (const name of ["document", "addEventListener", "removeEventListener"]) delete globalThis[name];
    }
  },

  async a_request_without_an_answer_is_given_up_when_the_network_is_back() {
    const network = new EventTarget();
    globalThis.addEventListener = network.addEventListener.bind(network);
    globalThis.removeEventListener = network.removeEventListener.bind(network);
    try {
      for (const first of [true, false]) {
        const { fetch, requests } = connections(...(first ? [] : [[frame(1, "data: a"), LOST]]), [frame(first ? 1 : 2, "data: b")], OVER);
        let hangs = first;
        const silent = (url, init) => {
          const hung = hangs || (!first && requests.length === 1);
          if (!hung) return fetch(url, init);
          requests.push({ ...init, headers: Object.fromEntries(new Headers(init.headers)) });
          hangs = false;
          return new Promise((_, reject) => init.signal.addEventListener("abort", () => reject(init.signal.reason)));
        };
        const sleep = async () => {};
        const source = new RelayEventSource(URL_, { fetch: silent, sleep, method: "POST", body: "{}" });
        const seen = heard(source, "message");
        await until(() => requests.length === (first ? 1 : 2));
        network.dispatchEvent(new Event("online"));
        assert.deepEqual((await seen).at(-1).slice(2), ["b", `${STREAM}.${first ? 1 : 2}`]);
        assert.equal(new Set(requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
        assert.equal(requests.length, first ? 3 : 4);
      }
    } finally {
      for (const name of ["addEventListener", "removeEventListener"]) delete globalThis[name];
    }
  },

  async a_wait_ends_early_when_the_network_is_back() {
    const network = new EventTarget();
    globalThis.addEventListener = network.addEventListener.bind(network);
    globalThis.removeEventListener = network.removeEventListener.bind(network);
    const waits = [];
    const sleep = (ms, signal) => {
      waits.push(ms);
      if (ms === 0) return Promise.resolve();
      return new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
    };
    try {
      const { open, requests } = connections(LOST, [frame(1, "data: a"), LOST], [frame(2, "data: b")], OVER);
      const source = open({ sleep, random: () => 1 });
      for (let times = 1; times <= 2; times += 1) {
        await until(() => waits.filter((ms) => ms > 0).length === times);
        network.dispatchEvent(new Event("online"));
      }
      await source.finished;
      assert.equal(requests.length, 4);
    } finally {
      for (const name of ["addEventListener", "removeEventListener"]) delete globalThis[name];
    }
  },
};

const told = {};
for (const [name, play] of Object.entries(CASES)) {
  const late = new Promise((resolve) => setTimeout(resolve, 10_000, "it has taken too long"));
  told[name] = await Promise.race([play().then(() => null, (error) => String(error.stack)), late]);
}
console.log(JSON.stringify(told));
process.exit();
