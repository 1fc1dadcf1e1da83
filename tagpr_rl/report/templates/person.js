// A person's page: the history on the left, a thought on the right, and what others answered to the same question.

/** Draws the page of the user whose question the viewer's group is about. `viewer.links(trace)`: a promise of, for each
 * step, [item, words] of the history that the step draws on; null in a page without a server. */
class Person {
  constructor(viewer, group) {
    this.viewer = viewer;
    const { data } = viewer;
    [this.task, this.id, this.user, this.gold] = data.records[group.record];
    this.items = data.prompts[group.record][1];
    this.question = data.prompts[group.record][2];
    this.traces = viewer.byRecord.get(group.record).flatMap((own) => own.traces);
    this.first = this.traces.indexOf(group.traces[0]);
  }

  render() {
    const { viewer } = this;
    const own = viewer.records.filter((record) => viewer.data.records[record][2] === this.user);
    const questions = own.map((record) => [String(record), viewer.data.records[record][1] + " · " + tail(viewer.data.prompts[record][2], 60)]);
    const here = String(viewer.recordOf(this.task, this.id));
    const asks = chooser("question", questions, (event) => viewer.show(Number(event.target.value)), here);
    const names = this.traces.map((trace, index) => [String(index), viewer.nameOf(trace)]);
    this.chosen = chooser("response", names, () => this.draw(), String(this.first));
    this.left = el("section", { class: "v-side", "aria-label": "history" });
    this.right = el("section", { class: "v-side", "aria-label": "response" });
    this.draw();
    return [
      el("h3", {}, "user " + this.user + " · " + taskLabel(this.task)),
      el("div", { class: "v-filters" }, asks.node, this.chosen.node),
      el("p", {}, el("b", {}, "Question "), tail(this.question, 400)),
      el("div", { class: "v-person" }, this.left, this.right),
      this.others(),
    ];
  }

  draw() {
    const trace = this.traces[Number(this.chosen.control.value)];
    this.drawItems([]);
    this.drawResponse(trace, []);
    if (!this.viewer.links) return;
    this.viewer.links(trace).then((links) => {
      if (trace !== this.traces[Number(this.chosen.control.value)]) return;
      this.drawItems(links);
      this.drawResponse(trace, links);
    }, () => {});
  }

  /** The history; an item tells which steps draw on it. */
  drawItems(links) {
    const used = this.items.map((_, item) => links.flatMap((step, index) => (step.some(([own]) => own === item) ? [index + 1] : [])));
    fill(this.left, el("h4", {}, "History: " + plural(this.items.length, "item")),
      this.items.length ? el("ol", { class: "v-profile" }, this.items.map((text, item) =>
        el("li", { id: "v-item-" + item, class: used[item].length ? "used" : "" },
          marked(text, new Set(links.flatMap((step) => step.filter(([own]) => own === item).flatMap(([, words]) => words)))),
          used[item].length ? el("small", { class: "dim" }, " ← step " + used[item].join(", ")) : null)))
        : el("p", { class: "dim" }, "No item of a history is in the prompt."));
  }

  drawResponse(trace, links) {
    const pieces = renderPieces(trace, this.viewer.tags, (step, text) => this.evidence(links[step], text));
    const answer = trace.p.filter(([kind]) => kind === ANSWER).map(([, text]) => text).join(" ");
    const right = answer !== "" && answer.trim().toLowerCase() === this.gold.trim().toLowerCase();
    fill(this.right, el("h4", {}, "Thought and answer"),
      el("div", { class: "v-text" }, pieces),
      el("p", { class: "v-gold" }, "answer ", el("b", {}, answer || "none"), " · the user's own ", el("b", {}, this.gold), " ",
        el("span", { class: "pill" + (right ? "" : " bad") }, right ? "✓ the same" : "✗ differs")),
      el("p", { class: "small dim" }, this.viewer.links
        ? (links.some((step) => step.length) ? "Marked words are in the history and neither in the question nor in most users' histories."
          : "No word of this thought points to an item of the history.")
        : "Evidence is linked to the history by tagpr watch."));
  }

  /** A step's text with its evidence marked, and the items that it comes from. */
  evidence(links, text) {
    if (!links || !links.length) return [text];
    const words = new Set(links.flatMap(([, own]) => own));
    return [marked(text, words), el("small", { class: "v-from" }, "from ", links.map(([item]) =>
      el("button", { type: "button", onclick: () => this.flash(item) }, "item " + (item + 1))))];
  }

  flash(item) {
    for (const node of this.left.querySelectorAll("li.flash")) node.classList.remove("flash");
    const node = this.left.querySelector("#v-item-" + item);
    node.classList.add("flash");
    node.scrollIntoView({ block: "nearest" });
  }

  /** What the responses to other people's same question answered. */
  others() {
    const { viewer } = this;
    const same = viewer.records.filter((record) => viewer.data.records[record][0] === this.task
      && viewer.data.records[record][2] !== this.user && viewer.data.prompts[record][2] === this.question);
    if (!same.length) return el("p", { class: "small dim" }, "Nobody else on this page was asked this question.");
    const rows = same.map((record) => {
      const { traces } = viewer.byRecord.get(record).at(-1);
      const trace = traces[0].r ? traces[0] : traces.at(-1); // the best of the latest step, or the last model's
      const answer = trace.p.filter(([kind]) => kind === ANSWER).map(([, text]) => text).join(" ") || "none";
      const [, , user, gold] = viewer.data.records[record];
      return el("tr", {}, el("th", { scope: "row" }, el("button", { type: "button", class: "v-link", onclick: () => viewer.show(record) }, user)),
        el("td", {}, answer), el("td", {}, gold), el("td", { class: "num" }, number(value(trace), 2)), el("td", { class: "dim" }, viewer.nameOf(trace)));
    });
    return el("div", { class: "scroll" }, el("table", { class: "v-others" },
      el("caption", {}, el("span", {}, "Other people's answers to the same question")),
      el("thead", {}, el("tr", {}, ["user", "answer", "their own", "reward", "response"].map((text, i) =>
        el("th", { scope: "col", class: i === 3 ? "num" : "" }, text)))),
      el("tbody", {}, rows)));
  }
}

const tail = (text, most) => (text.length > most ? "… " + text.slice(-most) : text);

/** `text` with the words of a set marked; a word is what the evidence rule calls one. */
function marked(text, words) {
  return el("span", {}, text.split(/([\p{L}\p{N}\p{M}_]+)/u).map((part, index) =>
    (index % 2 && words.has(part.toLowerCase()) ? el("mark", {}, part) : part)));
}
