// How the rewards of the responses that match are spread; a bar chooses its range.

const BINS = 20;

/** [[low, high, count], ...] over the values' range; [] for fewer than two different values. */
function histogram(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const item of values) { low = Math.min(low, item); high = Math.max(high, item); }
  if (!(high > low)) return [];
  const width = (high - low) / BINS;
  const counts = new Array(BINS).fill(0);
  for (const item of values) counts[Math.min(BINS - 1, Math.floor((item - low) / width))] += 1;
  return counts.map((count, index) => [low + index * width, index === BINS - 1 ? high : low + (index + 1) * width, count]);
}

/** The bars as buttons. `inside(low, high)`: whether the range filter lets a bar through; `choose(low, high)` sets it. */
function renderHistogram(bins, inside, choose) {
  const most = Math.max(...bins.map((bin) => bin[2]), 1);
  const bars = bins.map(([low, high, count]) => el("button", {
    type: "button",
    class: "v-bin" + (inside(low, high) ? "" : " off"),
    disabled: count === 0,
    title: number(low, 2) + " to " + number(high, 2) + ": " + plural(count, "response"),
    "aria-label": number(low, 2) + " to " + number(high, 2) + ": " + plural(count, "response"),
    onclick: () => choose(low, high),
  }, el("span", { style: "height:" + (count ? Math.max(4, Math.round((100 * count) / most)) : 0) + "%" })));
  return el("figure", { class: "v-histogram" },
    el("figcaption", {}, el("b", {}, "rewards"), el("span", { class: "small dim" }, " a bar chooses its range, and again all")),
    el("div", { class: "v-bins" }, bars),
    el("div", { class: "v-ends small dim" }, el("span", {}, number(bins[0][0], 2)), el("span", {}, number(bins[bins.length - 1][1], 2))));
}
