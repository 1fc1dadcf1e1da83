// Which words two texts share: longest common subsequence.

const MOST_CELLS = 4e6;

/** [["=" | "-" | "+", word], ...] from a to b; "-" stands in a alone, "+" in b alone. */
function wordDiff(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
  const same = (words) => words.map((word) => ["=", word]);
  return [
    ...same(a.slice(0, start)),
    ...middleDiff(a.slice(start, endA), b.slice(start, endB)),
    ...same(a.slice(endA)),
  ];
}

function middleDiff(a, b) {
  const n = a.length;
  const m = b.length;
  const whole = [...a.map((word) => ["-", word]), ...b.map((word) => ["+", word])];
  if (n === 0 || m === 0 || n * m > MOST_CELLS) return whole;
  const width = m + 1;
  const longest = new Uint32Array((n + 1) * width); // of the texts from i and j on
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const out = [];
  let i = 0;
  let j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[i] === b[j]) { out.push(["=", a[i]]); i++; j++; }
    else if (i < n && (j === m || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) out.push(["-", a[i++]]);
    else out.push(["+", b[j++]]);
  }
  return out;
}
