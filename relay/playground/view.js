/** The page's elements and what stands in them. Text of a model or a server gets in as text only, never as markup. */
const STATES = {
  idle: "Ready",
  connecting: "Connecting",
  streaming: "Streaming",
  reconnecting: "Reconnecting",
  complete: "Complete",
  stopped: "Stopped",
  failed: "Failed",
};
const [MOST_ROWS, MOST_TICKS] = [400, 240];

export const element = (id) => document.getElementById(id);

export class View {
  #answer = new Text();
  #before = 0;
  #boxes = [new Following(element("text")), new Following(element("scroll"))];

  constructor() {
    element("text").append(this.#answer);
  }

  get running() {
    return ["connecting", "streaming", "reconnecting"].includes(document.body.dataset.state);
  }

  state(name) {
    if (document.body.dataset.state === name) return;
    document.body.dataset.state = name;
    element("state").dataset.state = name;
    element("state").textContent = STATES[name];
    element("text").setAttribute("aria-busy", String(this.running));
    const focused = document.activeElement;
    element("send").disabled = this.running;
    element("stop").disabled = !this.running;
    for (const id of ["cut", "kill"]) element(id).disabled = !["streaming", "reconnecting"].includes(name);
    if (focused.disabled) element(this.running ? "stop" : "prompt").focus({ preventScroll: true });
  }

  fact(id, value) {
    element(id).textContent = value;
  }

  problem(message) {
    element("problem").textContent = message;
    element("problem").hidden = !message;
  }

  clear() {
    for (const id of ["stream", "resumable", "replica", "first", "tokens"]) this.fact(id, "–");
    this.#answer.data = "";
    this.#before = 0;
    element("rows").replaceChildren();
    element("strip").replaceChildren();
    for (const box of this.#boxes) box.emptied();
    this.problem("");
    this.second("");
  }

  /** On a narrow page the answer stands below the form. */
  reveal() {
    if (element("answer").getBoundingClientRect().top > innerHeight / 2) element("answer").scrollIntoView();
  }

  second(href) {
    element("second").hidden = !href;
    element("second").href = href;
  }

  text(more) {
    this.#answer.appendData(more);
    this.#boxes[0].grown();
  }

  event({ id, bytes }, name) {
    const now = performance.now();
    const gap = this.#before ? `${Math.round(now - this.#before)} ms` : "";
    this.#before = now;
    this.#row(name === "error" ? "error" : "", id.slice(id.indexOf(".") + 1), name, bytes || "", gap);
    this.#tick(name === "error" ? "tick error" : "tick", Math.min(100, 25 + bytes / 8));
  }

  heartbeat() {
    this.#row("beat", "", "heartbeat", "", "");
    this.#tick("tick beat", 100);
  }

  /** Something that happened to the connection. */
  mark(words) {
    const cell = document.createElement("td");
    cell.colSpan = 4;
    cell.textContent = words;
    this.#append("mark", [cell]);
    this.#tick("tick mark", 100);
  }

  replicas({ addresses, chosen }, choose) {
    const options = addresses.map((address, index) => {
      const label = document.createElement("label");
      const radio = document.createElement("input");
      const where = document.createElement("span");
      label.className = "line";
      Object.assign(radio, { type: "radio", name: "replica", checked: index === chosen });
      radio.addEventListener("change", () => choose(index));
      where.className = "hint";
      where.textContent = address.replace(/^https?:\/\//, "");
      label.append(radio, ` Replica ${index + 1} `, where);
      return label;
    });
    element("replicas").replaceChildren(...options);
    element("switching").hidden = addresses.length < 2;
  }

  killable() {
    element("kill").hidden = false;
  }

  choose(index) {
    document.getElementsByName("replica")[index].checked = true;
  }

  #row(kind, ...values) {
    this.#append(
      kind,
      values.map((value) => {
        const cell = document.createElement("td");
        cell.textContent = value;
        return cell;
      }),
    );
  }

  #append(kind, cells) {
    const row = document.createElement("tr");
    row.className = kind;
    row.append(...cells);
    const rows = element("rows");
    rows.append(row);
    this.#boxes[1].grown();
    if (rows.childElementCount > MOST_ROWS) rows.firstElementChild.remove();
  }

  #tick(kind, height) {
    const tick = document.createElement("i");
    tick.className = kind;
    tick.style.height = `${height}%`;
    element("strip").append(tick);
    if (element("strip").childElementCount > MOST_TICKS) element("strip").firstElementChild.remove();
  }
}

/**
 * Keeps the end of a box in sight, but not for who has scrolled up to read. It looks once a frame: asking for a layout
 * with every event would hold the events up, and their gaps would be the page's own.
 */
class Following {
  #box;
  #pinned = true;
  #top = 0;
  #due = false;

  constructor(box) {
    this.#box = box;
    box.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = box;
      const atEnd = scrollHeight - scrollTop - clientHeight < 24;
      if (atEnd || scrollTop < this.#top) this.#pinned = atEnd;
      this.#top = scrollTop;
    });
  }

  grown() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      if (this.#pinned) this.#box.scrollTop = this.#box.scrollHeight;
    });
  }

  emptied() {
    [this.#pinned, this.#top] = [true, 0];
  }
}
