// The trace viewer: filters, a list of groups (the responses to one prompt), and one group in full.
// Its data (report/page/traces.py): records [task, id, user, gold]; prompts [instruction, items of the profile,
// question], one for each record; groups [stage, step, record]; traces {g: group, n: name, s: status, p: pieces,
// r: total and components, w: weights, a: advantage, c: steps' advantages, score, masked, stale}; terms [label, places in
// r] go with w; stages, tags and heads are referred to by index. In the live view `add` takes what came since.

const PAGE = 30;

class Viewer {
  /** `links`: asks a server for a trace's evidence (person.js); null if there is none. */
  constructor(root, data, links = null) {
    this.data = data;
    this.links = links;
    this.tags = data.tags;
    this.groups = [];
    this.byRecord = new Map();
    this.take(data.groups, data.traces, 0);
    this.page = 0;
    this.selected = null;
    this.person = false;
    this.build(root);
    this.apply();
    this.follow();
    window.addEventListener("hashchange", () => this.follow());
  }

  /** Index new groups and the traces in them; `before` traces were there already. */
  take(groups, traces, before) {
    const first = this.groups.length;
    groups.forEach(([stage, step, record], index) => this.groups.push({ index: first + index, stage, step, record, traces: [] }));
    traces.forEach((trace, index) => {
      trace.index = before + index;
      this.groups[trace.g].traces.push(trace);
    });
    for (const group of this.groups.slice(first)) {
      if (group.traces[0] && group.traces[0].r) group.traces.sort((a, b) => (b.r[0] ?? -Infinity) - (a.r[0] ?? -Infinity));
      const values = group.traces.map(value).filter((item) => item !== null);
      group.high = values.length ? Math.max(...values) : null;
      group.low = values.length ? Math.min(...values) : null;
      group.marks = marksOf(group);
      if (!this.byRecord.has(group.record)) this.byRecord.set(group.record, []);
      this.byRecord.get(group.record).push(group);
    }
  }

  /** What a growing run has made since: new groups, and all stages and instructions. The reader's place is kept. */
  add(data) {
    const before = this.data.traces.length;
    for (const key of ["prompts", "records", "groups", "traces"]) this.data[key].push(...data[key]);
    if (data.stages.length > this.data.stages.length) {
      data.stages.slice(this.data.stages.length).forEach((name, index) =>
        this.controls.stage.control.append(el("option", { value: String(this.data.stages.length + index) }, name)));
    }
    Object.assign(this.data, { stages: data.stages, heads: data.heads, shown: data.shown });
    this.take(data.groups, data.traces, before);
    this.apply(this.selected === null ? null : this.found[this.selected]);
  }

  /** Every question that has a response, as its index. */
  get records() {
    return [...this.byRecord.keys()];
  }

  recordOf(task, id) {
    return this.data.records.findIndex((record) => record[0] === task && record[1] === id);
  }

  nameOf(trace) {
    const name = trace.r ? "sample " + trace.n + ", total " + number(trace.r[0], 2) : trace.n + ", score " + number(trace.score, 2);
    return this.title(this.groups[trace.g]) + ": " + name;
  }

  /** Open the person's page of a question. */
  show(record) {
    const [task, id] = this.data.records[record];
    location.hash = "person=" + encodeURIComponent(task + "/" + id);
  }

  /** Go where the address says: `#person=<task>/<question>`. */
  follow() {
    const [key, place] = location.hash.slice(1).split("=");
    if (key !== "person" || !place) return;
    const [task, ...rest] = decodeURIComponent(place).split("/");
    const record = this.recordOf(task, rest.join("/"));
    const groups = this.byRecord.get(record);
    if (!groups) return;
    let index = this.found.findIndex((group) => groups.includes(group));
    if (index < 0) {
      this.form.reset();
      this.apply();
      index = this.found.findIndex((group) => groups.includes(group));
    }
    this.person = true;
    this.select(index);
    this.detail.scrollIntoView({ block: "start" });
  }

  build(root) {
    const again = () => this.apply();
    const later = () => { clearTimeout(this.timer); this.timer = setTimeout(again, 120); };
    const distinct = (items) => [...new Set(items)].sort();
    const all = (label, items) => [["", "all"], ...items.map((item) => [String(item), label(item)])];
    const { data } = this;
    const statuses = distinct(data.traces.map((trace) => trace.s));
    this.controls = {
      stage: chooser("stage", [["", "all"], ...data.stages.map((name, index) => [String(index), name])], again),
      low: field("from step", "number", later, { min: 0 }),
      high: field("to step", "number", later, { min: 0 }),
      task: chooser("task", all(taskLabel, distinct(data.records.map((record) => record[0]))), again),
      user: field("user", "search", later, { autocomplete: "off" }),
      status: chooser("parser status", all((item) => (item === "DIRECT" ? "answer alone" : item), statuses), again),
      tag: chooser("with tag", [["", "any"], ...data.tags.map(([name, shape], index) => [String(index), shape + " " + name])], again),
      least: field("reward from", "number", later, { step: "any" }),
      most: field("reward to", "number", later, { step: "any" }),
      groups: chooser("group", [["", "all"], ["differ", "rewards differ"], ["equal", "rewards equal"],
        ["masked", "with a masked response"], ["stale", "with a stale response"]], again),
      order: chooser("order", [["spread", "widest difference first"], ["", "as recorded"], ["new", "latest first"],
        ["low", "lowest best first"]], again, this.links ? "new" : "spread"),
      text: field("text", "search", later, { placeholder: "in responses and questions" }),
    };
    const shown = this.controls;
    this.count = el("p", { class: "small", role: "status" });
    this.list = el("ul", { class: "v-list", role: "listbox", tabindex: 0, "aria-label": "groups of responses",
      onkeydown: (event) => this.key(event) });
    this.back = el("button", { type: "button", onclick: () => this.turn(-1) }, "← earlier");
    this.next = el("button", { type: "button", onclick: () => this.turn(1) }, "later →");
    this.place = el("span", { class: "small dim" });
    this.detail = el("section", { class: "v-detail", "aria-live": "off", "aria-label": "the chosen group" });
    // Without rollouts there are no steps to choose from.
    const hidden = data.groups.some((group) => group[1] !== null) ? [] : [shown.low, shown.high];
    this.spread = el("div");
    const form = this.form = el("form", { class: "v-filters", onsubmit: (event) => event.preventDefault() },
      Object.values(shown).filter((item) => !hidden.includes(item)).map((item) => item.node),
      el("button", { type: "button", onclick: () => { form.reset(); this.apply(); } }, "clear"));
    const folded = el("details", { open: window.innerWidth > 760 }, el("summary", {}, "filters"), form);
    fill(root, folded, this.spread, this.count, el("div", { class: "v-layout" },
      el("div", {}, this.list, el("div", { class: "v-pager" }, this.back, this.place, this.next)), this.detail));
  }

  /** The filters as a function of a trace. */
  matcher() {
    const get = (name) => this.controls[name].control.value.trim();
    const stage = get("stage");
    const [low, high, least, most] = ["low", "high", "least", "most"].map((name) => (get(name) === "" ? null : Number(get(name))));
    const [task, user, status, tag] = [get("task"), get("user"), get("status"), get("tag")];
    const words = get("text").toLowerCase();
    const { groups, data } = this;
    const fits = (reward) => (least === null || (reward !== null && reward >= least))
      && (most === null || (reward !== null && reward <= most));
    const rest = (trace) => {
      const group = groups[trace.g];
      const record = data.records[group.record];
      return (stage === "" || group.stage === Number(stage))
        && (low === null || (group.step !== null && group.step >= low))
        && (high === null || (group.step !== null && group.step <= high))
        && (task === "" || record[0] === task)
        && (user === "" || record[2].includes(user))
        && (status === "" || trace.s === status)
        && (tag === "" || trace.p.some(([kind]) => kind === Number(tag)))
        && (words === "" || this.textOf(trace, group, record).includes(words));
    };
    return { rest, fits };
  }

  textOf(trace, group, record) {
    trace.text ??= [...trace.p.map(([, text]) => text), this.data.prompts[group.record][2], record[1], record[3]].join(" ").toLowerCase();
    return trace.text;
  }

  /** Filter and order anew; the group `chosen` stays open if it still matches. */
  apply(chosen = null) {
    const { rest, fits } = this.matcher();
    const rewards = [];
    const kind = this.controls.groups.control.value;
    const order = this.controls.order.control.value;
    let responses = 0;
    this.matching = new Set();
    this.found = this.groups.filter((group) => {
      const differs = group.high !== null && group.high - group.low > 1e-9;
      if ((kind === "differ" && !differs) || (kind === "equal" && differs)) return false;
      if ((kind === "masked" && !group.marks.includes(MASKED)) || (kind === "stale" && !group.marks.includes(STALE))) return false;
      const hits = group.traces.filter((trace) => {
        if (!rest(trace)) return false;
        const reward = value(trace);
        if (reward !== null) rewards.push(reward);
        return fits(reward);
      });
      hits.forEach((trace) => this.matching.add(trace));
      responses += hits.length;
      return hits.length > 0;
    });
    if (order === "spread") this.found.sort((a, b) => b.high - b.low - (a.high - a.low));
    if (order === "new") this.found.sort((a, b) => (a.step === null) - (b.step === null) || b.stage - a.stage || b.step - a.step || a.index - b.index);
    if (order === "low") this.found.sort((a, b) => a.high - b.high);
    fill(this.count, plural(responses, "response") + " in " + plural(this.found.length, "group") + " match.");
    this.renderSpread(histogram(rewards));
    const place = chosen ? this.found.indexOf(chosen) : -1;
    if (place >= 0) {
      this.selected = place; // it stays open, wherever it is in the list now
      this.page = Math.min(this.page, Math.floor((this.found.length - 1) / PAGE));
      this.renderList(true);
      return;
    }
    this.page = 0;
    this.select(this.found.length ? 0 : null);
  }

  renderSpread(bins) {
    const { least, most } = this.controls;
    const text = (item) => String(Number(item.toFixed(6)));
    const inside = (low, high) => (least.control.value === "" || high > Number(least.control.value))
      && (most.control.value === "" || low < Number(most.control.value));
    const choose = (low, high) => {
      const same = least.control.value === text(low) && most.control.value === text(high);
      least.control.value = same ? "" : text(low);
      most.control.value = same ? "" : text(high);
      this.apply();
    };
    fill(this.spread, bins.length ? renderHistogram(bins, inside, choose) : null);
  }

  /** Choose a matching group by its place; the page of the list follows. */
  select(place) {
    this.selected = place;
    if (place !== null) this.page = Math.floor(place / PAGE);
    this.renderList();
    this.renderDetail();
  }

  turn(by) {
    this.select(Math.min(Math.max((this.page + by) * PAGE, 0), this.found.length - 1));
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || this.selected === null) return;
    event.preventDefault();
    this.select(Math.min(Math.max(this.selected + steps[event.key], 0), this.found.length - 1));
  }

  /** `still`: the list keeps its place, since its reader did nothing. */
  renderList(still = false) {
    const first = this.page * PAGE;
    const rows = this.found.slice(first, first + PAGE).map((group, index) => {
      const chosen = first + index === this.selected;
      const record = this.data.records[group.record];
      return el("li", { role: "option", id: "v-group-" + group.index, "aria-selected": String(chosen),
        onclick: () => { this.select(first + index); this.list.focus({ preventScroll: true }); } },
      el("b", {}, this.title(group)), el("span", { class: "small" }, taskLabel(record[0]) + " · " + record[1]),
      group.marks.length ? el("span", {}, group.marks.map((mark) => el("span", { class: "pill bad" }, mark))) : null,
      el("span", { class: "small dim" }, group.traces.length + " responses · " + (group.traces[0].r ? "total " : "score ")
        + number(group.low, 2) + (group.low === group.high ? "" : " to " + number(group.high, 2))));
    });
    fill(this.list, rows);
    const chosen = this.selected === null ? null : this.found[this.selected];
    if (chosen && this.list.children[this.selected - first]) {
      this.list.setAttribute("aria-activedescendant", "v-group-" + chosen.index);
      const node = this.list.children[this.selected - first];
      if (!still) this.list.scrollTop = Math.max(0, node.offsetTop - this.list.offsetTop - this.list.clientHeight / 2);
    } else this.list.removeAttribute("aria-activedescendant");
    const last = Math.min(first + PAGE, this.found.length);
    fill(this.place, this.found.length ? first + 1 + "–" + last + " of " + this.found.length : "no group");
    this.back.disabled = first === 0;
    this.next.disabled = last >= this.found.length;
  }

  title(group) {
    return this.data.stages[group.stage] + (group.step === null ? "" : " · step " + group.step);
  }

  renderDetail() {
    if (this.selected === null) {
      fill(this.detail, el("p", { class: "dim" }, "No response matches the filters."));
      return;
    }
    const group = this.found[this.selected];
    const turn = (person) => {
      this.person = person;
      history.replaceState(null, "", person ? "#person=" + encodeURIComponent(task + "/" + id) : "#traces");
      this.renderDetail();
    };
    const [task, id, user, gold] = this.data.records[group.record];
    const [head, profile, question] = this.data.prompts[group.record];
    const tabs = el("div", { class: "v-pager v-tabs" },
      [[false, "the group"], [true, "the person's page"]].map(([person, text]) => el("button",
        { type: "button", "aria-pressed": String(this.person === person), onclick: () => turn(person) }, text)));
    if (this.person) {
      fill(this.detail, tabs, new Person(this, group).render());
      return;
    }
    fill(this.detail, tabs,
      el("h3", {}, this.title(group) + " · " + taskLabel(task) + " · " + id),
      el("p", { class: "small" }, "user " + user + " · gold answer ", el("b", {}, gold), group.marks.flatMap((mark) => [" ", el("span", { class: "pill bad" }, mark)])),
      this.data.heads[head] ? el("details", {}, el("summary", {}, "instruction"), el("pre", {}, this.data.heads[head])) : null,
      profile.length ? el("details", { open: true }, el("summary", {}, "profile: " + plural(profile.length, "item")),
        el("ol", { class: "v-profile" }, profile.map((item) => el("li", {}, item))))
        : this.data.heads[head] ? el("p", {}, "The user's history is empty.") : null,
      el("details", { open: true }, el("summary", {}, this.data.heads[head] ? "question" : "prompt"), el("pre", {}, question)),
      this.comparison(group),
      el("div", { class: "v-cards" }, group.traces.map((trace) => renderCard(trace, this.tags, this.data.terms, !this.matching.has(trace)))));
  }

  /** Two responses to the same question, from any stage and step, word by word. */
  comparison(group) {
    const options = [];
    for (const other of [group, ...this.byRecord.get(group.record).filter((item) => item !== group)]) {
      for (const trace of other.traces) {
        const name = trace.r ? "sample " + trace.n + ", total " + number(trace.r[0], 2) : trace.n + ", score " + number(trace.score, 2);
        options.push({ trace, name: other === group ? name : this.title(other) + ": " + name });
      }
    }
    if (options.length < 2) return null;
    const here = group.traces.length;
    const last = here > 1 ? here - 1 : 1;
    // Rollouts: the worst against the best. Evaluated models: the first that thinks against the last.
    const thinks = group.traces.slice(0, last).findIndex((trace) => trace.s !== "DIRECT");
    const [from, to] = group.traces[0].r ? [last, 0] : [Math.max(thinks, 0), last];
    const out = el("div");
    const pairs = options.map((item, index) => [String(index), item.name]);
    const draw = () => fill(out, renderDiff(options[a.control.value].trace, options[b.control.value].trace, this.tags));
    const a = chooser("from", pairs, draw, String(from));
    const b = chooser("to", pairs, draw, String(to));
    const drawn = (event) => { if (event.target.open && !out.firstChild) draw(); };
    return el("details", { ontoggle: drawn }, el("summary", {}, "difference between two responses"),
      el("div", { class: "v-filters" }, a.node, b.node),
      el("p", { class: "small dim" }, el("del", {}, "struck through"), ": in the first alone. ", el("ins", {}, "underlined"),
        ": in the second alone."), out);
  }
}

const EQUAL = "zero variance";
const MASKED = "masked";
const STALE = "stale";

/** What is wrong with a group of rollouts: its rewards are equal and teach nothing, or some responses took no part, or
 * were sampled by older weights. */
function marksOf(group) {
  if (!group.traces[0] || !group.traces[0].r) return [];
  const flat = group.traces.length > 1 && group.high !== null && group.high - group.low <= 1e-9;
  const dropped = group.traces.some((trace) => trace.masked && trace.masked !== EQUAL);
  return [flat ? EQUAL : "", dropped ? MASKED : "", group.traces.some((trace) => trace.stale) ? STALE : ""].filter((mark) => mark);
}

/** `1 item`, `2 items`. */
function plural(n, word) {
  return n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s");
}

/** What a response is filtered and listed by: its total reward, or the score of an evaluated response. */
function value(trace) {
  return (trace.r ? trace.r[0] : trace.score) ?? null;
}

// On a phone the charts and samples are folded, so that the page is not a hundred screens long.
if (window.innerWidth <= 600) document.querySelectorAll("details.fold[open]").forEach((node) => { node.open = false; });

const source = document.getElementById("viewer-data");
if (source) new Viewer(document.getElementById("viewer"), JSON.parse(source.textContent));
