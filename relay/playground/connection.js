/**
 * What is under a stream: the replicas, the connection that is open to one of them, and the way to break it.
 *
 * The page's own stream is read through `resumingFetch`, the module that the relay serves to everybody; here is only
 * the `fetch` that it uses. A stream that somebody else began is read with nothing but `EventSource` and a ticket.
 */
import { resumingFetch } from "../client/resuming-fetch.js";

const OWN = new URL(".", location.href).href.slice(0, -1);

/** `chosen` is where the next connection goes, `reading` where the last one went. */
export class Replicas {
  chosen = 0;
  reading = 0;
  switching = true;

  /** `control` is the address of what starts replicas again: it tells the model (GET) and kills one (POST). */
  constructor(others, control) {
    this.addresses = [OWN, ...others.filter((address) => address !== location.origin)];
    this.control = control;
  }

  static async load() {
    const { replicas, control } = await (await fetch("playground/replicas.json")).json();
    return new Replicas(replicas, control);
  }

  async model() {
    return this.control ? (await (await fetch(this.control)).json()).model : "";
  }

  async kill() {
    const response = await fetch(this.control, { method: "POST", body: this.addresses[this.reading] });
    if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  }

  /** The address for a first connection. */
  first() {
    this.reading = this.chosen;
    return this.addresses[this.reading];
  }

  /** The address after a cut: the one that was chosen meanwhile, else another one. */
  after(failed) {
    if (this.chosen === this.reading && (this.switching || failed)) {
      this.chosen = (this.chosen + 1) % this.addresses.length;
    }
    return this.first();
  }
}

/** `heard` is told `asking(address, after)` before each request and `opened(after, response)` at its answer. */
export class Connection {
  #cutting = new AbortController();
  #replicas;
  #heard;
  #begun = false;
  #failed = false;

  constructor(replicas, heard) {
    [this.#replicas, this.#heard] = [replicas, heard];
    this.fetch = resumingFetch((path, init) => this.#ask(path, init));
  }

  begin() {
    [this.#begun, this.#failed] = [false, false];
  }

  cut() {
    this.#cutting.abort(new Error("cut by hand"));
  }

  async #ask(path, init) {
    const address = this.#begun ? this.#replicas.after(this.#failed) : this.#replicas.first();
    const after = new Headers(init.headers).get("last-event-id");
    [this.#begun, this.#failed] = [true, true];
    this.#heard.asking(address, after);
    this.#cutting = new AbortController();
    const signal = AbortSignal.any([this.#cutting.signal, ...(init.signal ? [init.signal] : [])]);
    const response = await fetch(address + path, { ...init, signal });
    this.#failed = response.status >= 500;
    if (response.ok) this.#heard.opened(after, response);
    return response;
  }
}

/** A stream by its ticket. `done` resolves with false where the relay refused to go on. */
export class Joined {
  #after = "";
  #replicas;
  #heard;
  #stream;
  #kinds;
  #source;
  #failures = 0;
  #settle;

  constructor(replicas, heard, stream, kinds) {
    [this.#replicas, this.#heard, this.#stream, this.#kinds] = [replicas, heard, stream, kinds];
    this.done = new Promise((resolve) => (this.#settle = resolve));
    this.#open(replicas.first());
  }

  cut() {
    this.#source.close();
    this.#open(this.#replicas.after(false));
  }

  close(whole = true) {
    this.#source.close();
    this.#settle(whole);
  }

  #open(address) {
    const { stream, ticket } = this.#stream;
    const position = this.#after && `&last_event_id=${this.#after}`;
    const source = (this.#source = new EventSource(`${address}/streams/${stream}?ticket=${ticket}${position}`));
    this.#heard.asking(address, this.#after);
    source.onopen = () => {
      this.#failures = 0;
      this.#heard.opened(this.#after, null);
    };
    const take = ({ type, data, lastEventId }) => {
      this.#after = lastEventId;
      this.#heard.event({ id: lastEventId, kind: type === "message" ? "" : type, data, bytes: 0 });
    };
    for (const kind of ["message", ...this.#kinds]) source.addEventListener(kind, take);
    source.addEventListener("error", (event) => {
      if (event instanceof MessageEvent) take(event);
      else this.#lost(source, address);
    });
  }

  /** `EventSource` comes back by itself, but only ever to the same replica. */
  #lost(source, address) {
    if (source !== this.#source) return;
    this.#failures += 1;
    if (source.readyState === EventSource.CLOSED) this.close(false);
    else if (this.#failures > 1 && this.#replicas.addresses.length > 1) {
      source.close();
      this.#open(this.#replicas.after(true));
    } else this.#heard.asking(address, this.#after);
  }
}
