// Elements from plain values. Text is only ever set as text, never as markup.

/** An element with attributes and children; a child that is no node becomes text; null and false are left out. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Replace all children. */
function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}

/** A select with a label; `options` are [value, text] pairs. */
function chooser(label, options, onchange, value) {
  const select = el("select", { onchange });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === value }, text));
  return { node: el("label", {}, el("span", {}, label), select), control: select };
}

/** A text or number field with a label. */
function field(label, type, oninput, attributes = {}) {
  const input = el("input", { type, oninput, ...attributes });
  return { node: el("label", {}, el("span", {}, label), input), control: input };
}

/** A number with so many decimals, a real minus sign, and a plus sign if `signed`; "-" for none. */
function number(value, digits = 3, signed = false) {
  if (value === null || value === undefined) return "-";
  const text = Math.abs(value).toFixed(digits);
  const zero = Number(text) === 0;
  if (value < 0 && !zero) return "−" + text;
  return signed && !zero ? "+" + text : text;
}

const taskLabel = (task) => task.replaceAll("_", "-");
