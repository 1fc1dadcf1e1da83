// Follows a run: asks the server what has changed, and takes only the parts that did.

const POLL_MS = 2000;
const STATES = { running: "● running", interrupted: "■ interrupted", waiting: "○ no process works on it", done: "✓ done" };

class Live {
  constructor(bar, root) {
    this.bar = bar;
    this.root = root;
    this.page = Number(bar.dataset.page);
    this.curves = Number(bar.dataset.curves);
    this.generation = "";
    this.mark = 0;
    this.viewer = null;
    this.poll();
  }

  async get(path) {
    const reply = await fetch(path, { cache: "no-store", credentials: "same-origin" });
    if (reply.status === 401) location.reload();
    if (!reply.ok) throw new Error("the server answered " + reply.status);
    return reply;
  }

  async poll() {
    try {
      if (!document.hidden) await this.follow();
    } catch (error) {
      fill(this.bar, el("b", { class: "bad" }, "disconnected"), " · " + error.message + "; the page stays as it was");
    }
    setTimeout(() => this.poll(), POLL_MS);
  }

  async follow() {
    const state = await (await this.get("/state")).json();
    this.tell(state);
    if (state.page !== this.page && await this.take("/", "[data-part]:not([data-part=curves])")) {
      this.page = state.page;
      this.curves = state.curves;
    } else if (state.curves !== this.curves && await this.take("/curves", "[data-part=curves]")) this.curves = state.curves;
    if (state.generation !== this.generation || state.mark !== this.mark) await this.takeTraces();
  }

  async takeTraces() {
    const query = "?generation=" + encodeURIComponent(this.generation) + "&mark=" + this.mark;
    const data = await (await this.get("/traces" + query)).json();
    this.generation = data.generation;
    this.mark = data.mark;
    if (this.viewer && !data.whole) this.viewer.add(data);
    else if (data.traces.length) {
      this.viewer = new Viewer(this.root, data, (trace) => this.links(trace));
    }
  }

  async links(trace) {
    const query = "?generation=" + encodeURIComponent(this.generation) + "&trace=" + trace.index;
    return (await this.get("/links" + query)).json();
  }

  /** Replace parts of the page by those that `path` has; false if the reader is in one of them. */
  async take(path, parts) {
    const olds = [...document.querySelectorAll(parts)];
    if (olds.some((old) => old.contains(document.activeElement))) return false;
    const text = await (await this.get(path)).text();
    const made = new DOMParser().parseFromString(text, "text/html");
    const news = [...made.querySelectorAll(parts)];
    olds.forEach((old, index) => {
      const open = new Map([...old.querySelectorAll("details")].map((node) => [label(node), node.open]));
      for (const node of news[index].querySelectorAll("details")) {
        if (open.has(label(node))) node.open = open.get(label(node));
      }
      old.replaceWith(document.adoptNode(news[index]));
    });
    return true;
  }

  tell(state) {
    const { now } = state;
    const [done, of] = state.stages;
    fill(this.bar, el("b", { class: now.state === "interrupted" ? "bad" : "" }, STATES[now.state]),
      [now.stage && (now.state === "waiting" ? "next: " : "") + now.stage, now.step && "step " + now.step, now.time, now.score]
        .filter((text) => text).map((text) => " · " + text),
      " · " + done + " of " + of + " stages done",
      state.alerts ? el("span", { class: "bad" }, " · ⚠ " + plural(state.alerts, "alert")) : null,
      state.error ? el("div", { class: "bad" }, state.error) : null);
  }
}

const label = (details) => details.firstElementChild.textContent;

new Live(document.getElementById("live"), document.getElementById("viewer"));
