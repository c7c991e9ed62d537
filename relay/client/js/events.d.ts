import type { Fetch, ResumingOptions } from "./resuming-fetch.js";

/** An event of the stream. */
export interface StreamEvent extends MessageEvent<string> {
  /** The event's own name, `message` where it has none: what `type` is, but for listeners of `*`. */
  readonly name: string;
}

/** An `error` without `data`: the connection was cut (CONNECTING), or all is over (CLOSED). */
export interface ConnectionEvent extends Event {
  /** What ended the stream too soon; undefined where it comes back, or has come to its end. */
  readonly error?: unknown;
}

export interface EventSourceOptions extends Omit<ResumingOptions, "headers" | "stopOnAbort" | "anyStream"> {
  /** Default `GET`. */
  method?: string;
  /** A function is called for each request. */
  headers?: HeadersInit | (() => Record<string, string> | Promise<Record<string, string>>);
  /** What can be sent twice: no ReadableStream. */
  body?: BodyInit | null;
  /** Default `same-origin`. */
  credentials?: RequestCredentials;
  mode?: RequestMode;
  cache?: RequestCache;
  redirect?: RequestRedirect;
  referrerPolicy?: ReferrerPolicy;
  /** True is `credentials: "include"`, as of an EventSource. */
  withCredentials?: boolean;
  /** Go on after this event, which another page or process has read. */
  lastEventId?: string;
  /** What makes the requests; by default the global one of the moment. */
  fetch?: Fetch;
  /** True: `close` ends the generation, too. Default false. */
  stopOnAbort?: boolean;
}

/**
 * An EventSource for streams of a relay's. `maxElapsedMs` is Infinity and `assumeRelay` is true where nothing else is
 * said: it comes back for as long as it is open.
 */
export class RelayEventSource extends EventTarget {
  constructor(url: string | URL, options?: EventSourceOptions);
  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSED: 2;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSED: 2;
  readonly url: string;
  readonly withCredentials: boolean;
  readonly readyState: 0 | 1 | 2;
  /** The last event that was dispatched: where to go on. */
  readonly lastEventId: string;
  /** Resolves when the stream is over or was left; rejects with what ended it too soon. */
  readonly finished: Promise<void>;
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: StreamEvent) => void) | null;
  onerror: ((event: StreamEvent | ConnectionEvent) => void) | null;
  /** Leaves the stream; its generation goes on for whoever comes back. */
  close(): void;
  /** Leaves the stream and ends its generation, for everybody. */
  stop(): void;
  /** `*` hears every event of the stream. An event that is named `open` or `error` has `data`, the connection's have none. */
  addEventListener(
    type: string,
    listener: ((event: any) => void) | EventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}
