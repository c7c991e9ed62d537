/**
 * An `EventSource` for streams of a relay's, of any API and of an application's own: it takes any method, headers and a
 * body, hears events whatever their names are, and goes on where a cut stream stopped.
 *
 * It promises what `resumingFetch` promises (no event twice, out of order or in part, and an end that the relay has
 * told), and that it comes back for as long as it is open, at once when the network is back or its page is seen again.
 */

import { resumingFetch } from "./resuming-fetch.js";

const RESUMING = { anyStream: true, assumeRelay: true, maxElapsedMs: Infinity };
const OF_A_REQUEST = ["method", "headers", "body", "credentials", "mode", "cache", "redirect", "referrerPolicy"];
const HANDLED = new Set(["open", "message", "error"]);
const NO_LOG = "The connection broke, and its stream has no log to go on from. Let the request go through a relay that logs it.";

/** Dispatches a MessageEvent for each event of the stream, under its name, and under `*` whatever its name is. */
export class RelayEventSource extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;
  CONNECTING = 0;
  OPEN = 1;
  CLOSED = 2;
  onopen = null;
  onmessage = null;
  onerror = null;
  lastEventId = "";
  readyState = 0;
  #leaving = new AbortController();
  #stopping = false;

  /**
   * @param {string | URL} url
   * @param {import("./events.js").EventSourceOptions} [options]
   */
  constructor(url, { fetch, lastEventId = "", withCredentials = false, ...options } = {}) {
    super();
    const init = { credentials: withCredentials ? "include" : "same-origin" };
    for (const name of OF_A_REQUEST) if (name in options) init[name] = options[name];
    const renewed = typeof init.headers === "function" ? { headers: init.headers } : {};
    init.headers = new Headers(renewed.headers ? {} : init.headers);
    init.headers.set("accept", "text/event-stream");
    if (lastEventId) init.headers.set("last-event-id", lastEventId);
    for (const name of OF_A_REQUEST) delete options[name];
    this.url = String(url);
    this.withCredentials = init.credentials === "include";
    this.lastEventId = lastEventId;
    const resuming = {
      ...RESUMING,
      ...options,
      ...renewed,
      stopOnAbort: () => this.#stopping || Boolean(options.stopOnAbort),
      onCut: (moment) => (this.#is(this.CONNECTING, "error"), options.onCut?.(moment)),
      onResume: (moment) => (this.#is(this.OPEN, "open"), options.onResume?.(moment)),
    };
    /** Resolves when the stream is over or was left, rejects with what ended it too soon. */
    this.finished = this.#read(resumingFetch(fetch, resuming), { ...init, signal: this.#leaving.signal });
    this.finished.catch(() => {}); // the `error` event has told it
  }

  /** Leaves the stream; its generation goes on for whoever comes back. */
  close() {
    this.readyState = this.CLOSED;
    this.#leaving.abort();
  }

  /** Leaves the stream and ends its generation, for everybody. */
  stop() {
    this.#stopping = true;
    this.close();
  }

  async #read(fetch, init) {
    await null; // listeners are added first
    try {
      const response = await fetch(this.url, init);
      await this.#events(response, response.status === 204 ? null : bodyOf(response));
    } catch (error) {
      if (this.#leaving.signal.aborted) return;
      this.#is(this.CLOSED, "error", { error });
      throw error;
    }
    if (this.readyState !== this.CLOSED) this.#is(this.CLOSED, "error");
  }

  async #events({ url, headers }, body) {
    if (body === null) return;
    if (this.readyState === this.CLOSED) return body.cancel();
    const origin = url && new URL(url).origin;
    this.#is(this.OPEN, "open");
    const [decoder, parser, reader] = [new TextDecoder(), new Parser(this.lastEventId), body.getReader()];
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw headers.get("relay-resumable") === "true" ? error : new Error(NO_LOG, { cause: error });
      });
      if (done) return;
      for (const { name, data, lastEventId } of parser.feed(decoder.decode(value, { stream: true }))) {
        this.lastEventId = lastEventId;
        for (const type of new Set([name, "*"])) {
          if (this.#leaving.signal.aborted) return;
          this.#dispatch(Object.assign(new MessageEvent(type, { data, lastEventId, origin }), { name }));
        }
      }
    }
  }

  #is(state, type, more = {}) {
    if (this.#leaving.signal.aborted) return;
    this.readyState = state;
    this.#dispatch(Object.assign(new Event(type), more));
  }

  #dispatch(event) {
    try {
      if (HANDLED.has(event.type)) this[`on${event.type}`]?.(event);
    } catch (error) {
      console.error(error); // as what a listener throws, it is none of the stream's
    }
    this.dispatchEvent(event);
  }
}

/** What a stream's text says, as WHATWG HTML reads it: events with a name, data and the last id. */
class Parser {
  #rest = "";
  #afterCr = false;
  #event = { data: [], name: "" };
  #lastEventId;

  constructor(lastEventId) {
    this.#lastEventId = lastEventId;
  }

  *feed(text) {
    if (text === "") return;
    const lines = (this.#rest + (this.#afterCr && text[0] === "\n" ? text.slice(1) : text)).split(/\r\n|\r|\n/);
    this.#afterCr = text.endsWith("\r");
    this.#rest = lines.pop();
    for (const line of lines) {
      const { data, name } = this.#event;
      if (line !== "") this.#take(...(/^([^:]*):? ?([^]*)$/.exec(line).slice(1)));
      else this.#event = { data: [], name: "" };
      if (line === "" && data.length > 0) {
        yield { name: name || "message", data: data.join("\n"), lastEventId: this.#lastEventId };
      }
    }
  }

  #take(field, value) {
    if (field === "data") this.#event.data.push(value);
    else if (field === "event") this.#event.name = value;
    else if (field === "id" && !value.includes("\0")) this.#lastEventId = value;
  }
}

function bodyOf({ status, headers, body }) {
  const kind = headers.get("content-type") ?? "nothing";
  if (status === 200 && body && kind.startsWith("text/event-stream")) return body;
  body?.cancel().catch(() => {});
  const what = `The answer is no event stream: ${status}, ${kind}.`;
  throw Object.assign(new Error(`${what} Let the address be one that streams, and renew a refused credential.`), { status });
}
