// The backend of a chat: it answers a message with a stream, and keeps the messages. It knows nothing of resuming.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { convertToModelMessages, isStepCount, pipeUIMessageStreamToResponse, streamText, tool, toUIMessageStream } from "ai";
import { build } from "esbuild";
import { z } from "zod";
import { model, PACE } from "./model.mjs";

const chats = new Map(); // "session chat" to messages; a database in an application that is no example
const runs = new Map(); // how often the tool has run, for each of them
const html = `<!doctype html><meta charset="utf-8"><title>Chat</title><link rel="icon" href="data:,">
<body><main id="root"></main><script src="/page.js"></script>`;
const { outputFiles: [page] } = await build({
  entryPoints: [new URL("page.jsx", import.meta.url).pathname],
  bundle: true,
  write: false,
  jsx: "automatic",
  define: { "process.env.NODE_ENV": '"development"' }, // as a framework's development server has it
});

async function answer(key, messages, response) {
  const left = new AbortController();
  response.on("close", () => response.writableFinished || left.abort());
  const weather = tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      await sleep(8 * PACE);
      runs.set(key, (runs.get(key) ?? 0) + 1);
      return { city, celsius: 21, run: runs.get(key) };
    },
  });
  chats.set(key, messages);
  const { stream } = streamText({
    model,
    messages: await convertToModelMessages(messages),
    tools: { weather },
    stopWhen: isStepCount(3),
    abortSignal: left.signal,
  });
  const parts = toUIMessageStream({
    stream,
    tools: { weather },
    originalMessages: messages,
    generateMessageId: randomUUID,
    onEnd: (end) => void chats.set(key, end.messages),
  });
  await pipeUIMessageStreamToResponse({ response, stream: parts });
}

const server = createServer(async (request, response) => {
  const [, own] = /\bsession=([\w-]+)/.exec(request.headers.cookie ?? "") ?? [];
  const session = own ?? randomUUID();
  const at = `${request.method} ${request.url}`;
  if (!own) response.setHeader("set-cookie", `session=${session}; Path=/; HttpOnly; SameSite=Lax`);
  if (at === "GET /") return response.setHeader("content-type", "text/html; charset=utf-8").end(html);
  if (at === "GET /page.js") return response.setHeader("content-type", "text/javascript; charset=utf-8").end(page.contents);
  if (at === "POST /api/chat") {
    const { id, messages } = JSON.parse(Buffer.concat(await request.toArray()));
    return answer(`${session} ${id}`, messages, response);
  }
  const [, chat] = /^GET \/api\/chats\/([\w-]+)$/.exec(at) ?? [];
  if (!chat) return response.writeHead(404).end();
  response.setHeader("content-type", "application/json").end(JSON.stringify(chats.get(`${session} ${chat}`) ?? []));
});
const port = process.env.PORT ?? 3000;
server.listen(port, "127.0.0.1", () => console.log(`The backend listens at http://127.0.0.1:${port}`));
