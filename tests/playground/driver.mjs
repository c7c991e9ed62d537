// A headless Chromium that does what it is told: one JSON command a line in, one JSON answer a line out.
//
//   {"launch": {…}}                            start it; with everything that its pages log, ask for or break kept
//   {"page": 0, "call": "keyboard.press", "with": ["Enter"]}
//   {"pages": 2}                               wait for so many pages
//   {"seen": true}                             what was kept
//   {"fresh": true}                            forget it, and close all pages for a new one
//
// The browser driver is the one that the client's tests install.
import { once } from "node:events";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../client_js/node/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const seen = { console: [], errors: [], requests: [] };
const FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
let context;

async function launch({ browser, profile, scheme, size }) {
  context = await chromium.launchPersistentContext(profile, {
    executablePath: browser,
    headless: true,
    chromiumSandbox: false,
    colorScheme: scheme,
    viewport: size,
    args: [...FLAGS, "--disable-component-update", "--disable-sync"],
  });
  context.setDefaultTimeout(20_000);
  context.on("console", (message) => seen.console.push([message.type(), message.text()]));
  context.on("weberror", (error) => seen.errors.push(String(error.error())));
  context.on("request", (request) => seen.requests.push([request.method(), request.url()]));
}

async function obey(command) {
  if (command.launch) return launch(command.launch);
  if (command.seen) return seen;
  if (command.fresh) {
    const old = context.pages();
    await context.newPage();
    for (const page of old) await page.close();
    for (const kept of Object.values(seen)) kept.splice(0);
  }
  while (context.pages().length < (command.pages ?? 0)) await once(context, "page");
  if (!command.call) return null;
  const path = command.call.split(".");
  const method = path.pop();
  const target = path.reduce((object, name) => object[name], context.pages()[command.page]);
  const value = await target[method](...command.with);
  return ["evaluate", "textContent", "title"].includes(method) ? value : null;
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify({ value: (await obey(JSON.parse(line))) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await context?.close();
