// Reads streams with the resuming fetch and nothing else: {"url": …, "options": {…}, "jobs": [{…}, …]}
//
// A job: path, body, headers, form (how the body is given), and when to act: `after` so many bytes, or `inWait`, do
// "abort" or "cancel". Prints what each job saw; `waits` are the waits that the fetch asked for. With options.real
// they are really waited for.

import { ResumeError, resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

const { url, options = {}, jobs } = JSON.parse(process.argv[2]);
let waits;
let onWait;
const answers = [];

const random = () => {
  onWait?.();
  return 1;
};
const sleep = async (ms, signal) => {
  waits.push(ms);
  signal?.throwIfAborted();
};
const native = async (...request) => {
  const answer = await globalThis.fetch(...request);
  answers.push(answer);
  return answer;
};
const fetch = resumingFetch(native, { random, ...(options.real ? {} : { sleep }), ...options });

const FORMS = {
  string: (target, init) => [target, init],
  bytes: (target, init) => [new URL(target), { ...init, body: new TextEncoder().encode(init.body) }],
  buffer: (target, init) => [target, { ...init, body: new TextEncoder().encode(init.body).buffer }],
  request: (target, init) => [new Request(target, init)],
  both: (target, init) => [new Request(target, { ...init, body: "nothing" }), { body: init.body }],
  stream: (target, init) => [target, { ...init, duplex: "half", body: new Blob([init.body]).stream() }],
};

const describe = (error) => ({
  isResumeError: error instanceof ResumeError,
  name: error.name,
  code: error.code,
  status: error.status,
  message: error.message,
  lastEventId: error.lastEventId,
  cause: error.cause?.message ?? null,
});

async function run({ path, body, headers, form = "string", method = "POST", after, inWait, act }) {
  const seen = { text: "", error: null };
  waits = seen.waits = [];
  const controller = new AbortController();
  onWait = inWait && (() => setTimeout(() => controller.abort(new Error("enough")), 0));
  const init = { method, headers: { authorization: "Bearer sk-test", ...headers }, signal: controller.signal };
  if (method === "POST") Object.assign(init, { body: JSON.stringify(body) });
  if (init.body) init.headers["content-type"] = "application/json";
  try {
    const response = await fetch(...FORMS[form](url + path, init));
    Object.assign(seen, { status: response.status, url: response.url, untouched: answers.includes(response) });
    seen.headers = Object.fromEntries(response.headers);
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    for (let size = 0; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      size += value.length;
      seen.text += decoder.decode(value, { stream: true });
      if (act && size >= after) {
        if (act === "abort") controller.abort(new Error("enough"));
        else await reader.cancel();
        [after, act] = [Infinity, null];
      }
    }
  } catch (error) {
    seen.error = describe(error);
  }
  return seen;
}

const all = [];
for (const job of jobs) all.push(await run(job));
console.log(JSON.stringify(all));
