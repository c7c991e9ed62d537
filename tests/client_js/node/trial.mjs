// The JavaScript client of the trial (tests/client/trial_client.py): '{"url": …, "seconds": …, "way": "js"}'

import { readdirSync } from "node:fs";
import { resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

const [EVENTS, LANES, PAUSE] = [40, 4, 200];
const { url, seconds, way } = JSON.parse(process.argv[2]);
const fetch = resumingFetch(null, { assumeRelay: true, maxAttempts: 200, firstDelayMs: 50, longestDelayMs: 1000 });
const seen = { models: [], wrong: [], fds: [], rss_mib: [] };
const begun = performance.now();

function measure() {
  globalThis.gc?.();
  seen.fds.push(readdirSync("/proc/self/fd").length);
  seen.rss_mib.push(Math.round((process.memoryUsage().rss / 2 ** 20) * 10) / 10);
}

function isOver() {
  const passed = (performance.now() - begun) / 1000;
  if (seen.fds.length === 0 && passed > seconds / 4) measure();
  return passed > seconds;
}

const all = (text, pattern) => [...text.matchAll(pattern)].map(([, n]) => Number(n));

function check(model, status, text) {
  const numbers = all(text, /^id: st_[\w-]+\.(\d+)$/gm);
  const words = all(text, /"content":"w(\d+) "/g);
  const counted = numbers.length === EVENTS && numbers.every((n, at) => n === at + 1);
  const whole = counted && words.length === EVENTS - 1 && words.every((n, at) => n === at + 1);
  if (status === 200 && whole && text.endsWith("data: [DONE]\n\n")) return;
  seen.wrong.push(`${model}: ${status}, ${numbers.length} events, ${text.slice(-200)}`);
}

async function lane() {
  while (!isOver()) {
    const model = `${way}-${seen.models.length + 1}`;
    seen.models.push(model);
    const body = JSON.stringify({ model, messages: [], stream: true });
    const headers = { "content-type": "application/json", authorization: "Bearer sk-trial" };
    try {
      for (;;) {
        const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body });
        if (response.status !== 503) {
          check(model, response.status, await response.text());
          break;
        }
        await response.body.cancel().catch(() => {}); // a refusal may be cut, too
        await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    } catch (error) {
      seen.wrong.push(`${model}: ${error} ${error.cause}`);
    }
  }
}

await Promise.all(Array.from({ length: LANES }, lane));
measure();
const { gaveUp: gave_up, ...rest } = fetch.counters;
console.log(JSON.stringify({ ...seen, counters: { ...rest, gave_up } }));
