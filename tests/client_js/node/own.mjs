// Reads an application's streams through the client's modules: node own.mjs '{"url": …, "jobs": [["chat", path, model], …]}'
//
// "chat" is a message of the AI SDK's chat, "events" an EventSource of a POST. Prints what each has read.
// Every wait of the resuming fetch is cut short.

import { RelayEventSource } from "relay-streams/events";
import { Chat } from "./chat.mjs";

const { url, jobs } = JSON.parse(process.argv[2]);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, Math.min(ms, 5)));
const resuming = { sleep, maxAttempts: 60 };
const headers = { authorization: "Bearer sk-test" };

async function chat(path, model) {
  const told = new Chat({ api: url + path, headers, body: { model }, resuming }, { generateId: () => "m2" });
  await told.sendMessage({ id: "m1", role: "user", parts: [{ type: "text", text: "Hello." }] });
  return { read: told.saved, error: told.error?.message ?? null };
}

async function events(path, model) {
  const read = [];
  const body = JSON.stringify({ model });
  const sent = { ...headers, "content-type": "application/json" };
  const source = new RelayEventSource(url + path, { ...resuming, method: "POST", headers: sent, body });
  source.addEventListener("*", ({ name, data }) => read.push([name, data]));
  const error = await source.finished.then(() => null, ({ message }) => message);
  return { read, error };
}

/** Stopped before its answer has begun. */
async function stopped(path, model) {
  const told = new Chat({ api: url + path, headers, body: { model }, resuming });
  const over = told.sendMessage({ id: "m1", role: "user", parts: [{ type: "text", text: "Hello." }] });
  setTimeout(told.stop, 200);
  await over;
  return { read: told.saved, error: told.error?.message ?? null };
}

const READ = { chat, events, stopped };
console.log(JSON.stringify(await Promise.all(jobs.map(([how, path, model]) => READ[how](path, model)))));
