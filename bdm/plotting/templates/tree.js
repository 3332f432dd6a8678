"use strict";

// ---- the tree

const DATA = JSON.parse(document.getElementById("data").textContent);
const branches = DATA.branches.map((branch, index) => ({ ...branch, index, children: [] }));
for (const branch of branches) {
  branch.up = branch.parent === null ? null : branches[branch.parent];
  branch.depth = branch.up ? branch.up.depth + 1 : 1;
  branch.added = branch.added > DATA.since;
  if (branch.up) branch.up.children.push(branch);
}
// Populations below each branch, their cell types, and the type if all have the same
for (const branch of [...branches].reverse()) {
  const inner = branch.children.length > 0;
  branch.populations = inner ? branch.children.flatMap((child) => child.populations) : [branch];
  branch.types = inner ? [...new Set(branch.children.flatMap((child) => child.types))] : [branch.type ?? branch.name];
  branch.type = branch.types.length === 1 ? branch.types[0] : null;
}
const ofType = new Map(); // highest branch of each cell type
for (const branch of branches) if (branch.type !== null && !ofType.has(branch.type)) ofType.set(branch.type, branch);
const populationsOf = new Map([...ofType.keys()].map((type) => [type, []]));
for (const population of branches[0].populations) populationsOf.get(population.type).push(population);
const subPopulations = branches[0].populations.filter((branch) => branch.name !== branch.type);

function lineage(branch) {
  const found = [];
  for (; branch; branch = branch.up) found.push(branch);
  return found;
}

function below(branch) {
  return [branch, ...branch.children.flatMap(below)];
}

// ---- what is shown

const STEP = 10; // approximate number of rows that a click on a wedge adds
const state = {
  opened: new Set(DATA.opened.map((index) => branches[index])),
  top: branches[DATA.top],
  chosen: branches[DATA.top],
  matches: [],
  zoom: 1,
};

const isOpen = (branch) => branch.children.length > 0 && state.opened.has(branch);

/** Open the highest nodes below a branch until about `rows` rows are added; cell types stay closed unless all open. */
function open(branch, rows = STEP) {
  const waiting = [branch];
  for (let added = 0; waiting.length && added < rows; ) {
    waiting.sort((one, other) => other.level - one.level);
    const node = waiting.shift();
    const closedType = node.type !== null && branch.type === null && rows < Infinity;
    if (!node.children.length || closedType) continue;
    state.opened.add(node);
    added += node.children.length - 1;
    waiting.push(...node.children);
  }
}

function close(branch) {
  for (const node of below(branch)) state.opened.delete(node);
}

function toggle(branch) {
  if (!branch.children.length) return;
  if (isOpen(branch)) close(branch);
  else open(branch);
}

/** Open all nodes above a branch to show it. */
function reveal(branch) {
  const above = lineage(branch).slice(1);
  if (branch !== state.top && !above.includes(state.top)) state.top = branches[0];
  for (const node of above) state.opened.add(node);
}

/** Visible branches, parents first, with their rows. */
function shown() {
  const found = [];
  let row = 0;
  const visit = (branch) => {
    found.push(branch);
    if (!isOpen(branch)) {
      branch.row = row++;
      return;
    }
    branch.children.forEach(visit);
    branch.row = (branch.children[0].row + branch.children[branch.children.length - 1].row) / 2;
  };
  visit(state.top);
  return { found, rows: row };
}

// ---- drawing

const ROW = 22, LETTER = 6.6, LEFT = 8;
const view = document.getElementById("view");
const [axis, tree] = ["axis", "tree"].map((id) => document.getElementById(id));

function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const number = (value) => value.toLocaleString("en");
const level = (value) => value.toFixed(1);
const share = (value) => `${Math.round(100 * value)}%`;
const plus = (branch) => (branch.added ? "+ " : "");

function named(names, width = 26) {
  let label = names[0];
  let n = 1;
  while (n < names.length && label.length + names[n].length + 2 < width) label += `, ${names[n++]}`;
  return n < names.length ? `${label} +${names.length - n}` : label;
}

const isWholeType = ({ type, populations }) =>
  type !== null && populations.length === populationsOf.get(type).length;
const nBelow = ({ type, types, populations }) =>
  type === null ? `${types.length} types` : `${populations.length} sub-populations`;
/** Share of a type's cells in a sub-population, or in several. */
function ofItsType(branch) {
  if (branch.type === null || isWholeType(branch)) return null;
  return share(branch.cells / populationsOf.get(branch.type).reduce((sum, { cells }) => sum + cells, 0));
}

/** Label of the row of a population or wedge. */
function rowText(branch) {
  const note = branch.note === null ? "" : `, ${branch.note}`;
  const cells = number(branch.cells), part = ofItsType(branch), names = branch.type === null ? branch.types : namesBelow(branch);
  if (!branch.children.length) return `${plus(branch)}${branch.name} (${part === null ? cells : `${cells}, ${part}`}${note})`;
  const matches = state.matches.filter((match) => match !== branch && lineage(match).includes(branch)).length;
  const found = matches ? ` · ${matches} found` : "";
  if (isWholeType(branch)) return `${plus(branch)}${branch.name} (${nBelow(branch)}, ${cells}${note})${found}`;
  if (view.clientWidth < 500) return `${nBelow(branch)}: ${named(names, 18)}${found}`;
  return `${branch.name}: ${nBelow(branch)} (${cells}) ${named(names)}${found}`;
}

const namesBelow = (branch) => branch.populations.map((population) => population.name);

function spoken(branch) {
  const cells = `${number(branch.cells)} cells`, part = ofItsType(branch);
  const end = `${part === null ? "" : `, ${part} of ${branch.type}`}${branch.added ? ", added" : ""}${branch.note === null ? "" : `, ${branch.note}`}`;
  if (!branch.children.length) return `${branch.name}, ${cells}${end}`;
  const support = branch.support === null ? "" : `, support ${share(branch.support)}`;
  return `${branch.name}, level ${level(branch.level)}${support}, ${nBelow(branch)}, ${cells}${end}`;
}

function render() {
  const { found, rows } = shown();
  const ends = found.filter((branch) => !isOpen(branch));
  const labels = new Map(ends.map((branch) => [branch, rowText(branch)]));
  const longest = LETTER * Math.max(...[...labels.values()].map((text) => text.length)) + 16;
  const room = view.clientWidth - 2;
  const treeWidth = Math.max(room - longest, 0.3 * room, 110);
  const width = treeWidth + longest;
  const high = (state.top.up ? state.top.up.level : DATA.sigma_max) || 1;
  const x = (value) => LEFT + (treeWidth - LEFT) * (1 - Math.asinh(value) / Math.asinh(high));
  const y = (branch) => ROW * (branch.row + 0.5);
  size(tree, width, ROW * rows);
  tree.replaceChildren(...found.map((branch) => item(branch, x, y, labels.get(branch), width)));
  tree.append(...levels(found.filter(isOpen), x, y));
  drawAxis(x, high, width);
  if (!found.includes(state.chosen)) state.chosen = lineage(state.chosen).find((node) => found.includes(node)) ?? state.top;
  choose(state.chosen);
  document.getElementById("whole").hidden = state.top === branches[0];
  const { types, populations, cells } = state.top;
  const divided = populations.length > types.length ? ` with ${number(populations.length)} populations` : "";
  document.getElementById("summary").textContent =
    `${number(types.length)} types${divided} in ${rows} rows, ${number(cells)} cells`;
}

function size(svg, width, height) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width * state.zoom);
  svg.setAttribute("height", height * state.zoom);
}

/** One branch: its line, and its node, wedge or end. */
function item(branch, x, y, label, width) {
  const row = y(branch), end = x(branch.level);
  const start = branch.up && branch !== state.top ? x(branch.up.level) : LEFT;
  const group = draw("g", {
    role: "treeitem", tabindex: -1, id: `branch-${branch.index}`, "aria-label": spoken(branch),
    "aria-level": branch.depth - state.top.depth + 1, "aria-selected": false,
    class: [branch.children.length ? "node" : "leaf", branch.added ? "added" : ""].join(" ").trim(),
  });
  group.branch = branch;
  if (branch.children.length) group.setAttribute("aria-expanded", isOpen(branch));
  if (state.matches.includes(branch)) group.classList.add("match");
  const hit = isOpen(branch)
    ? { x: start, y: row - 9, width: Math.max(end - start, 0) + 8, height: 18 }
    : { x: start, y: row - ROW / 2 + 1, width: width - start, height: ROW - 2 };
  group.append(draw("rect", { class: "hit", ...hit, rx: 3 }));
  group.append(draw("path", { class: "stem", d: `M${start},${row}H${end}` }));
  if (isOpen(branch)) {
    const [first, last] = [branch.children[0], branch.children[branch.children.length - 1]];
    group.append(draw("path", { class: "stem", "pointer-events": "none", d: `M${end},${y(first)}V${y(last)}` }));
    group.append(draw("circle", { class: "point", cx: end, cy: row, r: 4.5 }));
    return group;
  }
  if (branch.children.length) {
    const half = branch.type === null ? 8 : 4;
    group.append(draw("path", { class: "wedge", d: `M${end},${row}L${x(0)},${row - half}V${row + half}Z` }));
  }
  group.append(draw("text", { class: "name", x: x(0) + 6, y: row }, label));
  return group;
}

/** Levels and support of open nodes; among overlapping labels, the highest nodes win. */
function levels(nodes, x, y) {
  const placed = [];
  for (const node of [...nodes].sort((one, other) => other.level - one.level)) {
    const name = isWholeType(node) ? `${node.name} · ` : "";
    const text = name + level(node.level) + (node.support === null ? "" : ` · ${share(node.support)}`);
    const right = x(node.level) - 6, left = right - 5.6 * text.length, row = y(node) - 7;
    const free = placed.every((other) => right < other.left || left > other.right || Math.abs(row - other.row) > 10);
    if (free && left > 0) placed.push({ left, right, row, text });
  }
  return placed.map(({ right, row, text }) =>
    draw("text", { class: "level", x: right, y: row, "aria-hidden": true, "pointer-events": "none" }, text));
}

function drawAxis(x, high, width) {
  size(axis, width, 34);
  axis.replaceChildren(draw("text", { x: LEFT, y: 9 }, "noise level (within-type standard deviations)"));
  let last = Infinity;
  for (const value of [0, 1, 2, 5, 10, 20, 50, 100, 200, 500].filter((value) => value <= high)) {
    if (last - x(value) < 18) continue;
    last = x(value);
    axis.append(draw("text", { x: last, y: 22, "text-anchor": "middle" }, value));
    axis.append(draw("path", { class: "tick", d: `M${last},29V34` }));
  }
}

// ---- one branch, and its details

const element = (branch) => document.getElementById(`branch-${branch.index}`);

function choose(branch, { focus = false, scroll = false } = {}) {
  for (const group of tree.querySelectorAll(".chosen, [tabindex='0']")) {
    group.classList.remove("chosen");
    group.setAttribute("aria-selected", false);
    group.setAttribute("tabindex", -1);
  }
  state.chosen = branch;
  const group = element(branch);
  group.classList.add("chosen");
  group.setAttribute("aria-selected", true);
  group.setAttribute("tabindex", 0);
  if (focus) group.focus({ preventScroll: true });
  if (scroll) scrollTo(branch);
  explain(branch);
}

function scrollTo(branch) {
  const row = ROW * (branch.row + 0.5) * state.zoom + axis.clientHeight;
  const out = row < view.scrollTop + axis.clientHeight + ROW || row > view.scrollTop + view.clientHeight - ROW;
  if (out) view.scrollTop = row - view.clientHeight / 2;
}

function explain(branch) {
  const inner = branch.children.length > 0, divided = branch.types.length < branch.populations.length;
  document.getElementById("name").textContent = plus(branch) + branch.name;
  document.getElementById("of-branch").hidden = !inner;
  document.getElementById("toggle").textContent = isOpen(branch) ? "Close" : "Open";
  document.getElementById("alone").hidden = branch === state.top;
  const facts = {
    cells: number(branch.cells),
    [`share of ${branch.type}`]: ofItsType(branch),
    types: branch.type === null ? number(branch.types.length) : null,
    populations: branch.type === null && divided ? number(branch.populations.length) : null,
    "sub-populations": branch.type !== null && inner ? number(branch.populations.length) : null,
    "level of its end": inner ? branch.level.toFixed(2) : null,
    "level of its start": (branch.up ? branch.up.level : DATA.sigma_max).toFixed(2),
    support: branch.support === null ? null : share(branch.support),
    [inner && branch.up ? "genes higher in these" : "genes higher here"]: branch.genes.length ? branch.genes.join(", ") : null,
    parent: branch.up ? branch.up.name : null,
    place: branch.note,
    added: branch.added ? "by extension" : null,
  };
  const rows = Object.entries(facts).filter(([, value]) => value !== null);
  document.getElementById("facts").replaceChildren(
    ...rows.flatMap(([key, value]) => [Object.assign(document.createElement("dt"), { textContent: key }),
      Object.assign(document.createElement("dd"), { textContent: value })]));
  document.getElementById("stray").textContent = strays(branch);
  const parts = branch.type === null ? branch.types.map((type) => ofType.get(type)) : branch.populations;
  const buttons = inner ? parts.map((part) => {
    const text = branch.type === null ? part.type : rowText(part);
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", () => show(part));
    return button;
  }) : [];
  document.getElementById("types").replaceChildren(...buttons);
}

const MAX_STRAYS = 5; // with a sentence each

/** Sentences on the sub-populations below a branch that are nearer to another cell type. */
function strays(branch) {
  const found = branch.populations.filter((population) => population.nearer);
  const sentences = found.slice(0, MAX_STRAYS).map(({ name, type, nearer }) =>
    `${name} is nearer to ${nearer} than to the other sub-populations of ${type}.`);
  const more = found.length - sentences.length;
  if (more) sentences.push(`And ${number(more)} more are nearer to another type than to their own.`);
  return sentences.join(" ");
}

function show(branch) {
  reveal(branch);
  render();
  choose(branch, { scroll: true });
}

// ---- user actions

/** Change the drawing, and keep the clicked branch in its place on the screen. */
function change(branch, action, { focus = false } = {}) {
  const before = branch.row;
  action();
  render();
  choose(branch.row === undefined || !element(branch) ? state.chosen : branch, { focus });
  if (before !== undefined) view.scrollTop += (branch.row - before) * ROW * state.zoom;
  scrollTo(state.chosen);
}

const at = (event) => event.target.closest?.("[role='treeitem']")?.branch;
let drag = null;

tree.addEventListener("click", (event) => {
  const branch = at(event);
  if (branch && !drag?.moved) change(branch, () => toggle(branch), { focus: true });
});
tree.addEventListener("pointerover", (event) => {
  if (at(event) && !drag) explain(at(event));
});
tree.addEventListener("pointerleave", () => explain(state.chosen));
tree.addEventListener("focusin", (event) => {
  if (at(event) && at(event) !== state.chosen) choose(at(event));
});

tree.addEventListener("keydown", (event) => {
  const branch = at(event);
  if (!branch || event.ctrlKey || event.metaKey || event.altKey) return;
  const { found } = shown();
  const place = found.indexOf(branch);
  const go = (other) => other && found.includes(other) && choose(other, { focus: true, scroll: true });
  const keys = {
    ArrowDown: () => go(found[place + 1]),
    ArrowUp: () => go(found[place - 1]),
    Home: () => go(found[0]),
    End: () => go(found[found.length - 1]),
    ArrowRight: () => (isOpen(branch) ? go(branch.children[0]) : change(branch, () => toggle(branch), { focus: true })),
    ArrowLeft: () => (isOpen(branch) ? change(branch, () => close(branch), { focus: true }) : go(branch.up)),
    Enter: () => change(branch, () => toggle(branch), { focus: true }),
    " ": () => change(branch, () => toggle(branch), { focus: true }),
    "*": () => change(branch, () => open(branch, Infinity), { focus: true }),
    "+": () => zoom(1.25),
    "-": () => zoom(0.8),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

function zoom(factor) {
  const before = state.zoom;
  const middle = (view.scrollTop + view.clientHeight / 2) / before;
  state.zoom = Math.min(4, Math.max(0.2, before * factor));
  render();
  view.scrollTop = middle * state.zoom - view.clientHeight / 2;
}

view.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 300));
}, { passive: false });

view.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse" || event.button !== 0) return; // a finger scrolls by itself
  drag = { x: event.clientX, y: event.clientY, left: view.scrollLeft, top: view.scrollTop, moved: false };
});
window.addEventListener("pointermove", (event) => {
  if (!drag || !event.buttons) return;
  const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
  drag.moved ||= Math.hypot(right, down) > 5;
  view.classList.toggle("dragged", drag.moved);
  if (drag.moved) view.scrollTo(drag.left - right, drag.top - down);
});
window.addEventListener("pointerup", () => {
  view.classList.remove("dragged");
  setTimeout(() => (drag = null)); // after the click that ends it
});

const query = document.getElementById("query");
query.addEventListener("input", () => {
  const text = query.value.trim().toLowerCase();
  const matching = (name) => name.toLowerCase().includes(text);
  // Names of sub-populations begin with their types, which are listed already
  const more = subPopulations.filter(({ name, type }) => matching(name) && !matching(type));
  state.matches = text ? [...[...ofType.values()].filter(({ type }) => matching(type)), ...more] : [];
  document.getElementById("found").textContent = text ? `${state.matches.length} found` : "";
  render();
});
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.matches.length) return;
  const exact = state.matches.find((type) => type.name === query.value.trim());
  const next = state.matches[(state.matches.indexOf(state.chosen) + 1) % state.matches.length];
  show(exact && exact !== state.chosen ? exact : next);
});
document.getElementById("names").append(
  ...[...ofType.keys()].map((type) => Object.assign(document.createElement("option"), { value: type })));

const onClick = (id, action) => document.getElementById(id).addEventListener("click", action);
onClick("open-all", () => change(state.chosen, () => open(state.top, Infinity)));
onClick("close-all", () => change(state.top, () => {
  close(state.top);
  open(state.top);
}));
onClick("whole", () => change(state.top, () => (state.top = branches[0])));
onClick("larger", () => zoom(1.25));
onClick("smaller", () => zoom(0.8));
onClick("toggle", () => change(state.chosen, () => toggle(state.chosen)));
onClick("all-below", () => change(state.chosen, () => open(state.chosen, Infinity)));
onClick("alone", () => change(state.chosen, () => {
  state.top = state.chosen;
  open(state.top, 3 * STEP);
}));

let width = 0;
// Wait a frame: drawing may add a scroll bar, which changes the size again
new ResizeObserver(() => requestAnimationFrame(() => {
  if (view.clientWidth !== width) {
    width = view.clientWidth;
    render();
  }
})).observe(view);
render();
