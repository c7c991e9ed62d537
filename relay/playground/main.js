/**
 * The playground: one answer at a time, over as many connections as it takes.
 *
 * What survives a reload is in this tab's session storage: the form, the key, and which stream is shown. The text is
 * not: it is read again from the relay's log. A second tab gets the stream and its ticket in the address's fragment,
 * which no server sees.
 */
import { APIS, json, understand } from "./apis.js";
import { Connection, Joined, Replicas } from "./connection.js";
import { Parser } from "./sse.js";
import { element, View } from "./view.js";

const STORED = "relay-playground";
const MADE_UP = "relay-playground-key";
const FIELDS = ["api", "model", "most", "key", "prompt"];

const view = new View();
const replicas = await Replicas.load();
const connection = new Connection(replicas, { asking, opened });
let shown = fresh(); // the answer on the page
let cut = () => {};

function fresh() {
  const counts = { events: 0, heartbeats: 0, resumes: 0 };
  return { api: "chat", stream: "", ticket: "", ...counts, since: 0, first: "", tokens: {}, last: false, error: null };
}

// What happens under the answer

function asking(address, after) {
  const host = address.replace(/^https?:\/\//, "");
  view.choose(replicas.chosen);
  view.fact("replica", host);
  if (!after) return;
  view.state("reconnecting");
  view.mark(`going on after event ${after.split(".")[1]} at ${host}`);
}

function opened(after) {
  if (after) count("resumes");
  view.state("streaming");
}

function event(one) {
  if (one.comment) {
    count("heartbeats");
    view.heartbeat();
    return;
  }
  const { name, text, usage, last, error } = understand(shown.api, one.kind, one.data);
  if (name === "ping" && !one.id) {
    count("heartbeats");
    view.heartbeat();
    return;
  }
  count("events");
  view.event(one, name);
  if (text) {
    view.text(text);
    if (shown.since) {
      shown.first = `${Math.round(performance.now() - shown.since)} ms`;
      shown.since = 0;
      view.fact("first", shown.first);
      store();
    }
  }
  if (usage.input !== undefined || usage.output !== undefined) {
    Object.assign(shown.tokens, usage);
    view.fact("tokens", `${shown.tokens.input ?? "–"} in, ${shown.tokens.output ?? "–"} out`);
  }
  shown.last ||= last;
  shown.error ??= error;
}

function count(what) {
  shown[what] += 1;
  view.fact(what, shown[what]);
}

// An answer from its beginning to its end

async function show(found, work) {
  shown = { ...fresh(), ...found };
  view.clear();
  for (const what of ["events", "heartbeats", "resumes"]) view.fact(what, 0);
  if (shown.first) view.fact("first", shown.first);
  view.state("connecting");
  try {
    await work(shown);
    await finish();
  } catch (error) {
    view.problem(whatToDo(error));
    view.state(shown.aborting?.signal.aborted ? "stopped" : "failed");
  }
}

function whatToDo(error) {
  const { message } = error;
  if (shown.resumable === false) {
    return `${message}: this stream has no log to go on from. Send the prompt again.`;
  }
  if (error instanceof TypeError) {
    return `No replica can be reached (${message}). Start the relay and send the prompt again.`;
  }
  return message;
}

/**
 * The key that was typed, else one that is made up for this tab: a stream that is begun without any belongs to nobody,
 * and nobody could come back to it.
 */
function credential() {
  const typed = element("key").value;
  if (typed) return typed;
  const made = sessionStorage.getItem(MADE_UP) ?? `playground-${crypto.getRandomValues(new Uint32Array(4)).join("")}`;
  sessionStorage.setItem(MADE_UP, made);
  return made;
}

/** A new answer; or with a stream's id, that stream from its start. */
async function read(answer) {
  const api = APIS[answer.api];
  const { model, most, prompt } = Object.fromEntries(FIELDS.map((name) => [name, element(name).value]));
  const key = credential();
  answer.aborting = new AbortController();
  answer.since = answer.stream ? 0 : performance.now();
  const again = answer.stream ? { "last-event-id": `${answer.stream}.0` } : {};
  connection.begin();
  cut = () => connection.cut();
  const response = await connection.fetch(api.path, {
    method: "POST",
    headers: { "content-type": "application/json", ...api.headers(key), ...again },
    body: JSON.stringify({ ...api.body(model, prompt, Number(most)), stream: true }),
    signal: answer.aborting.signal,
  });
  if (!response.ok || !response.body || !response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new Error(await refusal(response));
  }
  const stream = response.headers.get("relay-stream-id") ?? "";
  const url = new URL(response.headers.get("relay-stream-url") ?? "?", location.href);
  identify(stream, url.searchParams.get("ticket") ?? answer.ticket, response.headers.get("relay-resumable") === "true");
  store();
  const parser = new Parser();
  const reader = response.body.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    for (const one of parser.feed(piece.value)) event(one);
  }
}

/** A stream that was begun elsewhere. */
async function join(answer) {
  identify(answer.stream, answer.ticket, true);
  answer.joined = true;
  const heard = {
    asking,
    opened,
    event: (one) => {
      event(one);
      if (shown.last) joined.close();
    },
  };
  const joined = new Joined(replicas, heard, answer, APIS[answer.api].kinds);
  cut = () => joined.cut();
  if (!(await joined.done)) {
    const response = await ask("GET", { accept: "application/json" });
    if (!response.ok) throw new Error(await refusal(response));
  }
}

function identify(stream, ticket, resumable) {
  Object.assign(shown, { stream, ticket, resumable });
  view.fact("stream", stream || "–");
  view.fact("resumable", resumable ? "yes" : "no");
  view.second(resumable ? `#${new URLSearchParams({ stream, api: shown.api, ticket })}` : "");
}

/** The log knows whether an answer that is well-formed is whole, or was stopped. */
async function finish() {
  const response = shown.resumable ? await ask("GET", { accept: "application/json" }).catch(() => null) : null;
  const status = response?.ok ? await response.json() : {};
  if (status.usage) view.fact("tokens", `${status.usage.input_tokens} in, ${status.usage.output_tokens} out`);
  const seen = shown.last && !shown.error ? "completed" : "failed";
  const outcome = status.outcome ?? (shown.stopped ? "stopped" : seen);
  if (shown.error) view.problem(`${shown.error.code}: ${shown.error.message}`);
  else if (!shown.last) view.problem("The stream ended before its last event. Send the prompt again.");
  view.state({ completed: "complete", stopped: "stopped" }[outcome] ?? "failed");
}

async function stop() {
  if (!view.running) return;
  if (!shown.stream) {
    shown.aborting.abort(new Error("Stopped before the answer began."));
    return;
  }
  shown.stopped = true; // the stream may end before its DELETE is answered
  const response = await ask("DELETE").catch((error) => new Response(error.message, { status: 503 }));
  if (response.ok) return;
  shown.stopped = false;
  view.problem(await refusal(response));
}

/** A request about the stream that is shown, to the first replica that can be reached. */
async function ask(method, headers = {}) {
  const key = credential();
  const byTicket = method === "GET" ? shown.joined : shown.ticket.includes(".rs."); // most tickets only read
  const query = byTicket ? `?ticket=${shown.ticket}` : "";
  const init = { method, headers: { ...headers, authorization: `Bearer ${key}` } };
  const order = new Set([replicas.addresses[replicas.reading], ...replicas.addresses]);
  let failure;
  for (const address of order) {
    try {
      return await fetch(`${address}/streams/${shown.stream}${query}`, init);
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

async function refusal(response) {
  const text = await response.text();
  return `${response.status}: ${json(text)?.error?.message ?? text.slice(0, 300)}`;
}

// What is kept

function store() {
  const fields = Object.fromEntries(FIELDS.map((name) => [name, element(name).value]));
  const { stream, ticket, api, first } = shown;
  const running = !location.hash && stream && shown.resumable ? { stream, ticket, api, first } : null;
  sessionStorage.setItem(STORED, JSON.stringify({ fields, running }));
}

function restore() {
  const stored = json(sessionStorage.getItem(STORED));
  const model = new URLSearchParams(location.search).get("model") ?? "";
  for (const [name, value] of Object.entries(stored?.fields ?? { model })) {
    if (FIELDS.includes(name)) element(name).value = value;
  }
  return stored?.running ?? null;
}

/** The stream that the address names. It cannot name a server: what a stranger's link opens stays on this relay. */
function addressed() {
  const { stream = "", api = "", ticket = "" } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const sound = /^st_[\w-]{1,64}$/.test(stream) && Object.hasOwn(APIS, api) && /^[\w.]*$/.test(ticket);
  return sound ? { stream, api, ticket } : null;
}

// What the user does

function send() {
  if (view.running || !element("ask").reportValidity()) return;
  history.replaceState(null, "", location.pathname + location.search);
  show({ api: element("api").value }, read);
  view.reveal();
  store();
}

element("ask").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  send();
});
element("ask").addEventListener("change", store);
element("stop").addEventListener("click", stop);
element("cut").addEventListener("click", () => {
  view.mark("cut by hand");
  view.state("reconnecting");
  cut();
});
element("kill").addEventListener("click", async () => {
  view.mark(`killing replica ${replicas.reading + 1}`);
  await replicas.kill().catch((error) => view.problem(`The replica was not killed (${error.message}). Is the demo running?`));
});
element("switch").addEventListener("change", ({ target }) => (replicas.switching = target.checked));
document.addEventListener("keydown", (pressed) => {
  if (pressed.key === "Escape") stop();
  else if (pressed.key === "Enter" && (pressed.ctrlKey || pressed.metaKey)) send();
});
addEventListener("hashchange", () => location.reload());

view.replicas(replicas, (index) => (replicas.chosen = index));
view.state("idle");
if (replicas.control) view.killable();
const running = restore();
if (!element("model").value) element("model").value = await replicas.model().catch(() => "");
const other = addressed();
if (other) show(other, other.ticket ? join : read);
else if (running) show(running, read);
