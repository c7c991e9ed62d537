// Checked by `tsc --noEmit` with neither the DOM's types nor those of Node.js.

import { resume, ResumeError, resumeErrorOf, resumingFetch } from "../../../relay/client/js/resuming-fetch.js";

const fetch = resumingFetch(null, {
  headers: async () => ({ authorization: "Bearer x" }),
  onCut: (moment) => moment.why,
});
export const cuts: number = fetch.counters.cuts;
export const answer: Promise<unknown> = fetch("http://relay.test", { ...resume("st_0123456789abcdefghijkl.1") });
export const failure: ResumeError | null = resumeErrorOf(new Error("x"));
