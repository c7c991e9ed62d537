/** What may be set. An event or a heartbeat that arrives is progress, and the bounds begin anew. */
export interface ResumingOptions {
  /** Tries since the last progress. Default 10. */
  maxAttempts?: number;
  /** Milliseconds since the relay was last reached; a wait that would go beyond them is not begun. Default 120000. */
  maxElapsedMs?: number;
  /** The wait before try n is random, up to this times 2 to the n-1 … Default 500. */
  firstDelayMs?: number;
  /** … or this; never less than what `retry:` or `Retry-After` say. Default 15000. */
  longestDelayMs?: number;
  /**
   * A connection to a relayed stream that brings nothing for so long is dead; above the relay's `streams.heartbeat`.
   * Default 60000; `Infinity` waits for ever.
   */
  silenceMs?: number;
  /**
   * True: every address is a relay's before it has proved it, so the first POST has an Idempotency-Key too. Default
   * false: a request to a server that is no relay stays as it is.
   */
  assumeRelay?: boolean;
  /** Draws a number from 0 to 1. Default `Math.random`. */
  random?: () => number;
  /** Waits; rejects when the signal is aborted. Default: a timer. */
  sleep?: (ms: number, signal?: AbortSignal | null) => Promise<void>;
}

/** The stream cannot go on. Thrown into the body's reader; the message says why and what to do. */
export class ResumeError extends Error {
  constructor(
    message: string,
    about: { code: string; status?: number | null; lastEventId: string; cause?: unknown },
  );
  /**
   * The relay's code (`stream_not_found`, `stream_expired`, `position_unknown` …), or `gave_up`, `wrong_stream`, or
   * `refused` where a refusal has no code.
   */
  readonly code: string;
  /** The HTTP status of the refusal, null where there was none. */
  readonly status: number | null;
  /** The last event that was handed out: where to go on. */
  readonly lastEventId: string;
}

/** A `fetch` whose streams from a relay do not end before their end. */
export function resumingFetch(fetch?: typeof globalThis.fetch, options?: ResumingOptions): typeof globalThis.fetch;
