// One response: its steps in the tags' colours and shapes, what it was rewarded for, and its difference to another.

const ANSWER = -1;
const RAW = -2;
const MARK = -3;
const SUM_TOLERANCE = 1e-4;

/** The pieces of a response; `tags` are [name, shape]; `within(step, text)`: what stands in a step, its text by default. */
function renderPieces(trace, tags, within = (_, text) => [text]) {
  let step = -1;
  return trace.p.map(([kind, text]) => {
    if (kind === ANSWER) return el("div", { class: "v-answer" }, el("small", {}, "answer"), el("b", {}, text));
    if (kind === RAW) return el("span", { class: "raw" }, text);
    if (kind === MARK) return el("span", { class: "mark" }, "▲ " + text);
    step += 1;
    const credit = trace.c ? trace.c[step] : undefined;
    return el("div", { class: "v-step step t" + kind },
      el("small", {}, el("span", { class: "shape", "aria-hidden": "true" }, tags[kind][1]), " " + tags[kind][0]),
      credit === undefined || credit === null ? null
        : el("span", { class: "credit", title: "advantage of this step, added to the response's; its tokens have " + number(trace.a + credit, 3, true) }, arrow(credit) + number(credit, 2, true)),
      within(step, text));
  });
}

const arrow = (value) => (value > 0 ? "▲ " : value < 0 ? "▼ " : "");

/** Rows [label, value, weight, term, value as text] of a rewarded response: its total is the sum of the terms. */
function rewardTerms(trace, terms) {
  return terms.map(([label, factors], index) => {
    const weight = trace.w[index];
    const values = factors.map((factor) => trace.r[factor]);
    const noScore = label === "prmu" && trace.prmu;
    const value = noScore || values.includes(null) ? null : values.reduce((all, factor) => all * factor, 1);
    const parts = label === "tag" && trace.tp ? Object.entries(trace.tp).map(([key, part]) => key + " " + number(part, 2)) : [];
    const note = noScore ? trace.prmu : parts.join(", ");
    const shown = factors.length > 1 ? values.map((factor) => number(factor, 2)).join(" × ") : number(value, 3);
    return [label + (note ? " (" + note + ")" : ""), value, weight, value === null ? null : value * weight, shown];
  }).filter((row) => row[2] !== null && row[2] !== undefined);
}

function renderReward(trace, terms) {
  const rows = rewardTerms(trace, terms);
  const total = trace.r[0];
  const sum = rows.reduce((all, row) => all + (row[3] || 0), 0);
  const wrong = total !== null && !trace.prmu && Math.abs(sum - total) > SUM_TOLERANCE;
  const table = el("table", { class: "v-terms quiet" }, el("caption", {}, "Reward of sample " + trace.n),
    el("thead", {}, el("tr", {}, ...["component", "value", "weight", "term"].map((text, i) =>
      el("th", { class: i ? "num" : "", scope: "col" }, text)))),
    el("tbody", {},
      rows.map(([label, , weight, term, shown]) => el("tr", { class: weight ? "" : "unused" },
        el("th", { scope: "row" }, label), el("td", { class: "num" }, shown),
        el("td", { class: "num" }, "× " + Number(weight.toFixed(4))), el("td", { class: "num" }, number(term, 3)))),
      el("tr", { class: "sum" }, el("th", { scope: "row" }, "total"), el("td", {}), el("td", {}),
        el("td", { class: "num" }, number(total, 3)))));
  return [table, wrong ? el("p", { class: "small bad" }, "The terms add up to " + number(sum, 4) + ", not to the logged total.") : null];
}

/** A response as a card. `outside`: the filters leave it out. */
function renderCard(trace, tags, terms, outside) {
  const ok = trace.s === "OK" || trace.s === "DIRECT";
  return el("article", { class: "v-card" + (outside ? " outside" : "") },
    el("header", {},
      el("b", {}, trace.r ? "sample " + trace.n : trace.n),
      el("span", { class: "pill" + (ok ? "" : " bad") }, (ok ? "✓ " : "✗ ") + (trace.s === "DIRECT" ? "answer alone" : trace.s)),
      trace.r
        ? el("span", { class: "num" }, "total ", el("b", {}, number(trace.r[0], 3)))
        : el("span", { class: "num" }, "score ", el("b", {}, number(trace.score, 2))),
      trace.r ? el("span", { class: "num adv" }, "advantage ", el("b", {}, arrow(trace.a) + number(trace.a, 2, true))) : null,
      outside ? el("span", { class: "pill" }, "outside the filters") : null),
    trace.stale ? el("p", { class: "small bad" }, "stale: sampled " + plural(trace.stale, "update") + " before this step's weights") : null,
    trace.masked ? el("p", { class: "small bad" }, "took no part in the update: " + trace.masked) : null,
    el("div", { class: "v-text" }, renderPieces(trace, tags)),
    trace.why ? el("p", { class: "small bad" }, trace.s + ": " + trace.why) : null,
    trace.r ? renderReward(trace, terms) : null);
}

/** The words of a response, each step led by its tag in brackets. */
function wordsOf(trace, tags) {
  return trace.p.flatMap(([kind, text]) => {
    const lead = kind === ANSWER ? ["[answer]"] : kind === MARK ? ["▲"] : kind === RAW ? [] : ["[" + tags[kind][0] + "]"];
    return [...lead, ...text.split(/\s+/).filter((word) => word)];
  });
}

/** The words of two responses: struck through where the first alone has them, underlined where the second has. */
function renderDiff(first, second, tags) {
  const runs = [];
  for (const [kind, word] of wordDiff(wordsOf(first, tags), wordsOf(second, tags))) {
    const last = runs[runs.length - 1];
    const starts = word.startsWith("[") && (word === "[answer]" || tags.some(([name]) => word === "[" + name + "]"));
    if (last && last[0] === kind && !starts) last[1].push(word);
    else runs.push([kind, [word], starts]);
  }
  const changed = runs.some(([kind]) => kind !== "=");
  return el("div", { class: "v-diff" },
    runs.flatMap(([kind, words, starts], index) => [
      starts && index ? el("br") : " ",
      el(kind === "-" ? "del" : kind === "+" ? "ins" : "span", {}, words.join(" ")),
    ]),
    changed ? null : el("p", { class: "dim" }, "The two responses are the same, word for word."));
}
