// A chat of the AI SDK as its React hook has one, over the transport for a relay, without a page.

import { AbstractChat } from "ai";
import { RelayChatTransport } from "relay-streams/ai";

export class Chat extends AbstractChat {
  /** The options of the transport, and of the chat. */
  constructor(transport, { messages = [], ...options } = {}) {
    const state = {
      status: "ready",
      error: undefined,
      messages,
      pushMessage: (message) => (state.messages = [...state.messages, message]),
      popMessage: () => (state.messages = state.messages.slice(0, -1)),
      replaceMessage: (at, message) => (state.messages = state.messages.with(at, structuredClone(message))),
      snapshot: structuredClone,
    };
    super({ id: "chat-1", transport: new RelayChatTransport(transport), state, ...options });
  }

  /** As an application saves them. */
  get saved() {
    return JSON.parse(JSON.stringify(this.messages));
  }

  get text() {
    return this.messages.at(-1).parts.map((part) => part.text ?? "").join("");
  }
}
