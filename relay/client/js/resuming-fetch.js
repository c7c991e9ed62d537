/**
 * A `fetch` for LLM clients that goes on where a cut stream stopped: `new OpenAI({ fetch: resumingFetch() })`.
 *
 * A streaming POST to a relay (chat completions, messages, responses) then reads as one unbroken stream. Its body
 * hands out whole events only, byte for byte; after a cut the same request goes out again with `Last-Event-ID`, until
 * the API's last event.
 *
 * It promises: no event is handed out twice, out of order or in part; an end without the API's last event is asked
 * about, never taken for one; no cut leads to a second generation; whatever is no resumable stream of a relay passes
 * through as it is. It is one file without dependencies, for Node.js and browsers.
 */

/** What an API's last event is called, by the end of the API's path. */
const LAST_EVENT = {
  "/v1/chat/completions": /^(\[DONE\]|error)$/,
  "/v1/messages": /^(message_stop|error)$/,
  "/v1/responses": /^(\[DONE\]|response\.(completed|failed|incomplete)|error)$/,
};
const STREAM_ID = /^st_[\w-]+$/;
const EVENT_ID = /^(st_[\w-]+)\.(\d{1,15})$/;
const [LF, CR, COLON] = [10, 13, 58];
const GATEWAY = [502, 503, 504];

const BOUNDS = { maxAttempts: 10, maxElapsedMs: 120_000, firstDelayMs: 500, longestDelayMs: 15_000 };
const DEFAULTS = { ...BOUNDS, silenceMs: 60_000, assumeRelay: false, random: Math.random, sleep };

const NEW_ANSWER = "Send the request again for a new answer.";
const WHAT_TO_DO = {
  401: "Renew the credential and send the request again.",
  403: "Use the credential that started the stream.",
  stream_not_found: `Let all replicas behind the address share one store, and use one credential. ${NEW_ANSWER}`,
  wrong_stream: "Let POST requests with their Last-Event-ID, and answers with their Relay-Stream-Id, pass unchanged.",
  gave_up: "Send the request with this Last-Event-ID to read on, or raise maxAttempts and maxElapsedMs.",
};

/** The stream cannot go on. Thrown into the body's reader; the message says why and what to do. */
export class ResumeError extends Error {
  constructor(message, { code, status = null, lastEventId, cause }) {
    super(message, { cause });
    Object.assign(this, { name: "ResumeError", code, status, lastEventId });
  }
}

/**
 * @param {typeof globalThis.fetch} [fetch] what makes the requests
 * @param {import("./resuming-fetch.js").ResumingOptions} [options]
 * @returns {typeof globalThis.fetch}
 */
export function resumingFetch(fetch = globalThis.fetch, options = {}) {
  const settings = { ...DEFAULTS, ...options };
  const relays = new Set(); // addresses that have proved to be a relay's: only there a second POST joins the first
  return async (input, init) => {
    const post = await streamingPost(input, init ?? {});
    if (post === null) return fetch(input, init);
    const { address, body, headers, signal } = post;
    const send = (signal) => fetch(input, { ...init, body, headers: new Headers(headers), signal });
    const known = settings.assumeRelay || relays.has(address);
    const first = await (known ? joining(() => send(signal), post, new Tries(settings)) : fetch(input, init));
    const stream = streamOf(first);
    if (stream === null) return first;
    relays.add(address);
    const response = new Response(new Reading(settings, { ...post, send, stream }, first.body).body(), first);
    for (const name of ["url", "redirected", "type"]) Object.defineProperty(response, name, { value: first[name] });
    return response;
  };
}

/** The answer of a relay. A request that dies before it goes out again: its key joins what the first one began. */
async function joining(send, { headers, signal }, tries) {
  const ownKey = !headers.has("last-event-id") && !headers.has("idempotency-key");
  if (ownKey) headers.set("idempotency-key", newKey());
  for (;;) {
    let answer;
    try {
      answer = await send();
    } catch (error) {
      if (signal?.aborted || !(await tries.another(signal))) throw error;
      continue;
    }
    if (tries.count > 0 && GATEWAY.includes(answer.status)) {
      // What stands before a relay that is gone says so. The SDK's own retry would have another key, and pay again.
      if (!(await tries.another(signal, retryAfter(answer)))) return answer;
      answer.body?.cancel().catch(() => {});
    } else if (ownKey && answer.status === 503 && errorCode(await answer.clone().text()) === "store_unavailable") {
      // A relay without its store may stream without a log, but honours no key: so this request is not repeated.
      answer.body.cancel().catch(() => {});
      headers.delete("idempotency-key");
      return send();
    } else {
      return answer;
    }
  }
}

/** One stream, read over as many connections as it takes. */
class Reading {
  #hint = 0; // the stream's `retry:`
  #logged = true;
  #finished = false;
  #stopped = false;
  #attempt = new AbortController(); // of the request or the wait that is under way
  #settings;
  #post;
  #tries;
  #reader;
  #last;

  constructor(settings, post, body) {
    [this.#settings, this.#post, this.#tries, this.#reader] = [settings, post, new Tries(settings), body.getReader()];
    const asked = EVENT_ID.exec(post.headers.get("last-event-id"));
    this.#last = asked?.[1] === post.stream ? Number(asked[2]) : 0;
  }

  /** Nothing is read before it is asked for, so a slow client slows the sender down and fills no memory here. */
  body() {
    const events = this.#events();
    const pull = async (controller) => {
      const { value, done } = await events.next();
      if (done) controller.close();
      else controller.enqueue(value);
    };
    const cancel = (reason) => {
      this.#stop(reason);
      return events.return();
    };
    return new ReadableStream({ pull, cancel }, { highWaterMark: 0 });
  }

  async *#events() {
    const { signal } = this.#post;
    const onAbort = () => this.#stop(signal.reason);
    signal?.addEventListener("abort", onAbort);
    try {
      while (this.#reader) {
        const cut = yield* this.#connection();
        signal?.throwIfAborted();
        if (!this.#logged && !this.#finished && cut) throw cut;
        this.#reader = this.#finished || !this.#logged || this.#stopped ? null : await this.#again(cut);
      }
    } finally {
      signal?.removeEventListener("abort", onAbort);
      this.#stop();
    }
  }

  /** The whole events of one connection. Returns what cut it, null where it ended cleanly. */
  async *#connection() {
    const splitter = new Splitter();
    for (;;) {
      let read;
      try {
        read = await within(this.#settings.silenceMs, this.#reader.read());
      } catch (error) {
        this.#reader.cancel(error).catch(() => {});
        return error;
      }
      if (read.done) return null;
      for (const block of splitter.feed(read.value)) if (this.#takes(parse(block))) yield block;
    }
  }

  #takes({ kind, data, stream, n, retry }) {
    if (stream !== null) {
      if (stream !== this.#post.stream || n > this.#last + 1) throw this.#error("wrong_stream");
      if (n <= this.#last) return false;
      this.#last = n;
    } else if (data && kind !== "ping") {
      this.#logged = false; // the relay has lost its store: the stream goes on, but nobody can come back to it
    }
    this.#hint = retry ?? this.#hint;
    this.#finished ||= LAST_EVENT[this.#post.api].test(kind);
    this.#tries.count = 0; // a heartbeat is progress too
    return true;
  }

  /** A reader of what comes after the last event; null where that was all. Rejects with ResumeError. */
  async #again(cut) {
    const { stream, send, headers, signal: ours } = this.#post;
    let [least, status] = [0, null];
    // A clean end is most often the true one; but Node's fetch makes one of a loss after `Connection: close`.
    let soon = cut === null && this.#tries.count === 0;
    for (;;) {
      ours?.throwIfAborted();
      if (this.#stopped) return null;
      const { signal } = (this.#attempt = new AbortController());
      if (!(await this.#tries.another(signal, Math.max(least, this.#hint), soon)))
        throw this.#error("gave_up", status, cut);
      signal.throwIfAborted();
      headers.set("last-event-id", `${stream}.${this.#last}`);
      [least, status, soon] = [0, null, false];
      try {
        const response = await within(this.#settings.silenceMs, send(signal));
        ({ status } = response);
        if (status === 200 || status === 204) {
          const found = status === 200 ? streamOf(response) : response.headers.get("relay-stream-id");
          if (found !== stream) throw this.#error("wrong_stream", status);
          this.#tries.reached();
          return response.body?.getReader() ?? null;
        }
        const code = errorCode(await within(this.#settings.silenceMs, response.text()));
        cut = this.#error(code, status);
        if (status < 500 && ![408, 425, 429].includes(status)) throw cut;
        least = retryAfter(response);
      } catch (error) {
        signal.throwIfAborted();
        this.#attempt.abort(error);
        if (error instanceof ResumeError) throw error;
        cut = error;
      }
    }
  }

  #error(code, status = null, cause = undefined) {
    const lastEventId = `${this.#post.stream}.${this.#last}`;
    const advice = WHAT_TO_DO[code] ?? WHAT_TO_DO[status] ?? NEW_ANSWER;
    const why = [status, code, cause?.message].filter(Boolean).join(" ");
    const message = `The stream could not be resumed after event ${lastEventId} (${why}). ${advice}`;
    return new ResumeError(message, { code, status, lastEventId, cause });
  }

  #stop(reason) {
    this.#stopped = true;
    this.#attempt.abort(reason);
    this.#reader?.cancel(reason).catch(() => {});
  }
}

/** The tries since the last progress, and the waits before them: full jitter, never less than the server asks for. */
class Tries {
  count = 0;
  #since = null;
  #settings;

  constructor(settings) {
    this.#settings = settings;
  }

  /** The relay has answered: the outage is over, but nothing is gained yet. */
  reached() {
    this.#since = null;
  }

  /** Resolves when the next try is due, to false where there may be none. Rejects when the signal is aborted. */
  async another(signal, least = 0, soon = false) {
    const { maxAttempts, maxElapsedMs, firstDelayMs, longestDelayMs, random, sleep } = this.#settings;
    this.#since ??= performance.now();
    const wait = soon ? 0 : Math.max(least, random() * Math.min(longestDelayMs, firstDelayMs * 2 ** this.count));
    if (this.count >= maxAttempts || performance.now() - this.#since + wait > maxElapsedMs) return false;
    this.count += 1;
    signal?.throwIfAborted();
    if (!soon) await sleep(wait, signal);
    return true;
  }
}

/**
 * Cuts the bytes of one connection into events, and comments between events. What it holds is one unfinished event.
 * Lines end at LF, CRLF and CR only, and are looked for in bytes, because UTF-8 may be cut anywhere.
 */
class Splitter {
  #held = [];
  #line = 0; // bytes of the line so far
  #comments = true; // nothing but comment lines so far
  #before = 0;

  *feed(chunk) {
    let from = 0;
    for (let at = 0; at < chunk.length; at += 1) {
      const [byte, before] = [chunk[at], this.#before];
      this.#before = byte;
      if (byte === LF && before === CR) continue;
      if (byte !== LF && byte !== CR) {
        this.#comments &&= this.#line > 0 || byte === COLON;
        this.#line += 1;
      } else if (this.#line > 0 && !this.#comments) {
        this.#line = 0;
      } else {
        if (byte === CR && chunk[at + 1] === LF) this.#before = chunk[(at += 1)];
        yield joined([...this.#held, chunk.subarray(from, at + 1)]);
        [this.#held, this.#line, this.#comments, from] = [[], 0, true, at + 1];
      }
    }
    if (from < chunk.length) this.#held.push(chunk.subarray(from));
  }
}

/** `kind` is what LAST_EVENT judges; `stream` and `n` are the event's id, `stream` null where it has none. */
function parse(block) {
  const found = { kind: "", data: "", stream: null, n: 0, retry: null };
  for (const line of new TextDecoder().decode(block).split(/\r\n?|\n/)) {
    const [, name, value] = /^([^:]*):? ?([^]*)$/.exec(line);
    if (name === "data") found.data += `${found.data && "\n"}${value}`;
    else if (name === "event") found.kind = value;
    else if (name === "retry" && /^\d{1,9}$/.test(value)) found.retry = Number(value);
    else if (name === "id" && EVENT_ID.test(value)) [, found.stream, found.n] = EVENT_ID.exec(value);
  }
  found.n = Number(found.n);
  if (found.data === "[DONE]") found.kind = "[DONE]";
  else if (/"(error|message_stop|response\.(completed|failed|incomplete))"/.test(found.data)) {
    const body = json(found.data);
    found.kind = body?.error != null ? "error" : (body?.type ?? found.kind);
  }
  return found;
}

/** What has to be sent again after a cut; null for all but a streaming POST whose body can be sent again. */
async function streamingPost(input, init) {
  const request = input instanceof Request ? input : null;
  if ((init.method ?? request?.method ?? "").toUpperCase() !== "POST") return null;
  const target = [String(request?.url ?? input), globalThis.location?.href];
  if (!URL.canParse(...target)) return null;
  const { origin, pathname } = new URL(...target);
  const api = Object.keys(LAST_EVENT).find((suffix) => pathname.endsWith(suffix));
  if (!api) return null;
  const body = init.body ?? (request && new Uint8Array(await request.clone().arrayBuffer()));
  const bytes = body instanceof ArrayBuffer || ArrayBuffer.isView(body);
  if (json(bytes ? new TextDecoder().decode(body) : body)?.stream !== true) return null;
  const signal = init.signal === undefined ? request?.signal : init.signal;
  const address = origin + pathname.slice(0, -api.length);
  return { api, address, body, signal, headers: new Headers(init.headers ?? request?.headers) };
}

/** The id of the resumable stream that an answer begins, null for any other answer. */
function streamOf({ status, headers, body }) {
  const isStream = status === 200 && body && headers.get("content-type")?.startsWith("text/event-stream");
  const stream = headers.get("relay-stream-id");
  return isStream && headers.get("relay-resumable") === "true" && STREAM_ID.test(stream) ? stream : null;
}

/** The code of a refusal. Nothing else of it may get into an error: anything on the way may have written it. */
function errorCode(text) {
  const code = json(text)?.error?.code;
  return typeof code === "string" && /^\w{1,64}$/.test(code) ? code : "refused";
}

/** A date counts from the answer's own `Date`. */
function retryAfter({ headers }) {
  const value = headers.get("retry-after") ?? "";
  const ms = /^\d+$/.test(value) ? value * 1000 : Date.parse(value) - Date.parse(headers.get("date") ?? "");
  return Math.max(0, ms || 0);
}

/** A half-open connection is silent for ever, a live one carries the relay's heartbeats. */
function within(ms, promise) {
  if (!Number.isFinite(ms)) return promise;
  let timer;
  const silence = new Promise((_, reject) => (timer = setTimeout(reject, ms, new Error(`silence for ${ms} ms`))));
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const over = (settle) => () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      settle(signal?.reason);
    };
    const stop = over(reject);
    const timer = setTimeout(over(resolve), ms);
    signal?.addEventListener("abort", stop);
  });
}

/** Pages that came over plain HTTP have no `crypto.randomUUID`. */
const newKey = () => crypto.randomUUID?.() ?? crypto.getRandomValues(new Uint32Array(4)).join("-");

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

function json(text) {
  try {
    return typeof text === "string" ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}
