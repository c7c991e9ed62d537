/** The `fetch` of this platform's types; where they have none, any function that takes the same arguments. */
export type Fetch = typeof globalThis extends { fetch: infer F extends (...request: any[]) => any }
  ? F
  : (input: any, init?: any) => Promise<any>;

/** What a callback is told of a stream. It holds no credential and no text of the answer. */
export interface Moment {
  /** The value of `Relay-Stream-Id`. */
  readonly stream: string;
  /** The last event that was handed out. */
  readonly lastEventId: string;
  /** Tries since the last new event. */
  readonly attempts: number;
  /** Milliseconds since the outage began. */
  readonly elapsedMs: number;
  /** What cut the stream, or ended the tries; empty where it goes on. */
  readonly why: string;
}

/** What has been seen since the fetch was made. */
export interface Counters {
  /** Resumable streams begun. */
  readonly streams: number;
  /** Connections that ended before their stream. */
  readonly cuts: number;
  /** Resumes sent. */
  readonly attempts: number;
  /** Resumes answered with the rest of the stream. */
  readonly resumes: number;
  /** Streams that ended with a ResumeError. */
  readonly gaveUp: number;
}

/**
 * What may be set. Only a new event is progress and begins the tries anew, or a heartbeat on a connection that has
 * lived for 5 s.
 */
export interface ResumingOptions {
  /** Tries without progress. Default `null`: more than fit into `maxElapsedMs`, so that the time is what ends an outage. */
  maxAttempts?: number | null;
  /** Milliseconds of one outage; a wait that would go beyond them is not begun. Default 120000. */
  maxElapsedMs?: number;
  /** Milliseconds of the whole stream, from its request on. Default Infinity. */
  deadlineMs?: number;
  /** The wait before try n is random, up to this times 2 to the n-1 … Default 500. */
  firstDelayMs?: number;
  /** … or this; never less than what `retry:` or `Retry-After` say. Default 15000. */
  longestDelayMs?: number;
  /**
   * A connection to a relayed stream that brings nothing for so long is dead. It never counts below twice the heartbeat
   * that the relay announces. Default 60000; `Infinity` waits for ever.
   */
  silenceMs?: number;
  /** The largest event; above the relay's `streams.max_event_bytes`. Default 16777216. */
  maxEventBytes?: number;
  /**
   * True: every address is a relay's before it has proved it, so the first POST has an Idempotency-Key too. Default
   * false: a request to a server that is no relay stays as it is.
   */
  assumeRelay?: boolean;
  /**
   * True: an abort of `init.signal`, or a cancel of the body's reader, before the stream's end has the generation
   * stopped (`DELETE /streams/{id}`). Before the answer begins, the request goes on for that, for a minute at most, at an
   * address that is known to be a relay's. A function is asked at that moment. Default false: whoever leaves may come back.
   */
  stopOnAbort?: boolean | (() => boolean | Promise<boolean>);
  /**
   * True: every request of this fetch, of any method and path, is for a stream of a relay's: an application's own
   * (`apis: [sse]`), whose end the relay tells. Default false: only the three APIs, streams by id and retrieved responses.
   */
  anyStream?: boolean;
  /**
   * Called for each request of a stream, the first one too; what it returns takes the place of the request's own. With
   * it, a refused credential is asked about again.
   */
  headers?: () => Record<string, string> | Promise<Record<string, string>>;
  /** Further addresses of the same relay, which are relays by your word. What one does not answer, the next is asked. */
  baseUrls?: readonly string[];
  /** Called when a connection ended before its stream. What a callback throws is logged and goes no further. */
  onCut?: (moment: Moment) => void;
  /** Called when the stream goes on over another connection. */
  onResume?: (moment: Moment) => void;
  /** Called before a ResumeError is thrown. */
  onGaveUp?: (moment: Moment) => void;
  /** Draws a number from 0 to 1. Default `Math.random`. */
  random?: () => number;
  /** Waits; rejects when the signal is aborted. Default: a timer. */
  sleep?: (ms: number, signal?: any) => Promise<void>;
  /** The time in milliseconds. Default `performance.now`. */
  now?: () => number;
}

/** Why a stream could not go on. */
export type Reason = "gave_up" | "timed_out" | "refused" | "wrong_stream" | "without_ids" | "event_too_large";

/** The stream cannot go on. Thrown into the body's reader; the message says why and what to do. */
export class ResumeError extends Error {
  constructor(
    message: string,
    about: { reason: Reason; code: string; status?: number | null; lastEventId: string; cause?: unknown },
  );
  /**
   * `gave_up`, `timed_out`: no tries, or no time, left. `refused`: the relay says that the stream cannot be had.
   * `wrong_stream`: something else, or a hole, has come. `without_ids`: the server went on without ids, and the stream
   * ended too soon. `event_too_large`: an event outgrew `maxEventBytes`.
   */
  readonly reason: Reason;
  /** The relay's code of a refusal (`stream_not_found`, `stream_expired`, `position_unknown` …), else the reason. */
  readonly code: string;
  /** The HTTP status of the last answer, null where there was none. */
  readonly status: number | null;
  /** The last event that was handed out: where to go on. */
  readonly lastEventId: string;
}

/** The ResumeError that an SDK's error wraps, null where it was something else. */
export function resumeErrorOf(error: unknown): ResumeError | null;

/**
 * The request options with which the same call goes on after this event, in another process too:
 * `client.responses.create(body, resume(error.lastEventId))`. Throws a TypeError where it is no event id.
 */
export function resume(lastEventId: string): { headers: Record<string, string> };

/** A `fetch` with what it has seen. */
export type ResumingFetch = Fetch & { readonly counters: Counters };

/** A `fetch` whose streams from a relay do not end before their end. */
export function resumingFetch(fetch?: Fetch | null, options?: ResumingOptions): ResumingFetch;
