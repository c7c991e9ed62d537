// Checked in a project of each generation of the AI SDK: its chat takes the transport without a cast.

import { AbstractChat, type ChatInit, type ChatTransport, type UIMessage } from "ai";
import { RelayChatTransport } from "relay-streams/ai";

type Message = UIMessage<{ model: string }>;
const transport = new RelayChatTransport<Message>({
  api: "/api/chat",
  credentials: "include",
  headers: async () => ({ authorization: "Bearer x" }),
  resuming: { stopOnAbort: false, maxElapsedMs: 60_000 },
});
export const chosen: ChatTransport<Message> = transport;
export const init: ChatInit<Message> = { id: "chat-1", transport, onFinish: ({ message }) => message.metadata?.model };
export type Messages = AbstractChat<Message>["messages"];
new RelayChatTransport();

// @ts-expect-error: a setting that does not exist is noticed
new RelayChatTransport({ resuming: { maxTries: 3 } });
