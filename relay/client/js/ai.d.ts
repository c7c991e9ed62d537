import { DefaultChatTransport, type HttpChatTransportInitOptions, type UIMessage } from "ai";
import type { ResumingOptions } from "./resuming-fetch.js";

export interface RelayChatTransportOptions<UI_MESSAGE extends UIMessage = UIMessage>
  extends HttpChatTransportInitOptions<UI_MESSAGE> {
  /**
   * Bounds and callbacks of `resumingFetch`. `stopOnAbort: false` leaves the generation to whoever comes back where
   * `useChat` stops reading.
   */
  resuming?: ResumingOptions;
}

/** A `ChatTransport` whose messages survive cuts and page loads, and whose `stop` ends the generation. */
export class RelayChatTransport<UI_MESSAGE extends UIMessage = UIMessage> extends DefaultChatTransport<UI_MESSAGE> {
  constructor(options?: RelayChatTransportOptions<UI_MESSAGE>);
}
