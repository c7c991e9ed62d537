// What a user of the OpenAI SDK sees of a failure: node failing.mjs '{"url": …, "timeout": …, "attempts": …}'
//
// Prints the names of the errors that were thrown, how long it took, and what `resumeErrorOf` finds in them.

import OpenAI from "openai";
import { resumeErrorOf, resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

const { url, timeout, attempts } = JSON.parse(process.argv[2]);
const fetch = resumingFetch(null, { assumeRelay: true, maxAttempts: attempts, firstDelayMs: 50, silenceMs: 5000 });
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-test", timeout, fetch });
const seen = { errors: [], found: null };
const begun = performance.now();
try {
  const messages = [{ role: "user", content: "Say hello." }];
  for await (const chunk of await client.chat.completions.create({ model: "m", messages, stream: true })) void chunk;
} catch (error) {
  for (let one = error; one; one = one.cause) seen.errors.push(one.constructor.name);
  const failure = resumeErrorOf(error);
  seen.found = failure && [failure.reason, failure.lastEventId];
}
console.log(JSON.stringify({ ...seen, took: (performance.now() - begun) / 1000 }));
