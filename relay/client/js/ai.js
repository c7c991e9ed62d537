/**
 * The transport of the AI SDK's `useChat` for a chat whose endpoint is behind a relay: `useChat({ id, resume: true,
 * transport: new RelayChatTransport() })`. A message that a cut interrupts goes on after it, a page that is loaded again
 * finds the message that is being generated, and `stop` ends the generation.
 */

import { DefaultChatTransport } from "ai";
import { resumingFetch } from "./resuming-fetch.js";

export class RelayChatTransport extends DefaultChatTransport {
  #calls;

  /** @param {import("./ai.js").RelayChatTransportOptions} [options] */
  constructor({ fetch, resuming, ...options } = {}) {
    const calls = { reconnects: 0 };
    const stopOnAbort = async () => {
      const before = calls.reconnects;
      await null;
      return calls.reconnects === before; // a reconnect takes the place of the one before, which it aborts
    };
    super({ ...options, fetch: resumingFetch(fetch, { anyStream: true, assumeRelay: true, stopOnAbort, ...resuming }) });
    this.#calls = calls;
  }

  reconnectToStream(options) {
    this.#calls.reconnects += 1;
    return super.reconnectToStream(options);
  }
}
