// Checked by `tsc --noEmit` only: every client takes the resuming fetch without a cast.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { RelayEventSource, type StreamEvent } from "../../../relay/client/js/events.js";
import { ResumeError, resumingFetch, type ResumingOptions } from "../../../relay/client/js/resuming-fetch.js";

const options: ResumingOptions = { maxAttempts: 3, maxElapsedMs: 1000, assumeRelay: true, silenceMs: Infinity };
const fetch: typeof globalThis.fetch = resumingFetch(globalThis.fetch, options);
resumingFetch();

new OpenAI({ apiKey: "k", fetch });
new Anthropic({ apiKey: "k", fetch });
createOpenAI({ apiKey: "k", fetch });
createAnthropic({ apiKey: "k", fetch });
createOpenAICompatible({ name: "relay", baseURL: "http://relay.test/v1", fetch });

export function where(error: unknown): string | undefined {
  if (!(error instanceof ResumeError)) return undefined;
  const status: number | null = error.status;
  return `${status} ${error.code} ${error.lastEventId}`;
}

// @ts-expect-error: a setting that does not exist is noticed
resumingFetch(globalThis.fetch, { maxTries: 3 });

const source = new RelayEventSource("/api/runs", { method: "POST", body: "{}", headers: () => ({ a: "b" }), maxAttempts: 3 });
source.addEventListener("token", ({ data, name }: StreamEvent) => data + name);
source.onerror = (event) => ("error" in event ? event.error : undefined);
export const over: Promise<void> = source.finished.then(() => source.stop());

// @ts-expect-error: which streams it reads is no setting of it
new RelayEventSource("/api/runs", { anyStream: false });
