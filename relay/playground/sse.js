/** Events and comments of a stream of bytes (WHATWG HTML, "Server-sent events"), whichever way the bytes are cut. */
export class Parser {
  #decoder = new TextDecoder();
  #rest = "";
  #event = fresh();

  /** `{ id, kind, data, bytes }` for each event, `{ comment: true }` for each comment line. */
  *feed(chunk) {
    const text = this.#rest + this.#decoder.decode(chunk, { stream: true });
    const lines = text.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(":")) yield { comment: true };
      else if (line) this.#take(line);
      else if (this.#event.bytes) {
        yield { ...this.#event, data: this.#event.data.join("\n"), bytes: this.#event.bytes + 1 };
        this.#event = fresh();
      }
    }
  }

  #take(line) {
    const event = this.#event;
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    event.bytes += new TextEncoder().encode(line).length + 1;
    if (field === "data") event.data.push(value);
    else if (field === "event") event.kind = value;
    else if (field === "id") event.id = value;
  }
}

const fresh = () => ({ id: "", kind: "", data: [], bytes: 0 });
