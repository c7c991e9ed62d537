// One case of what needs no server: node unit.mjs '"name"'. Prints true, or fails with what was wrong.

import assert from "node:assert/strict";
import { resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

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
    asked.push(Object.fromEntries(new Headers(request[1].headers)));
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
  return { asked, waits, requests, read, wrapped: resumingFetch(fetch, settings), post };
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
    assert.deepEqual(asked.map((headers) => "idempotency-key" in headers), [false, false, false, false, true]);
  },

  async a_request_that_lost_its_key_is_not_repeated() {
    const refusal = () => Response.json({ error: { code: "store_unavailable" } }, { status: 503 });
    for (const last of [new TypeError("lost"), refusal()]) {
      const { asked, post } = connections(refusal(), last, [frame(1, "[DONE]")]);
      if (last instanceof Error) await assert.rejects(post({ assumeRelay: true }), last);
      else assert.equal(await post({ assumeRelay: true }), last);
      assert.deepEqual(asked.map((headers) => "idempotency-key" in headers), [true, false]);
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

  async the_time_begins_anew_when_the_relay_is_reached() {
    let now = 0;
    Object.defineProperty(globalThis, "performance", { value: { now: () => now } });
    const options = { random: () => 1, maxElapsedMs: 2500, sleep: async (ms) => void (now += ms) };
    const lost = new TypeError("lost");
    const reached = connections([frame(1, "{}"), lost], [lost], [lost], [frame(2, "[DONE]")]);
    assert.equal(await (await reached.post(options)).text(), frame(1, "{}") + frame(2, "[DONE]"));
    assert.equal(now, 500 + 1000 + 2000);
    const unreached = connections([frame(1, "{}"), lost], lost, lost, [frame(2, "[DONE]")]);
    await assert.rejects((await unreached.post(options)).text(), { code: "gave_up" });
    assert.equal(unreached.asked.length, 3);
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
    const { asked, post } = connections([frame(1, "{}"), "data: {}\n\n", new TypeError("lost")]);
    await assert.rejects((await post()).text(), { message: "lost" });
    assert.equal(asked.length, 1);
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
