"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** Show rows that match the search; without a search, only the first rows of long tables. */
function shown(list, text, everything) {
  const rows = all("[data-words]", list);
  const most = everything || text || !list.dataset.shown ? Infinity : Number(list.dataset.shown);
  const found = rows.filter((row) => row.dataset.words.includes(text));
  for (const row of rows) row.hidden = true;
  for (const row of found.slice(0, most)) row.hidden = false;
  const button = document.querySelector(`[data-shows="${list.id}"]`);
  if (button) button.parentElement.hidden = found.length <= most;
  return found.length;
}

for (const input of all("[data-filters]")) {
  const list = document.getElementById(input.dataset.filters);
  input.addEventListener("input", () => {
    const text = input.value.trim().toLowerCase();
    const n = shown(list, text, list.dataset.everything);
    input.parentElement.querySelector("output").textContent = text ? `${n} found` : "";
  });
}

for (const button of all("[data-shows]")) {
  const list = document.getElementById(button.dataset.shows);
  button.addEventListener("click", () => {
    list.dataset.everything = "yes";
    shown(list, "", true);
  });
  shown(list, "", false);
}

/** Sort the rows by a column; the next click reverses the order. */
function sort(table, head) {
  const column = [...head.parentElement.cells].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.sort;
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const numeric = [...table.tBodies[0].rows].every((row) => !Number.isNaN(Number(key(row))));
  const rows = [...table.tBodies[0].rows].sort((one, other) =>
    (up ? 1 : -1) * (numeric ? key(one) - key(other) : compare(key(one), key(other))));
  table.tBodies[0].append(...rows);
  if (table.dataset.shown) {
    const input = document.querySelector(`[data-filters="${table.id}"]`);
    shown(table, input ? input.value.trim().toLowerCase() : "", table.dataset.everything);
  }
}

for (const table of all("table.sortable")) {
  for (const head of all("thead th", table)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}
