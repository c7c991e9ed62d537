// One case of what needs no server: node unit.mjs '"name"'. Prints true, or fails with what was wrong.

import assert from "node:assert/strict";
import { ResumeError, resume, resumeErrorOf, resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

const STREAM = "st_0123456789abcdefghijkl";
const bytes = (text) => new TextEncoder().encode(text);
const text = (parts) => new TextDecoder().decode(Buffer.concat(parts));
const frame = (n, data) => `id: ${STREAM}.${n}\ndata: ${data}\n\n`;
const HEAD = { "relay-stream-id": STREAM, "relay-resumable": "true", "content-type": "text/event-stream" };
const POST = { method: "POST", body: '{"stream": true}' };
const URL = "http://relay.test/v1/chat/completions";

/** What the connections bring in turn: chunks of a body, which an Error ends; another answer; or an Error. */
function connections(...bodies) {
  const [asked, waits, requests] = [[], [], []];
  const read = { chunks: 0 };
  const fetch = async (...request) => {
    requests.push(request);
    asked.push(Object.fromEntries(new Headers(request[1]?.headers)));
    const body = bodies.shift();
    if (body instanceof Error) throw body;
    if (!Array.isArray(body)) return body;
    const chunks = [...body];
    const pull = (controller) => {
      const next = chunks.shift();
      if (next === undefined) return controller.close();
      if (next instanceof Error) return controller.error(next);
      read.chunks += 1;
      controller.enqueue(typeof next === "string" ? bytes(next) : next);
    };
    return new Response(new ReadableStream({ pull }, { highWaterMark: 0 }), { headers: HEAD });
  };
  const sleep = async (ms) => void waits.push(ms);
  const settings = { sleep, maxAttempts: 3, random: () => 0 };
  const post = (options) => resumingFetch(fetch, { ...settings, ...options })(URL, POST);
  const wrapping = (options) => resumingFetch(fetch, { ...settings, ...options });
  const bare = (options, init = POST) => resumingFetch(fetch, { random: () => 0, ...options })(URL, init);
  return { asked, waits, requests, read, wrapped: wrapping(), with: wrapping, bare, post };
}

async function until(happened) {
  while (!happened()) await new Promise((resolve) => setTimeout(resolve, 5));
}

async function all(body) {
  const parts = [];
  for await (const part of body) parts.push(part);
  return parts;
}

const CASES = {
  async lines_end_at_lf_crlf_and_cr_wherever_the_bytes_are_cut() {
    for (const end of ["\n", "\r\n", "\r"]) {
      const events = [
        [`id: ${STREAM}.1`, "retry: 700", "event: a", "data: Zürich\u2028über\u0085alles", "data:東京 🎉", "", ""],
        ["id", "event", "retry: soon", ""],
        [": a comment", ""],
        [": before an event", `id:${STREAM}.2`, ": in it", "data:  two", "", ""],
      ].map((lines) => lines.join(end));
      events[1] += end;
      const whole = bytes(events.join(""));
      for (let size = 1; size <= whole.length; size += 1) {
        const cut = [];
        for (let at = 0; at < whole.length; at += size) cut.push(whole.subarray(at, at + size));
        const { asked, waits, post } = connections([...cut, new TypeError("lost")], [frame(3, "[DONE]")]);
        const parts = await all((await post()).body);
        // A comment needs no blank line to go out; a CR is an end whether or not its LF comes, which may come later.
        assert.deepEqual(
          parts.map((part) => text([part]).trim()),
          [events[0], events[1], ": a comment", ": before an event", events[3].slice(events[3].indexOf("id:"))]
            .concat(frame(3, "[DONE]"))
            .map((event) => event.trim()),
        );
        const late = end === "\r\n" && !text(parts.slice(0, -1)).endsWith("\n") ? "\n" : "";
        assert.equal(text(parts.slice(0, -1)) + late, text([whole]));
        assert.equal(asked[1]["last-event-id"], `${STREAM}.2`);
        assert.deepEqual(waits, [700]);
      }
    }
  },

  async a_comment_goes_out_before_its_event_is_whole() {
    const { post } = connections([": hb\nid: x", "\n: inside\n", new TypeError("lost")], [frame(1, "[DONE]")]);
    const reader = (await post()).body.getReader();
    assert.equal(text([(await reader.read()).value]), ": hb\n");
    assert.equal(text([(await reader.read()).value]), frame(1, "[DONE]"));
  },

  async a_server_that_is_not_known_gets_the_very_request() {
    for (const init of [POST, { ...POST, headers: { a: "b" }, signal: AbortSignal.timeout(60_000) }]) {
      const answer = Response.json({});
      const { requests, wrapped } = connections(answer);
      assert.equal(await wrapped(URL, init), answer);
      assert.deepEqual(requests, [[URL, init]]);
      assert.equal(requests[0][1], init);
    }
  },

  async only_a_stream_that_can_be_resumed_proves_a_relay() {
    const other = { ...HEAD, "relay-resumable": "false" };
    const { asked, wrapped } = connections(
      new Response("data: {}\n\n", { headers: other }),
      [frame(1, "[DONE]")],
      [frame(1, "[DONE]")],
      [frame(1, "[DONE]")],
      [frame(1, "[DONE]")],
    );
    await wrapped(URL, POST);
    await wrapped(URL, POST);
    await wrapped("http://other.test/v1/chat/completions", POST);
    await wrapped("http://relay.test/other/v1/chat/completions", POST);
    await wrapped("http://relay.test/v1/messages", POST);
    assert.deepEqual(
      asked.map((headers) => "idempotency-key" in headers),
      [false, false, false, false, true],
    );
  },

  async a_request_that_lost_its_key_is_not_repeated() {
    const refusal = () => Response.json({ error: { code: "store_unavailable" } }, { status: 503 });
    for (const last of [new TypeError("lost"), refusal()]) {
      const { asked, post } = connections(refusal(), last, [frame(1, "[DONE]")]);
      if (last instanceof Error) await assert.rejects(post({ assumeRelay: true }), last);
      else assert.equal(await post({ assumeRelay: true }), last);
      assert.deepEqual(
        asked.map((headers) => "idempotency-key" in headers),
        [true, false],
      );
    }
  },

  async another_503_is_whole_when_it_comes_back() {
    const { asked, post } = connections(Response.json({ error: { code: "overloaded" } }, { status: 503 }));
    assert.deepEqual(await (await post({ assumeRelay: true })).json(), { error: { code: "overloaded" } });
    assert.equal(asked.length, 1);
  },

  async what_is_lost_before_the_head_is_repeated_within_the_bounds() {
    const lost = () => new TypeError("lost");
    const { asked, post } = connections(lost(), lost(), lost(), lost(), [frame(1, "[DONE]")]);
    await assert.rejects(post({ assumeRelay: true }), { message: "lost" });
    assert.equal(asked.length, 4);
    assert.equal(new Set(asked.map((headers) => headers["idempotency-key"])).size, 1);
  },

  async a_refusal_that_never_ends_is_left_after_a_moment() {
    const begun = performance.now();
    const drip = () => {
      const pull = (controller) =>
        new Promise((resolve) => setTimeout(resolve, 50)).then(() => controller.enqueue(bytes("x")));
      return new Response(new ReadableStream({ pull }), { status: 503 });
    };
    const flood = () =>
      new Response(new ReadableStream({ pull: (one) => one.enqueue(new Uint8Array(16_384)) }), { status: 503 });
    const { post, waits } = connections([frame(1, "{}"), new TypeError("lost")], flood(), drip(), [frame(2, "[DONE]")]);
    assert.equal(await (await post()).text(), frame(1, "{}") + frame(2, "[DONE]"));
    assert.equal(waits.length, 3);
    assert.ok(performance.now() - begun < 5000);
    const { post: head } = connections(flood());
    const answer = await head({ assumeRelay: true });
    assert.equal(answer.status, 503);
    await answer.body.cancel();
  },

  async a_wait_longer_than_a_timer_is_not_one_of_no_time() {
    const pull = async (controller) => {
      await new Promise((resolve) => setTimeout(resolve, 100));
      controller.enqueue(bytes(frame(1, "{}")));
      controller.error(new TypeError("lost"));
    };
    const slow = new Response(new ReadableStream({ pull }, { highWaterMark: 0 }), { headers: HEAD });
    const later = new Response("", { status: 503, headers: { "retry-after": "9999999" } });
    const { asked, bare } = connections(slow, later, [frame(2, "[DONE]")]);
    const controller = new AbortController();
    const options = { maxElapsedMs: 2 ** 50, silenceMs: 2 ** 42 };
    const reader = (await bare(options, { ...POST, signal: controller.signal })).body.getReader();
    assert.equal(text([(await reader.read()).value]), frame(1, "{}"));
    const next = reader.read();
    await until(() => asked.length === 2);
    await new Promise((resolve) => setTimeout(resolve, 200));
    assert.equal(asked.length, 2);
    controller.abort(new Error("enough"));
    await assert.rejects(next, { message: "enough" });
  },

  async a_living_stream_is_not_left_before_its_heartbeat() {
    const slow = async (ms) => {
      const { asked, post } = connections(slowly(ms), [frame(1, "[DONE]")]);
      await (await post({ silenceMs: 20 })).text();
      return asked.length;
    };
    const slowly = (ms, heartbeat) => {
      const pull = async (controller) => {
        await new Promise((resolve) => setTimeout(resolve, ms));
        controller.enqueue(bytes(frame(1, "[DONE]")));
        controller.close();
      };
      return new Response(new ReadableStream({ pull }, { highWaterMark: 0 }), { headers: { ...HEAD, ...heartbeat } });
    };
    const heard = connections(slowly(300, { "relay-heartbeat": "0.1" }));
    assert.equal(await (await heard.post({ silenceMs: 20 })).text(), frame(1, "[DONE]"));
    assert.equal(heard.asked.length, 1);
    assert.equal(await slow(300), 2);
  },

  async a_request_whose_body_is_made_while_it_is_sent_passes_through() {
    const never = new ReadableStream({ pull: () => new Promise(() => {}) });
    const request = new Request(URL, { method: "POST", body: never, duplex: "half" });
    const answer = Response.json({});
    const { requests, wrapped } = connections(answer);
    assert.equal(await wrapped(request), answer);
    assert.deepEqual(requests, [[request, undefined]]);
    const whole = new Request(URL, { method: "POST", body: '{"stream": true}' });
    const { asked, wrapped: again } = connections([frame(1, "{}"), new TypeError("lost")], [frame(2, "[DONE]")]);
    const response = await again(whole);
    assert.equal(await response.text(), frame(1, "{}") + frame(2, "[DONE]"));
    assert.equal(asked[1]["last-event-id"], `${STREAM}.1`);
  },

  async a_clone_has_the_address_too() {
    const first = new Response(frame(1, "[DONE]"), { headers: HEAD });
    Object.defineProperty(first, "url", { value: URL });
    const response = await connections(first).post();
    const clone = response.clone().clone();
    assert.deepEqual([response.url, clone.url], [URL, URL]);
    assert.equal(await clone.text(), frame(1, "[DONE]"));
  },

  async the_global_fetch_is_that_of_the_moment() {
    const fetch = resumingFetch();
    const before = globalThis.fetch;
    globalThis.fetch = async () => new Response("mine");
    try {
      assert.equal(await (await fetch("http://relay.test/")).text(), "mine");
    } finally {
      globalThis.fetch = before;
    }
  },

  async a_failure_is_found_in_what_an_sdk_makes_of_it_and_read_on_from() {
    const cut = connections(
      [frame(1, "{}"), new TypeError("lost")],
      Response.json({ error: { code: "stream_expired" } }, { status: 410 }),
    );
    const failure = await (await cut.post()).text().catch((error) => error);
    assert.ok(failure instanceof ResumeError);
    assert.equal(resumeErrorOf(new Error("Connection error.", { cause: new Error("x", { cause: failure }) })), failure);
    assert.equal(resumeErrorOf(new Error("x")), null);
    assert.deepEqual(resume(failure.lastEventId), { headers: { "last-event-id": `${STREAM}.1` } });
    assert.throws(() => resume("17"), TypeError);
    const rest = connections([frame(2, "[DONE]")]);
    const response = await rest.wrapped(URL, { ...POST, ...resume(failure.lastEventId) });
    assert.equal(await response.text(), frame(2, "[DONE]"));
  },

  async what_a_callback_throws_goes_no_further() {
    const error = console.error;
    const logged = [];
    console.error = (one) => logged.push(one.message);
    const onCut = () => {
      throw new Error("mine");
    };
    try {
      const { post } = connections([frame(1, "{}"), new TypeError("lost")], [frame(2, "[DONE]")]);
      assert.equal(await (await post({ onCut })).text(), frame(1, "{}") + frame(2, "[DONE]"));
    } finally {
      console.error = error;
    }
    assert.deepEqual(logged, ["mine"]);
  },

  async a_page_that_wakes_waits_no_longer_than_the_server_asks_for() {
    const heard = {};
    globalThis.addEventListener = (name, listener) => (heard[name] = listener);
    globalThis.removeEventListener = (name) => delete heard[name];
    const connection = (body) => new Response(body, { headers: HEAD });
    const hint = bytes(`id: ${STREAM}.1\nretry: 50\ndata: {}\n\n`);
    const fetches = [
      connection(new ReadableStream({ start: (one) => one.enqueue(hint) })),
      new TypeError("away"),
      connection(frame(2, "[DONE]")),
    ];
    const fetch = async () => {
      const next = fetches.shift();
      if (next instanceof Error) throw next;
      return next;
    };
    const options = { firstDelayMs: 60_000, longestDelayMs: 60_000, random: () => 1 };
    const response = await resumingFetch(fetch, options)(URL, POST);
    const reader = response.body.getReader();
    await reader.read();
    const next = reader.read();
    heard.pageshow({ persisted: false }); // a page that is only loaded
    assert.equal(fetches.length, 2);
    heard.pageshow({ persisted: true }); // the connection is left, and asked again after its `retry:`
    await until(() => fetches.length === 1);
    const since = performance.now();
    await new Promise(setImmediate);
    heard.online({}); // the wait of a minute ends
    assert.equal(text([(await next).value]), frame(2, "[DONE]"));
    assert.ok(performance.now() - since < 5000);
    assert.equal((await reader.read()).done, true);
    assert.deepEqual(heard, {});
  },

  async several_base_urls_keep_what_the_request_says() {
    const lost = new TypeError("lost");
    const found = connections([frame(1, "{}"), lost], lost, [frame(2, "[DONE]")]);
    const { requests, with: wrapping } = found;
    const wrapped = wrapping({ baseUrls: ["http://b.test/x/v1/"] });
    const request = new Request(URL, {
      method: "POST",
      body: '{"stream": true}',
      headers: { a: "b" },
      redirect: "error",
    });
    assert.equal(await (await wrapped(request)).text(), frame(1, "{}") + frame(2, "[DONE]"));
    const [url, init] = requests[2];
    assert.equal(url, "http://b.test/x/v1/chat/completions");
    assert.deepEqual(
      [init.method, init.redirect, init.headers.get("a"), text([init.body])],
      ["POST", "error", "b", POST.body],
    );
    assert.throws(() => resumingFetch(globalThis.fetch, { baseUrls: ["relay"] }), TypeError);
  },

  async nothing_is_read_before_it_is_asked_for() {
    const { read, post } = connections([frame(1, "{}") + frame(2, "{}"), frame(3, "{}"), frame(4, "[DONE]")]);
    const reader = (await post()).body.getReader();
    await new Promise(setImmediate);
    assert.equal(read.chunks, 0);
    const seen = [];
    for (const wanted of [1, 1, 2, 3]) {
      seen.push((await reader.read()).value);
      await new Promise(setImmediate);
      assert.equal(read.chunks, wanted);
    }
    assert.equal(text(seen), [1, 2, 3].map((n) => frame(n, "{}")).join("") + frame(4, "[DONE]"));
    assert.equal((await reader.read()).done, true);
  },

  async a_cancel_ends_a_read_that_brings_nothing() {
    let cancelled;
    const silent = new ReadableStream({ pull: () => new Promise(() => {}), cancel: (reason) => (cancelled = reason) });
    const { asked, post } = connections(new Response(silent, { headers: HEAD }));
    const reader = (await post({ silenceMs: Infinity })).body.getReader();
    const pending = reader.read();
    await reader.cancel("enough");
    assert.equal(cancelled, "enough");
    assert.equal((await pending).done, true);
    assert.equal(asked.length, 1);
  },

  async another_stream_in_the_place_of_this_one_is_noticed_by_its_head() {
    const head = { ...HEAD, "relay-stream-id": "st_another" };
    for (const other of [new Response(frame(2, "[DONE]"), { headers: head }), new Response(null, { status: 204 })]) {
      const { post } = connections([frame(1, "{}"), new TypeError("lost")], other);
      await assert.rejects((await post()).text(), { name: "ResumeError", code: "wrong_stream" });
    }
  },

  async what_went_on_without_ids_cannot_be_resumed_and_says_so() {
    const { asked, post } = connections([frame(1, "{}"), "data: {}\n\n".repeat(20), new TypeError("lost")]);
    await assert.rejects((await post()).text(), { code: "without_ids", cause: new TypeError("lost") });
    assert.equal(asked.length, 1);
  },

  async an_end_that_the_relay_tells_takes_no_number() {
    const [error, done] = ['data: {"error":{"code":"max_duration"}}\n\n', `id: ${STREAM}.1e\ndata: [DONE]\n\n`];
    const whole = connections([frame(1, "{}"), error + done, new TypeError("lost")]);
    assert.equal(await (await whole.post()).text(), frame(1, "{}") + error + done);
    assert.equal(whole.asked.length, 1);
    const cut = connections([frame(1, "{}"), error, new TypeError("lost")], [frame(1, "{}") + error, done]);
    assert.equal(await (await cut.post()).text(), frame(1, "{}") + error + done);
    assert.equal(cut.asked[1]["last-event-id"], `${STREAM}.1`);
    const early = connections([done]);
    await assert.rejects((await early.post()).text(), { code: "wrong_stream" });
  },

  async frames_without_an_id_that_are_told_otherwise_are_an_error() {
    const cut = [frame(1, "{}"), "data: {}\n\n", new TypeError("lost")];
    for (const then of ["data: 2\n\n", frame(2, "[DONE]"), `id: ${STREAM}.1e\ndata: [DONE]\n\n`]) {
      await assert.rejects((await connections(cut, [then]).post()).text(), { code: "without_ids" });
    }
    const nothing = new Response(null, { status: 204, headers: HEAD });
    await assert.rejects((await connections(cut, nothing).post()).text(), { code: "without_ids" });
  },

  async a_key_in_flight_and_a_log_that_is_behind_are_waited_for() {
    const refusal = (status, code) => Response.json({ error: { code } }, { status, headers: { "retry-after": "3" } });
    const inFlight = () => refusal(409, "idempotency_key_in_flight");
    const first = connections(inFlight(), [frame(1, "[DONE]")]);
    assert.equal(await (await first.post({ assumeRelay: true })).text(), frame(1, "[DONE]"));
    assert.deepEqual(first.waits, [3000]);
    assert.equal(new Set(first.asked.map((headers) => headers["idempotency-key"])).size, 1);
    const lost = new TypeError("lost");
    const behind = connections([lost], refusal(503, "store_behind"), inFlight(), [frame(1, "[DONE]")]);
    assert.equal(await (await behind.post()).text(), frame(1, "[DONE]"));
    assert.deepEqual(behind.waits, [0, 3000, 3000]);
    const other = connections(refusal(409, "conflict"));
    assert.equal((await other.post({ assumeRelay: true })).status, 409);
  },

  async a_ping_without_an_id_is_none_of_the_streams() {
    const ping = 'event: ping\ndata: {"type":"ping"}\n\n';
    const { asked, post } = connections([frame(1, "{}"), ping, new TypeError("lost")], [frame(2, "[DONE]")]);
    assert.equal(await (await post()).text(), frame(1, "{}") + ping + frame(2, "[DONE]"));
    assert.equal(asked[1]["last-event-id"], `${STREAM}.1`);
  },

  async a_cut_after_the_last_event_is_the_end() {
    for (const last of ["[DONE]", '{"error": {"code": "x"}}']) {
      const { asked, post } = connections([frame(1, last), new TypeError("lost")]);
      assert.equal(await (await post()).text(), frame(1, last));
      assert.equal(asked.length, 1);
    }
  },

  async what_only_looks_like_the_last_event_is_not() {
    const data = '{"choices":[{"delta":{"content":"[DONE]"},"error":null}],"error":null}';
    const { post } = connections([frame(1, data), new TypeError("lost")], [frame(2, "[DONE]")]);
    assert.equal(await (await post()).text(), frame(1, data) + frame(2, "[DONE]"));
  },

  async what_came_already_is_dropped_and_a_hole_is_an_error() {
    const cut = [frame(1, "{}"), frame(2, "{}"), "id: st_half", new TypeError("lost")];
    const twice = connections(cut, [frame(1, "{}") + frame(2, "{}") + frame(3, "[DONE]")]);
    assert.equal(await (await twice.post()).text(), frame(1, "{}") + frame(2, "{}") + frame(3, "[DONE]"));
    const hole = connections(cut, [frame(4, "[DONE]")]);
    await assert.rejects((await hole.post()).text(), { name: "ResumeError", code: "wrong_stream" });
  },
};

const name = JSON.parse(process.argv[2]);
if (name === "names") console.log(JSON.stringify(Object.keys(CASES)));
else {
  await CASES[name]();
  console.log("true");
}
