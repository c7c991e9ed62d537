/**
 * The three APIs as the page needs them: what a request looks like, what of an event is text, and which event is the
 * last one. Everything is read from the event's own JSON; nothing here touches the page.
 */
const user = (content) => ({ role: "user", content });
const bearer = (key) => (key ? { authorization: `Bearer ${key}` } : {});

export const APIS = {
  chat: {
    path: "/v1/chat/completions",
    headers: bearer,
    body: (model, prompt, most) => ({
      model,
      max_completion_tokens: most,
      stream_options: { include_usage: true },
      messages: [user(prompt)],
    }),
    text: ({ choices }) => choices?.[0]?.delta?.content,
    kinds: [],
  },
  responses: {
    path: "/v1/responses",
    headers: bearer,
    body: (model, prompt, most) => ({ model, max_output_tokens: most, input: prompt }),
    text: ({ type, delta }) => (type === "response.output_text.delta" ? delta : ""),
    kinds: [
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.completed",
      "response.failed",
      "response.incomplete",
    ],
  },
  messages: {
    path: "/v1/messages",
    headers: (key) => ({
      ...(key ? { "x-api-key": key } : {}),
      "anthropic-version": "2023-06-01",
      // The upstream refuses requests of pages that do not say so. Here, the key is its owner's own.
      "anthropic-dangerous-direct-browser-access": "true",
    }),
    body: (model, prompt, most) => ({ model, max_tokens: most, messages: [user(prompt)] }),
    text: ({ type, delta }) => (type === "content_block_delta" ? delta?.text : ""),
    kinds: [
      "message_start",
      "content_block_start",
      "content_block_delta",
      "content_block_stop",
      "message_delta",
      "message_stop",
    ],
  },
};

const LAST = new Set(["[DONE]", "message_stop", "response.completed", "response.failed", "response.incomplete"]);

/** What the page shows of an event: its name, text and usage, whether it is the last one, and the error it tells of. */
export function understand(api, kind, data) {
  if (data === "[DONE]") return { name: "[DONE]", text: "", usage: {}, last: true, error: null };
  const body = json(data) ?? {};
  const name = body.type ?? (kind || body.object || "");
  const error = body.error ?? body.response?.error ?? (name === "error" ? body : null);
  return {
    name: error ? "error" : name,
    text: APIS[api].text(body) ?? "",
    usage: usage(body),
    last: LAST.has(name) || error !== null,
    error: error && { code: String(error.code ?? error.type ?? "error"), message: String(error.message ?? "") },
  };
}

/** The tokens that an event counts: an API tells them together, or those that went in at the beginning. */
function usage(body) {
  const told = body.usage ?? body.message?.usage ?? body.response?.usage ?? {};
  const [input, output] = [told.input_tokens ?? told.prompt_tokens, told.output_tokens ?? told.completion_tokens];
  return { ...(input === undefined ? {} : { input }), ...(output === undefined ? {} : { output }) };
}

export function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
