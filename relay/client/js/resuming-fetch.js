/**
 * A `fetch` for LLM clients that goes on where a cut stream stopped: `new OpenAI({ fetch: resumingFetch() })`.
 *
 * A streaming POST to a relay (chat completions, messages, responses), a stream read by its id and a retrieved response
 * then read as one unbroken stream. The body hands out whole events only, byte for byte; after a cut the same request
 * goes out again with `Last-Event-ID`, until the API's last event.
 *
 * It promises: no event is handed out twice, out of order or in part; an end without the API's last event is asked
 * about, never taken for one; no cut leads to a second generation; tries, time and what is held of a server are
 * bounded; whatever is no resumable stream of a relay passes through as it is. It is one file without dependencies, for
 * Node.js and browsers, and the same state machine as the Python client's
 * (relay/client/resumable_stream.py), on the same table of scripts (tests/client/cases.json).
 */

/** What an API's last event is called, by the end of the API's path. */
const LAST_EVENT = {
  "/v1/chat/completions": /^(\[DONE\]|error)$/,
  "/v1/messages": /^(message_stop|error)$/,
  "/v1/responses": /^(\[DONE\]|response\.(completed|failed|incomplete)|error)$/,
  any: /^(\[DONE\]|message_stop|response\.(completed|failed|incomplete)|error)$/,
  // Of an application's own stream only the relay knows the last event, but for the one format that says it in its head.
  own: /^(?!)/,
  "ui-messages": /^\[DONE\]$/,
};
const APIS = Object.keys(LAST_EVENT).filter((name) => name.startsWith("/"));
/** Bodies, other than text and bytes, that can be sent twice. */
const SENT_AGAIN = new Set(["FormData", "URLSearchParams", "Blob", "File"].map((name) => `[object ${name}]`));
const UI_MESSAGES = "x-vercel-ai-ui-message-stream";
const STREAM_ID = /^st_[\w-]+$/;
const EVENT_ID = /^(st_[\w-]+)\.(\d{1,15})(e?)$/;
const [LF, CR, COLON] = [10, 13, 58];
const GATEWAY = [502, 503, 504];
const IN_FLIGHT = "idempotency_key_in_flight";
/** Frames without an id that may have to be known again: an end has a few, a stream that goes on without ids many. */
const MAX_WITHOUT_ID = 16;
/** Types of events, without an id, that are none of the stream's. */
const HEARTBEATS = new Set(["ping", "keepalive"]);
/** How long a connection must have lived for its heartbeats to be progress. */
const STEADY_CONNECTION_MS = 5000;
/** What is read of a refusal, to find its code in it. */
const REFUSAL = { bytes: 65_536, ms: 2000 };
/** A longer timer is one of no time at all. */
const LONGEST_MS = 2 ** 31 - 1;
const MAX_LOST = 100;
/** A body that a request has whole is there at once; one that is made while it is sent may never be. */
const WHOLE_MS = 100;
/** How much later than announced a heartbeat of a connection that lives may be. */
const LATE_MS = 1000;

/** What whoever leaves gives the relay to hear of it. */
const STOP_MS = 5000;
/** How long who has left before the answer waits for its head, to stop what it began. */
const UNANSWERED_MS = 60_000;
const OF_A_BODY = ["content-type", "content-length", "content-encoding", "last-event-id", "idempotency-key", "prefer"];

const TIMES = { maxElapsedMs: 120_000, deadlineMs: Infinity, firstDelayMs: 500, longestDelayMs: 15_000 };
const BOUNDS = { maxAttempts: null, ...TIMES };
const FOR_TESTS = { random: Math.random, sleep: sleepFor, now: () => performance.now() };
const DEFAULTS = { ...BOUNDS, silenceMs: 60_000, maxEventBytes: 16_777_216, assumeRelay: false, stopOnAbort: false, anyStream: false, ...FOR_TESTS };

const NEW_ANSWER = "Send the request again for a new answer.";
const READ_ON = "The generation may go on: send the request with this Last-Event-ID to read on, or raise";
const WHAT_TO_DO = {
  401: "Renew the credential, or give `headers` that are made anew for each request.",
  403: "Use the credential that started the stream.",
  stream_not_found: `Let all replicas behind the address share one store, and use one credential. ${NEW_ANSWER}`,
  response_id_ambiguous: `Read GET /streams/{id} with the Relay-Stream-Id of its request. ${NEW_ANSWER}`,
  without_ids: `What came without an id cannot be asked for again, or is told otherwise than before. ${NEW_ANSWER}`,
  event_too_large: "Raise maxEventBytes where such events are meant.",
  wrong_stream: "Let POST requests with their Last-Event-ID, and answers with their Relay-Stream-Id, pass unchanged.",
  gave_up: `${READ_ON} maxAttempts.`,
  timed_out: `${READ_ON} maxElapsedMs or deadlineMs.`,
};

/** The stream cannot go on. Thrown into the body's reader; the message says why and what to do. */
export class ResumeError extends Error {
  constructor(message, { reason, code, status = null, lastEventId, cause }) {
    super(message, { cause });
    Object.assign(this, { name: "ResumeError", reason, code, status, lastEventId });
  }
}

/** The ResumeError that an SDK's error wraps, null where it was something else. */
export function resumeErrorOf(error) {
  for (let depth = 0; error && depth < 32; depth += 1, error = error.cause) {
    if (error instanceof ResumeError) return error;
  }
  return null;
}

/** The request options with which the same call goes on after this event, in another process too. */
export function resume(lastEventId) {
  if (!EVENT_ID.test(lastEventId)) throw new TypeError("this is no event id of a relay (<stream id>.<n>)");
  return { headers: { "last-event-id": lastEventId } };
}

/**
 * @param {typeof globalThis.fetch} [fetch] what makes the requests; by default the global one of the moment
 * @param {import("./resuming-fetch.js").ResumingOptions} [options]
 * @returns {import("./resuming-fetch.js").ResumingFetch}
 */
export function resumingFetch(fetch, options = {}) {
  const settings = { ...DEFAULTS, ...options };
  const native = fetch ?? ((...request) => globalThis.fetch(...request));
  const counters = { streams: 0, cuts: 0, attempts: 0, resumes: 0, gaveUp: 0 };
  const known = new KnownRelays(settings);
  const resuming = async (input, init) => {
    const asked = await requestToResume(input, init ?? {}, settings.anyStream);
    if (asked === null) return native(input, init);
    const request = new RequestPlan(native, input, init, asked, known);
    const ask = request.isRelay && settings.stopOnAbort && asked.signal ? firstResponseOrStop : firstResponse;
    const first = await (request.isRelay || settings.headers ? ask(request, settings) : native(input, init));
    const stream = resumableStreamId(first);
    if (stream === null) return first;
    known.add(asked.address);
    const api = asked.api === "own" && first.headers.has(UI_MESSAGES) ? "ui-messages" : asked.api;
    const state = new ResumableStream(settings, counters, { ...asked, api, stream, budget: request.budget });
    state.connected(first);
    const response = new Response(new StreamBody(settings, request, state, first.body, asked.signal).body(), first);
    return withUrlOf(response, first);
  };
  return Object.assign(resuming, { counters });
}

/** The answer to the first request. What dies before it goes out again: its key joins what the first one began. */
async function firstResponse(request, settings) {
  const { signal, budget } = request;
  for (;;) {
    let answer;
    try {
      answer = await (request.repeatable ? untilWake((own) => request.initialRequest(own), signal) : request.initialRequest());
    } catch (error) {
      request.lost = true;
      if (request.hasOthers) request.nextAddress();
      const wait = request.repeatable && !signal?.aborted && !isTimeOut(error) ? budget.nextWait() : null;
      if (wait === null) {
        request.rememberLost();
        throw error;
      }
      await sleepOrWake(settings, wait, budget.least, signal);
      continue;
    }
    const keyless = request.ownKey && answer.status === 503 && !request.lost;
    const later = request.repeatable && answer.status === 409;
    const code = keyless || later ? await codeOf(answer.clone()) : null;
    if (keyless && code === "store_unavailable") {
      // A relay without its store may stream without a log, but honours no key: so this request is not repeated.
      discardBody(answer);
      return request.requestWithoutKey();
    }
    const gateway = request.lost && request.repeatable && GATEWAY.includes(answer.status);
    // What stands before a relay that is gone says so. The SDK's own retry would have another key, and pay again.
    const repeats = gateway || (later && code === IN_FLIGHT);
    if (gateway) request.nextAddress();
    const wait = repeats ? budget.nextWait(retryAfter(answer)) : null;
    if (wait === null) {
      if (answer.status !== 200) request.rememberLost();
      return answer;
    }
    discardBody(answer);
    await sleepOrWake(settings, wait, budget.least, signal);
  }
}

/**
 * The answer to the first request, whose caller may leave before it begins: its generation is stopped then, too. The
 * request goes on for that, since nobody knows the stream before its head.
 */
async function firstResponseOrStop(request, settings) {
  const { signal } = request;
  signal.throwIfAborted();
  const late = new AbortController();
  request.signal = late.signal;
  const answer = firstResponse(request, settings);
  const leave = async () => {
    request.repeatable = false;
    const timer = setTimeout(() => late.abort(signal.reason), UNANSWERED_MS);
    answer.catch(() => {}).then(() => clearTimeout(timer));
    if (!(await isWanted(settings))) return late.abort(signal.reason);
    const first = await answer;
    const stream = resumableStreamId(first);
    discardBody(first);
    if (stream !== null) await request.stop(stream);
  };
  let onAbort;
  const left = new Promise((_, reject) => {
    onAbort = () => {
      reject(signal.reason);
      leave().catch(() => {});
    };
    signal.addEventListener("abort", onAbort);
  });
  try {
    return await Promise.race([answer, left]);
  } finally {
    signal.removeEventListener("abort", onAbort);
    if (!signal.aborted) signal.addEventListener("abort", () => late.abort(signal.reason)); // of the answer's body
  }
}

/** Whoever leaves is asked whether it is a stop. */
const isWanted = async ({ stopOnAbort }) => (typeof stopOnAbort === "function" ? stopOnAbort() : stopOnAbort);

/** What is known of the servers that were asked: which are relays, and what was lost a moment ago. */
class KnownRelays {
  #relays = new Set();
  #lost = [];

  constructor(settings) {
    this.settings = settings;
    this.bases = (settings.baseUrls ?? []).map((base) => String(base).replace(/\/+$/, "").replace(/\/v1$/, ""));
    for (const base of this.bases) this.#relays.add(parsed(base) ? base : throwBadBaseUrl(base));
  }

  isRelay(address) {
    return this.settings.assumeRelay || this.#relays.has(address);
  }

  add(address) {
    this.#relays.add(address);
  }

  /** The same request again, while the tries' time lasts, is the SDK's retry of the one that was lost. */
  rememberLost(what, key, budget) {
    const until = this.settings.now() + this.settings.maxElapsedMs;
    this.#lost = [...this.#current(), { what, key, budget, until }].slice(-MAX_LOST);
  }

  takeLost(what) {
    this.#lost = this.#current();
    const at = this.#lost.findIndex((lost) => lost.what === what);
    return at < 0 ? null : this.#lost.splice(at, 1)[0];
  }

  #current() {
    return this.#lost.filter(({ until }) => until > this.settings.now());
  }
}

/** The requests that are sent for one stream. */
class RequestPlan {
  lost = false;
  #native;
  #input;
  #init;
  #asked;
  #known;
  #addresses;
  #key = null;

  constructor(native, input, init, asked, known) {
    [this.#native, this.#input, this.#init, this.#asked, this.#known] = [native, input, init, asked, known];
    this.#addresses = [asked.address, ...known.bases.filter((base) => base !== asked.address)];
    this.signal = asked.signal;
    this.isRelay = known.isRelay(asked.address);
    this.repeatable = this.isRelay && ["GET", "POST"].includes(asked.method);
    this.budget = new RetryBudget(known.settings);
    this.resumes = asked.headers.has("last-event-id");
    this.ownKey = this.isRelay && this.#needsKey && !this.resumes;
    if (!this.ownKey) return;
    const lost = asked.text === null ? null : known.takeLost(this.#what);
    if (lost) [this.lost, this.budget] = [true, lost.budget];
    this.#key = lost?.key ?? newKey();
  }

  get hasOthers() {
    return this.#addresses.length > 1;
  }

  initialRequest(signal = this.signal) {
    return this.#send(signal, this.#asked.rest, this.isRelay ? { "accept-encoding": "identity" } : {});
  }

  requestWithoutKey() {
    [this.#key, this.ownKey, this.repeatable] = [null, false, false];
    return this.#send(this.signal, this.#asked.rest, {});
  }

  /** The request that goes on after this event; as it was at first where none has come. */
  resumeRequest(signal, stream, lastEventId) {
    // Where something on the way drops Last-Event-ID, the key joins what it began, once for all resumes.
    if (this.#needsKey) this.#key ??= newKey();
    const added = { "accept-encoding": "identity", ...(lastEventId && { "last-event-id": lastEventId }) };
    const byId = lastEventId && this.#asked.byId;
    return this.#send(signal, byId ? `/streams/${stream}` : this.#asked.rest, added);
  }

  /** Ends the generation. Whether the relay hears it or not, whoever has left goes on. */
  async stop(stream) {
    const native = this.#native;
    const headers = new Headers(this.#asked.headers);
    for (const [name, value] of new Headers(await this.#known.settings.headers?.())) headers.set(name, value);
    for (const name of OF_A_BODY) headers.delete(name);
    const url = `${this.#addresses[0]}/streams/${stream}${/\?.*$/.exec(this.#asked.rest)?.[0] ?? ""}`;
    const { credentials, mode } = this.#input instanceof Request ? this.#input : {};
    const { signal, body, duplex, ...init } = this.#init ?? {};
    const ending = new AbortController();
    const timer = setTimeout(() => ending.abort(), STOP_MS);
    const like = { ...(mode && { credentials, mode }), ...init };
    try {
      // A page that is left while it reads still gets this out.
      discardBody(await native(url, { ...like, method: "DELETE", headers, keepalive: true, signal: ending.signal }));
    } finally {
      clearTimeout(timer);
    }
  }

  /** What comes next goes to the next base URL, where there are several. */
  nextAddress() {
    this.#addresses.push(this.#addresses.shift());
  }

  rememberLost() {
    if (this.ownKey && this.lost && this.#asked.text !== null) this.#known.rememberLost(this.#what, this.#key, this.budget);
  }

  get #needsKey() {
    return this.#asked.method === "POST" && !this.#asked.headers.has("idempotency-key");
  }

  get #what() {
    const { address, rest, headers, text } = this.#asked;
    return [address, rest, headers.get("authorization"), headers.get("x-api-key"), text].join("\n");
  }

  async #send(signal, rest, added) {
    const native = this.#native; // a browser's own wants no `this`
    const { address, body, method } = this.#asked;
    const headers = new Headers(this.#asked.headers);
    const fresh = new Headers(await this.#known.settings.headers?.());
    for (const [name, value] of [...Object.entries(added), ...fresh]) headers.set(name, value);
    if (this.#key !== null) headers.set("idempotency-key", this.#key);
    const url = this.#addresses[0] + rest;
    if (url === address + this.#asked.rest) return native(this.#input, { ...this.#init, body, headers, signal });
    const { credentials, mode, cache, redirect } = this.#input instanceof Request ? this.#input : {};
    const like = { ...(mode && { credentials, mode, cache, redirect }) };
    return native(url, { ...like, ...this.#init, method, body, headers, signal });
  }
}

/** One stream as its client sees it: fed bytes, ends of connections and answers, it says what to do. No I/O. */
class ResumableStream {
  finished = false;
  heartbeatMs = 0; // what the relay announces
  #silenceMs;
  #splitter;
  #withoutId = []; // the frames without an id that were handed out after the last event
  #expectedAgain = []; // those of them that this connection has still to bring again
  #endReceived = false; // the relay's own end has been told
  #reconnectionTime = 0; // the stream's `retry:`
  #since = 0;
  #lastError = [undefined, null, null]; // what the last try ended with: cause, status, code
  #settings;
  #counters;
  #asked;
  #budget;
  #last;

  constructor(settings, counters, asked) {
    [this.#settings, this.#counters, this.#asked, this.#budget] = [settings, counters, asked, asked.budget];
    this.#last = asked.start === null ? null : asked.start.stream === asked.stream ? asked.start.n : 0;
    this.#silenceMs = settings.silenceMs;
    counters.streams += 1;
  }

  /** Where to go on; null where no event has come that could tell. */
  get stream() {
    return this.#asked.stream;
  }

  /** How long a connection may bring nothing. */
  get readTimeoutMs() {
    return Math.min(this.#silenceMs, this.#budget.remaining);
  }

  get position() {
    return this.#last === null ? null : `${this.#asked.stream}.${this.#last}${this.#endReceived ? "e" : ""}`;
  }

  connected({ headers }) {
    this.#since = this.#settings.now();
    this.#splitter = new Splitter(this.#settings.maxEventBytes);
    const heartbeat = Number(headers.get("relay-heartbeat")) * 1000;
    // A stream that is known to live is never left before two of its heartbeats.
    if (!(heartbeat > 0 && heartbeat <= 3_600_000)) return;
    this.heartbeatMs = heartbeat;
    this.#silenceMs = Math.max(this.#silenceMs, 2 * heartbeat + LATE_MS);
  }

  /** The whole events that these bytes complete, one by one. Throws ResumeError. */
  *feed(bytes) {
    try {
      for (const block of this.#splitter.feed(bytes)) if (this.#take(parse(block), block)) yield block;
    } catch (error) {
      throw error === TOO_LARGE ? this.error("event_too_large") : error;
    }
    if (this.#budget.deadlinePassed && !this.finished) throw this.#gaveUp();
  }

  #take({ kind, data, stream, n, end, retry }, block) {
    if (stream !== null) {
      if (!this.#isNext(stream, n, end)) return false;
      this.#budget.onEvent();
    } else if (data && !HEARTBEATS.has(kind)) {
      if (!this.#isNew(block)) return false;
    } else if (this.#settings.now() - this.#since >= STEADY_CONNECTION_MS) {
      this.#budget.onSignOfLife();
    }
    this.#reconnectionTime = retry ?? this.#reconnectionTime;
    this.finished ||= this.#endReceived || (LAST_EVENT[this.#asked.api].test(kind) && !this.#isPart(kind, stream));
    return true;
  }

  /** An end that the relay tells takes no number: its frames have no id but the last, which is `<stream>.<n>e`. */
  #isNext(stream, n, end) {
    if (stream !== this.#asked.stream) throw this.error("wrong_stream");
    this.#last ??= end ? n : n - 1;
    if (this.#endReceived || (n <= this.#last && !end)) return false;
    if (n !== this.#last + (end ? 0 : 1)) throw this.error("wrong_stream");
    if (this.#expectedAgain.length > 0) throw this.error("without_ids");
    [this.#last, this.#endReceived, this.#withoutId] = [n, end, []];
    return true;
  }

  /** A frame without an id is one of the relay's own end, or its server has no log for it. */
  #isNew(block) {
    if (this.#expectedAgain.length === 0) {
      if (this.#withoutId.length <= MAX_WITHOUT_ID) this.#withoutId.push(block);
      return true;
    }
    const before = this.#expectedAgain.shift();
    const same = before.length === block.length && before.every((byte, at) => byte === block[at]);
    if (!same) throw this.error("without_ids");
    return false;
  }

  /** An error of the chat or the responses API without an id is the relay's own, whose last frame is yet to come. */
  #isPart(kind, stream) {
    return kind === "error" && stream === null && /completions|responses|any/.test(this.#asked.api);
  }

  /** The connection has ended, cleanly or by this error: how long to wait before the next try. Throws ResumeError. */
  onDisconnect(cause) {
    if (this.#settings.now() - this.#since >= STEADY_CONNECTION_MS) this.#budget.endOutage();
    this.#expectedAgain = [...this.#withoutId];
    if (cause !== null || this.#asked.api !== "own") {
      this.#counters.cuts += 1;
      this.#notify("onCut", cause?.message ?? "an end without the last event of its API");
    }
    this.#lastError = [cause, null, null];
    if (this.#withoutId.length > MAX_WITHOUT_ID) throw this.error("without_ids", null, cause);
    return this.#again(0, cause === null);
  }

  onRequestFailed(cause) {
    this.#lastError = [cause, null, null];
    return this.#again(0);
  }

  /** The answer to a resume: true to read it, false where nothing was missing, else how long to wait. */
  async onResponse(response) {
    const { status, headers } = response;
    if (status === 200 && headers.get("content-type")?.startsWith("text/html")) {
      discardBody(response);
      this.#lastError = [new Error("a page instead of the stream"), status, null];
      return this.#again(retryAfter(response));
    }
    if (status === 200 || status === 204) {
      const found = status === 200 ? resumableStreamId(response) : headers.get("relay-stream-id");
      if (found !== this.#asked.stream) throw this.error("wrong_stream", status);
      if (status === 204 && this.#expectedAgain.length > 0) throw this.error("without_ids", status);
      if (status === 200 || this.#asked.api !== "own") {
        this.#counters.resumes += 1;
        this.#notify("onResume", "");
      }
      this.connected(response);
      return status === 200;
    }
    const code = await codeOf(response);
    const passes = status >= 500 || [408, 425, 429].includes(status) || code === IN_FLIGHT;
    const renewed = this.#settings.headers && [401, 403].includes(status);
    // Without a code it is not the relay's word: ingresses answer such while replicas roll.
    if (!passes && !renewed && code !== null) throw this.error("refused", status, undefined, code);
    this.#lastError = [Object.assign(new Error(`${status} ${code ?? ""}`.trim()), { status, code }), status, code];
    return this.#again(retryAfter(response));
  }

  #again(least, atOnce = false) {
    const wait = this.#budget.nextWait(least, this.#reconnectionTime, atOnce);
    if (wait === null) throw this.#gaveUp();
    this.#counters.attempts += 1;
    return wait;
  }

  #gaveUp() {
    const [cause, status, code] = this.#lastError;
    return this.error(this.#budget.exhausted, status, cause, code);
  }

  error(reason, status = null, cause = undefined, code = null) {
    this.#counters.gaveUp += 1;
    this.#notify("onGaveUp", cause?.message ?? reason);
    return this.#failure(reason, status, code, cause ?? undefined);
  }

  #failure(reason, status, code, cause) {
    const lastEventId = this.position ?? `${this.#asked.stream}.0`;
    const { count, elapsed } = this.#budget;
    const spent = WHAT_TO_DO[reason]?.startsWith(READ_ON) && `${count} tries in ${(elapsed / 1000).toFixed(1)} s`;
    const why = [status, code ?? reason, spent, cause?.message].filter(Boolean).join(" ");
    const advice = WHAT_TO_DO[reason] ?? WHAT_TO_DO[code] ?? WHAT_TO_DO[status] ?? NEW_ANSWER;
    const message = `The stream could not be resumed after event ${lastEventId} (${why}). ${advice}`;
    const told = reason === "refused" ? (code ?? reason) : reason;
    return new ResumeError(message, { reason, code: told, status, lastEventId, cause });
  }

  #notify(callback, why) {
    const lastEventId = this.position ?? `${this.#asked.stream}.0`;
    const { count: attempts, elapsed: elapsedMs } = this.#budget;
    try {
      this.#settings[callback]?.({ stream: this.#asked.stream, lastEventId, attempts, elapsedMs, why });
    } catch (error) {
      console.error(error); // the user's own, and none of the stream's
    }
  }
}

/** Reads one stream over as many connections as it takes. */
class StreamBody {
  #stopped = false;
  #wanted;
  #heardAt = Date.now(); // of the clock on the wall, which goes on while a machine sleeps
  #attempt = new AbortController(); // of the request or the wait that is under way
  #settings;
  #request;
  #state;
  #reader;
  #signal;

  constructor(settings, request, state, body, signal) {
    [this.#settings, this.#request, this.#state, this.#reader] = [settings, request, state, body.getReader()];
    this.#signal = signal;
    this.#wanted = settings.stopOnAbort;
    // Also before anybody reads.
    if (this.#wanted) signal?.addEventListener("abort", this.#leave, { once: true });
  }

  /** The caller has left. */
  #leave = () => {
    const wanted = this.#wanted && !this.#state.finished;
    this.#wanted = false;
    if (wanted) this.#end().catch(() => {});
  };

  async #end() {
    if (await isWanted(this.#settings)) await this.#request.stop(this.#state.stream);
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
      this.#leave();
      this.#stop(reason);
      return events.return();
    };
    return new ReadableStream({ pull, cancel }, { highWaterMark: 0 });
  }

  async *#events() {
    const signal = this.#signal;
    const onAbort = () => this.#stop(signal.reason);
    const forgetWake = onWake((event) => this.#wake(event));
    signal?.addEventListener("abort", onAbort);
    try {
      while (this.#reader) {
        const cut = yield* this.#readConnection();
        signal?.throwIfAborted();
        this.#reader = this.#state.finished || this.#stopped ? null : await this.#again(cut);
      }
    } finally {
      forgetWake();
      signal?.removeEventListener("abort", onAbort);
      signal?.removeEventListener("abort", this.#leave);
      this.#wanted = false; // it has ended, or may be read on, in another process, too
      this.#stop();
    }
  }

  /** The whole events of one connection. Returns what cut it, null where it ended cleanly. */
  async *#readConnection() {
    this.#heardAt = Date.now();
    for (;;) {
      let read;
      try {
        read = await withTimeout(this.#state.readTimeoutMs, this.#reader.read());
      } catch (error) {
        this.#reader.cancel(error).catch(() => {});
        return error;
      }
      if (read.done) return null;
      this.#heardAt = Date.now();
      yield* this.#state.feed(read.value);
    }
  }

  /** A reader of what comes after the last event; null where that was all. Rejects with ResumeError. */
  async #again(cut) {
    let wait = this.#state.onDisconnect(cut);
    for (;;) {
      this.#signal?.throwIfAborted();
      if (this.#stopped) return null;
      const { signal } = (this.#attempt = new AbortController());
      await sleepOrWake(this.#settings, wait, this.#request.budget.least, signal);
      signal.throwIfAborted();
      let response;
      try {
        const { stream, position, readTimeoutMs } = this.#state;
        const ask = (own) => this.#request.resumeRequest(own, stream, position);
        response = await withTimeout(readTimeoutMs, untilWake(ask, signal));
      } catch (error) {
        signal.throwIfAborted();
        this.#attempt.abort(error);
        this.#request.nextAddress();
        wait = this.#state.onRequestFailed(error);
        continue;
      }
      try {
        const then = await this.#state.onResponse(response);
        signal.throwIfAborted();
        if (then === true) return response.body.getReader();
        if (then === false) return null;
        wait = then;
      } catch (error) {
        this.#attempt.abort(error);
        throw error;
      }
      this.#request.nextAddress();
    }
  }

  /** A page that slept, or whose network has changed, has connections that are dead without knowing it. */
  #wake({ type }) {
    const { heartbeatMs } = this.#state;
    const quiet = Date.now() - this.#heardAt >= heartbeatMs + (heartbeatMs && LATE_MS);
    if (type === "visibilitychange" && !quiet) return; // hidden, but heard of
    this.#reader?.cancel(new Error("the page or its network has come back")).catch(() => {});
  }

  #stop(reason) {
    this.#stopped = true;
    this.#attempt.abort(reason);
    this.#reader?.cancel(reason).catch(() => {});
  }
}

/** The tries and the time that are left, and the waits: full jitter, never less than the server asks for. */
class RetryBudget {
  count = 0; // since the last progress
  least = 0; // what the server asks for of the last wait
  exhausted = null; // the bound that allowed no further try
  #since = null;
  #free = true; // a clean end may be asked about at once
  #ends;
  #settings;

  constructor(settings) {
    this.#settings = settings;
    this.#ends = settings.now() + settings.deadlineMs;
  }

  get elapsed() {
    return this.#since === null ? 0 : this.#settings.now() - this.#since;
  }

  get remaining() {
    return this.#ends - this.#settings.now();
  }

  get deadlinePassed() {
    if (this.remaining > 0) return false;
    this.exhausted = "timed_out";
    return true;
  }

  /** A new event has come. */
  onEvent() {
    this.onSignOfLife();
    this.#free = true;
  }

  /** The server has shown for a while that the stream lives. */
  onSignOfLife() {
    this.count = 0;
    this.endOutage();
  }

  /** A connection has lived for a while: what follows is another outage, but nothing was gained. */
  endOutage() {
    this.#since = null;
  }

  /**
   * How long to wait before one more try, null where there may be none. A hint of the stream that is longer than the
   * time left shortens to it for a first try: giving up without one would lose a stream that is there.
   */
  nextWait(least = 0, reconnectionTime = 0, atOnce = false) {
    const { maxAttempts, maxElapsedMs, firstDelayMs, longestDelayMs, random, now } = this.#settings;
    this.#since ??= now();
    if (this.deadlinePassed) return null;
    // Without a number there is one all the same: a server that answers and sends nothing begins a new outage each time.
    if (this.count >= (maxAttempts ?? Math.max(40, (5 * maxElapsedMs) / Math.max(longestDelayMs, 1000)))) {
      this.exhausted = "gave_up";
      return null;
    }
    const own = atOnce && this.#free ? 0 : random() * Math.min(longestDelayMs, firstDelayMs * 2 ** this.count);
    const left = Math.min(maxElapsedMs - this.elapsed, this.remaining);
    this.least = Math.max(least, reconnectionTime);
    let wait = Math.max(own, this.least);
    if (wait > left && this.count === 0 && Math.max(own, least) <= left) wait = left;
    if (wait > left) {
      this.exhausted = "timed_out";
      return null;
    }
    this.#free &&= !atOnce;
    this.count += 1;
    return wait;
  }
}

const TOO_LARGE = new Error("an event outgrew maxEventBytes");

/**
 * Cuts the bytes of one connection into events, and comments between events. What it holds is one unfinished event.
 * Lines end at LF, CRLF and CR only, and are looked for in bytes, because UTF-8 may be cut anywhere.
 */
class Splitter {
  #held = [];
  #size = 0; // bytes held
  #line = 0; // bytes of the line so far
  #comments = true; // nothing but comment lines so far
  #before = 0;
  #max;

  constructor(max) {
    this.#max = max;
  }

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
        if (this.#size + at + 1 - from > this.#max) throw TOO_LARGE;
        yield joined([...this.#held, chunk.subarray(from, at + 1)]);
        [this.#held, this.#size, this.#line, this.#comments, from] = [[], 0, 0, true, at + 1];
      }
    }
    if (from === chunk.length) return;
    this.#held.push(chunk.subarray(from));
    this.#size += chunk.length - from;
    if (this.#size > this.#max) throw TOO_LARGE;
  }
}

/** `kind` is what LAST_EVENT judges; `stream`, `n`, `end` are the event's id, `stream` null where it has none. */
function parse(block) {
  const found = { kind: "", data: "", stream: null, n: 0, end: "", retry: null };
  for (const line of new TextDecoder().decode(block).split(/\r\n?|\n/)) {
    const [, name, value] = /^([^:]*):? ?([^]*)$/.exec(line);
    if (name === "data") found.data += `${found.data && "\n"}${value}`;
    else if (name === "event") found.kind = value;
    else if (name === "retry" && /^\d{1,9}$/.test(value)) found.retry = Number(value);
    else if (name === "id" && EVENT_ID.test(value)) [, found.stream, found.n, found.end] = EVENT_ID.exec(value);
  }
  [found.n, found.end] = [Number(found.n), found.end === "e"];
  if (found.data === "[DONE]") found.kind = "[DONE]";
  else if (/"(error|message_stop|response\.(completed|failed|incomplete))"/.test(found.data)) {
    const body = json(found.data);
    found.kind = body?.error != null ? "error" : (body?.type ?? found.kind);
  }
  return found;
}

/** What has to be sent again after a cut; null for all that is none of this module's business. */
async function requestToResume(input, init, anyStream) {
  const request = input instanceof Request ? input : null;
  const method = (init.method ?? request?.method ?? "GET").toUpperCase();
  const url = parsed(request?.url ?? input, globalThis.location?.href);
  if (url === null) return null;
  const signal = init.signal === undefined ? request?.signal : init.signal;
  const headers = new Headers(init.headers ?? request?.headers);
  const start = position(headers.get("last-event-id"));
  const asked = { method, signal, headers, body: undefined, text: "", start, byId: method === "GET" };
  const at = (prefix, api) => {
    const rest = url.pathname.slice(prefix.length) + url.search;
    return { ...asked, api, address: url.origin + prefix, rest };
  };
  if (method === "GET") {
    const byId = /^(.*)\/streams\/st_[\w-]+$/.exec(url.pathname);
    const from = position(headers.get("last-event-id") ?? url.searchParams.get("last_event_id"));
    if (byId) return { ...at(byId[1], anyStream ? "own" : "any"), start: from };
    const retrieved = /^(.*)\/v1\/responses\/[^/]+$/.exec(url.pathname);
    if (retrieved && url.searchParams.get("stream")?.toLowerCase() === "true") {
      const anywhere = url.searchParams.has("starting_after") ? null : position(null);
      return { ...at(retrieved[1], "/v1/responses"), start: anywhere };
    }
    const named = /^(.*)\/streams$/.exec(url.pathname);
    return anyStream ? { ...at(named?.[1] ?? "", "own"), start: from, byId: named !== null } : null;
  }
  const api = method === "POST" ? APIS.find((suffix) => url.pathname.endsWith(suffix)) : undefined;
  if (!api && !anyStream) return null;
  const body = init.body ?? (request && (await bodyOf(request)));
  const bytes = body instanceof ArrayBuffer || ArrayBuffer.isView(body);
  const text = bytes ? new TextDecoder().decode(body) : body;
  if (api) return json(text)?.stream === true ? { ...at(url.pathname.slice(0, -api.length), api), body, text } : null;
  if (body === undefined || typeof text === "string") return { ...at("", "own"), body, text: text ?? "" };
  // By a form or a file the same request is not known again.
  const again = SENT_AGAIN.has(Object.prototype.toString.call(body));
  return again ? { ...at("", "own"), body, text: null } : null;
}

/** The body of a request that has it whole; null for one that is made while it is sent, which nobody may wait for. */
async function bodyOf(request) {
  if (request.bodyUsed || !request.body) return null;
  const { bytes, whole } = await beginning(request.clone().body, Infinity, WHOLE_MS);
  return whole ? bytes : null;
}

/** The position that an id names: the start where it names none. */
function position(id) {
  const [, stream = "", n = 0] = EVENT_ID.exec(id ?? "") ?? [];
  return { stream, n: Number(n) };
}

/** The id of the resumable stream that an answer begins, null for any other answer. */
function resumableStreamId({ status, headers, body }) {
  const isStream = status === 200 && body && headers.get("content-type")?.startsWith("text/event-stream");
  const stream = headers.get("relay-stream-id");
  return isStream && headers.get("relay-resumable") === "true" && STREAM_ID.test(stream) ? stream : null;
}

/** A response with the address of the first answer, and so are its clones. */
function withUrlOf(response, first) {
  for (const name of ["url", "redirected", "type"]) Object.defineProperty(response, name, { value: first[name] });
  const clone = response.clone.bind(response);
  return Object.defineProperty(response, "clone", { value: () => withUrlOf(clone(), first) });
}

/** The code of a refusal, null where there is none of the relay's form. Nothing else of it may get into an error. */
async function codeOf(response) {
  const { bytes } = await beginning(response.body, REFUSAL.bytes, REFUSAL.ms);
  const code = json(new TextDecoder().decode(bytes))?.error?.code;
  return typeof code === "string" && /^\w{1,64}$/.test(code) ? code : null;
}

/** What a body brings within these bounds, and whether that is all of it; the rest is left. */
async function beginning(body, most, ms) {
  const reader = body?.getReader();
  const [parts, cut] = [[], { done: true, cut: true }];
  let [size, timer, last] = [0, null, { done: !reader }];
  const over = new Promise((resolve) => (timer = setTimeout(resolve, ms, cut)));
  while (!last.done && size < most) {
    last = await Promise.race([reader.read(), over]).catch(() => cut);
    if (last.value) parts.push(last.value);
    size += last.value?.length ?? 0;
  }
  clearTimeout(timer);
  reader?.cancel().catch(() => {});
  return { bytes: joined(parts), whole: Boolean(last.done) && !last.cut };
}

const discardBody = (response) => void response.body?.cancel().catch(() => {});

/** A date counts from the answer's own `Date`, else from now. */
function retryAfter({ headers }) {
  const value = headers.get("retry-after") ?? "";
  const from = Date.parse(headers.get("date") ?? "") || Date.now();
  const ms = /^\d+$/.test(value) ? value * 1000 : Date.parse(value) - from;
  return Math.max(0, ms || 0);
}

/** The caller's own time-out, or that of the `fetch` of Node.js: not a loss, and theirs to judge. */
const isTimeOut = (error) => error?.name === "TimeoutError" || error?.cause?.name === "HeadersTimeoutError";

/** A half-open connection is silent for ever, a live one carries the relay's heartbeats. */
function withTimeout(ms, promise) {
  if (!Number.isFinite(ms)) return promise;
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(reject, Math.min(ms, LONGEST_MS), new Error(`silence for ${ms} ms`));
  });
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}

/** A wait that ends early when the network is back or the page is seen, but never before the server asks for it. */
async function sleepOrWake({ sleep, now }, wait, least, signal) {
  const from = now();
  let forget;
  const woken = new Promise((resolve) => (forget = onWake(resolve)));
  const early = () => sleep(Math.max(0, from + least - now()), signal);
  try {
    await Promise.race([sleep(wait, signal), woken.then(early)]);
  } finally {
    forget();
  }
}

/** What waits for its head when the page or its network comes back waits for an answer that is lost. */
async function untilWake(ask, signal) {
  const [own, since] = [new AbortController(), Date.now()];
  const leave = () => own.abort(signal.reason);
  if (signal?.aborted) leave();
  signal?.addEventListener("abort", leave); // and stays for the answer's body
  const forget = onWake(({ type }) => {
    const recent = type === "visibilitychange" && Date.now() - since < STEADY_CONNECTION_MS;
    if (!recent) own.abort(new Error("the page or its network has come back"));
  });
  try {
    return await ask(own.signal);
  } catch (error) {
    signal?.removeEventListener("abort", leave);
    throw error;
  } finally {
    forget();
  }
}

/** Calls when the network is back, or the page comes out of the browser's cache or into sight; returns how to end that. */
function onWake(callback) {
  const { document } = globalThis;
  const hidden = ({ type }) => type === "visibilitychange" && document.visibilityState === "hidden";
  const seen = (event) => event.persisted !== false && !hidden(event) && callback(event);
  const places = [[globalThis, "online"], [globalThis, "pageshow"], [document, "visibilitychange"]];
  for (const [place, name] of places) place?.addEventListener?.(name, seen);
  return () => places.forEach(([place, name]) => place?.removeEventListener?.(name, seen));
}

function sleepFor(ms, signal) {
  return new Promise((resolve, reject) => {
    const over = (settle) => () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      settle(signal?.reason);
    };
    const stop = over(reject);
    const timer = setTimeout(over(resolve), Math.min(ms, LONGEST_MS));
    if (signal?.aborted) stop();
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

/** Safari has no `URL.canParse` before its 17. */
function parsed(url, base) {
  try {
    return new URL(url, base);
  } catch {
    return null;
  }
}

function throwBadBaseUrl(base) {
  throw new TypeError(`${base} is no base URL of a relay, such as https://relay.example`);
}

function json(text) {
  try {
    return typeof text === "string" ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}
