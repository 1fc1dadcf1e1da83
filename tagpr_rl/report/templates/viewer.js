// The trace viewer: filters, a list of groups (the responses to one prompt), and one group in full.
// Its data (report/page/traces.py): records [task, id, user, gold]; prompts [instruction, items of the profile,
// question], one for each record; groups [stage, step, record]; traces {g: group, n: name, s: status, p: pieces,
// r: total and components, w: weights, a: advantage, c: steps' advantages, score}; terms [label, places in r] go with w;
// stages, tags and heads are referred to by index.

const PAGE = 30;

class Viewer {
  constructor(root, data) {
    this.data = data;
    this.tags = data.tags;
    this.groups = data.groups.map(([stage, step, record], index) => ({ index, stage, step, record, traces: [] }));
    this.byRecord = new Map();
    data.traces.forEach((trace) => this.groups[trace.g].traces.push(trace));
    for (const group of this.groups) {
      if (group.traces[0] && group.traces[0].r) group.traces.sort((a, b) => (b.r[0] ?? -Infinity) - (a.r[0] ?? -Infinity));
      const values = group.traces.map(value).filter((item) => item !== null);
      group.high = values.length ? Math.max(...values) : null;
      group.low = values.length ? Math.min(...values) : null;
      if (!this.byRecord.has(group.record)) this.byRecord.set(group.record, []);
      this.byRecord.get(group.record).push(group);
    }
    this.page = 0;
    this.selected = null;
    this.build(root);
    this.apply();
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
      groups: chooser("group", [["", "all"], ["differ", "rewards differ"], ["equal", "rewards equal"]], again),
      order: chooser("order", [["spread", "widest difference first"], ["", "as recorded"], ["low", "lowest best first"]],
        again, "spread"),
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
    const form = el("form", { class: "v-filters", onsubmit: (event) => event.preventDefault() },
      Object.values(shown).filter((item) => !hidden.includes(item)).map((item) => item.node),
      el("button", { type: "button", onclick: () => { form.reset(); this.apply(); } }, "clear"));
    const folded = el("details", { open: window.innerWidth > 760 }, el("summary", {}, "filters"), form);
    fill(root, folded, this.count, el("div", { class: "v-layout" },
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
    return (trace) => {
      const group = groups[trace.g];
      const record = data.records[group.record];
      const reward = value(trace);
      return (stage === "" || group.stage === Number(stage))
        && (low === null || (group.step !== null && group.step >= low))
        && (high === null || (group.step !== null && group.step <= high))
        && (task === "" || record[0] === task)
        && (user === "" || record[2].includes(user))
        && (status === "" || trace.s === status)
        && (tag === "" || trace.p.some(([kind]) => kind === Number(tag)))
        && (least === null || (reward !== null && reward >= least))
        && (most === null || (reward !== null && reward <= most))
        && (words === "" || this.textOf(trace, group, record).includes(words));
    };
  }

  textOf(trace, group, record) {
    trace.text ??= [...trace.p.map(([, text]) => text), this.data.prompts[group.record][2], record[1], record[3]].join(" ").toLowerCase();
    return trace.text;
  }

  apply() {
    const matches = this.matcher();
    const kind = this.controls.groups.control.value;
    const order = this.controls.order.control.value;
    let responses = 0;
    this.matching = new Set();
    this.found = this.groups.filter((group) => {
      const differs = group.high !== null && group.high - group.low > 1e-9;
      if ((kind === "differ" && !differs) || (kind === "equal" && differs)) return false;
      const hits = group.traces.filter(matches);
      hits.forEach((trace) => this.matching.add(trace));
      responses += hits.length;
      return hits.length > 0;
    });
    if (order === "spread") this.found.sort((a, b) => b.high - b.low - (a.high - a.low));
    if (order === "low") this.found.sort((a, b) => a.high - b.high);
    fill(this.count, plural(responses, "response") + " in " + plural(this.found.length, "group") + " match.");
    this.page = 0;
    this.select(this.found.length ? 0 : null);
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

  renderList() {
    const first = this.page * PAGE;
    const rows = this.found.slice(first, first + PAGE).map((group, index) => {
      const chosen = first + index === this.selected;
      const record = this.data.records[group.record];
      return el("li", { role: "option", id: "v-group-" + group.index, "aria-selected": String(chosen),
        onclick: () => { this.select(first + index); this.list.focus({ preventScroll: true }); } },
      el("b", {}, this.title(group)), el("span", { class: "small" }, taskLabel(record[0]) + " · " + record[1]),
      el("span", { class: "small dim" }, group.traces.length + " responses · " + (group.traces[0].r ? "total " : "score ")
        + number(group.low, 2) + (group.low === group.high ? "" : " to " + number(group.high, 2))));
    });
    fill(this.list, rows);
    const chosen = this.selected === null ? null : this.found[this.selected];
    if (chosen) {
      this.list.setAttribute("aria-activedescendant", "v-group-" + chosen.index);
      const node = this.list.children[this.selected - first];
      this.list.scrollTop = Math.max(0, node.offsetTop - this.list.offsetTop - this.list.clientHeight / 2);
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
    const [task, id, user, gold] = this.data.records[group.record];
    const [head, profile, question] = this.data.prompts[group.record];
    fill(this.detail,
      el("h3", {}, this.title(group) + " · " + taskLabel(task) + " · " + id),
      el("p", { class: "small" }, "user " + user + " · gold answer ", el("b", {}, gold)),
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
