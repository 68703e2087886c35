// The script of the report. All texts of data are set as text nodes, never as markup.
"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const rows = data.rows;
const list = $("list"), large = $("large"), help = $("help"), tools = $("tools");
const OVERSCAN = 4;  // rows beyond the edges of the window
let pictures = null;  // parsed with the first rows
let view = [];  // numbers of the rows that fit, in order
let current = -1;  // place in `view` of the row that keys move
let descending = false;

// Elements

function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const foreign = (tag, text, attributes) => el(tag, { dir: "auto", ...attributes }, text);

// Words

const segmenter = Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

function segments(text) {
  if (segmenter) return [...segmenter.segment(text)].map(({ segment, isWordLike }) => [segment, isWordLike]);
  return text.split(/([\p{L}\p{N}]+)/u).map((part, place) => [part, place % 2 === 1]);
}

const wordsOf = (text) => segments(text).filter(([, isWord]) => isWord).map(([word]) => word.toLowerCase());

function countSharing(references) {
  const counts = new Map();
  for (const reference of references) {
    for (const word of new Set(wordsOf(reference))) counts.set(word, (counts.get(word) || 0) + 1);
  }
  return counts;
}

// A text whose words are marked by the share of references that have them.
function marked(text, references) {
  const counts = countSharing(references);
  const paragraph = foreign("p", "");
  for (const [part, isWord] of segments(text)) {
    if (!isWord) { paragraph.append(part); continue; }
    const share = (counts.get(part.toLowerCase()) || 0) / references.length;
    if (!share) paragraph.append(references.length ? el("span", { class: "alone" }, part) : part);
    else paragraph.append(el("mark", { class: share === 1 ? "all" : share >= 0.5 ? "most" : "some" }, part));
  }
  return paragraph;
}

// Values of rows

const scoreNumber = () => ($("score") ? Number($("score").value) : -1);
const scoreOf = (row) => row.scores[scoreNumber()] ?? null;
const baseScoreOf = (row) => (row.baseScores ? row.baseScores[scoreNumber()] ?? null : null);
const changeOf = (row) => (scoreOf(row) === null || baseScoreOf(row) === null ? null : scoreOf(row) - baseScoreOf(row));
const lengthOf = (row) => (row.length ??= wordsOf(row.text).length);
const shown = (value) => (value === null ? "–" : Number.isInteger(value) ? String(value) : value.toFixed(3));

function searched(row) {
  const ranked = [...(row.ranked || []), ...(row.baseRanked || [])].map(([text]) => text);
  return (row.searched ??= [row.id, row.text, row.base, row.question, row.prompt, row.group, ...row.references, ...ranked]
    .filter((text) => text !== undefined).join("\n").normalize("NFKC").toLowerCase());
}

const CHANGES = {
  better: (row) => changeOf(row) > 0,
  worse: (row) => changeOf(row) < 0,
  same: (row) => changeOf(row) === 0,
  changed: (row) => row.text !== row.base,
  unchanged: (row) => row.text === row.base,
};
const SORTS = { score: scoreOf, change: changeOf, length: lengthOf };

// Filters

const numberIn = (id) => ($(id) && $(id).value !== "" ? Number($(id).value) : null);
const between = (value, low, high) =>
  (low === null && high === null) || (value !== null && (low === null || value >= low) && (high === null || value <= high));

function update() {
  const terms = $("search").value.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean);
  const [low, high] = [numberIn("score-from"), numberIn("score-to")];
  const [fewest, most] = [numberIn("words-from"), numberIn("words-to")];
  const group = $("group") ? $("group").value : "";
  const change = $("change") ? CHANGES[$("change").value] : undefined;
  view = [];
  rows.forEach((row, number) => {
    const fits = between(scoreOf(row), low, high)
      && ((fewest === null && most === null) || between(lengthOf(row), fewest, most))
      && (!group || row.group === group) && (!change || change(row)) && terms.every((term) => searched(row).includes(term));
    if (fits) view.push(number);
  });
  sort();
  drawBrush(low, high);
  $("count").textContent = view.length === rows.length
    ? `${rows.length.toLocaleString("en")} ${data.labels.row}s`
    : `${view.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  $("nothing").hidden = view.length > 0;
  current = -1;
  list.replaceChildren();
  const top = list.getBoundingClientRect().top - toolbarHeight();
  if (top < 0) scrollTo({ top: scrollY + top });
  render();
}

function sort() {
  const value = SORTS[$("sort").value];
  const sign = descending ? -1 : 1;
  if (!value) { if (descending) view.reverse(); return; }
  const values = new Map(view.map((number) => [number, value(rows[number])]));
  // Rows without a value come last, whatever the direction.
  view.sort((a, b) => {
    const [first, second] = [values.get(a), values.get(b)];
    if (first === null || second === null) return (first === null) - (second === null) || a - b;
    return sign * (first - second) || a - b;
  });
}

function setDirection(value) {
  descending = value;
  $("direction").setAttribute("aria-pressed", String(value));
  $("direction").textContent = value ? "↓ descending" : "↑ ascending";
}

// The list: only the rows near the window are in the document.

const toolbarHeight = () => (getComputedStyle(tools).position === "sticky" ? tools.offsetHeight : 0);
const rowHeight = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));

function render() {
  const height = rowHeight();
  list.style.height = `${view.length * height}px`;
  const above = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(above / height) - OVERSCAN);
  const last = Math.min(view.length, Math.ceil((above + innerHeight) / height) + OVERSCAN);
  const there = new Map([...list.children].map((node) => [Number(node.dataset.place), node]));
  for (const [place, node] of there) {
    if ((place < first || place >= last) && node !== document.activeElement) node.remove();
  }
  for (let place = first; place < last; place += 1) {
    if (!there.has(place)) list.append(buildRow(place));
  }
}

let isWaiting = false;
function renderSoon() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => { isWaiting = false; render(); });
}

function picture(row) {
  pictures ??= JSON.parse($("pictures").textContent);
  const file = pictures[row.picture];
  if (!file) return el("div", { class: "frame" }, pictures.length ? "no picture" : `#${row.picture + 1}`);
  return el("div", { class: "frame" }, el("img", { src: data.prefix + file, alt: `Picture ${row.id}`, loading: "lazy", decoding: "async" }));
}

function said(title, text, row, kind) {
  return el("div", { class: `said ${kind}` }, el("h3", null, title), marked(text, row.references));
}

function pair(row) {
  return el("div", { class: "pair" },
    data.hasBase ? said(`${data.labels.output} of the base model`, row.base, row, "base") : null,
    said(data.hasBase ? `${data.labels.output} after fine-tuning` : data.labels.output, row.text, row, "ours"));
}

function rankedList(texts) {
  return el("ol", { class: "references" }, ...texts.map(([text, score, isRight]) => el("li", null,
    el("span", { class: "number" }, `${score.toFixed(3)} `), foreign("bdi", text, { class: isRight ? "right" : null }), isRight ? " ✓" : null)));
}

function referenceList(row) {
  return el("ul", { class: "references", "aria-label": data.labels.references }, ...row.references.map((text, place) => el("li", null,
    foreign("bdi", text), row.notes ? el("span", { class: "number" }, `  ${row.notes[place]}`) : null)));
}

function meta(row) {
  return el("div", { class: "meta" }, foreign("bdi", `#${row.id}`),
    row.group ? foreign("bdi", row.group, { class: "chip" }) : null, row.prompt ? foreign("bdi", row.prompt, { class: "chip" }) : null);
}

function change(row) {
  const value = changeOf(row);
  if (value === null) return null;
  const kind = value > 0 ? "better" : value < 0 ? "worse" : "same";
  const sign = { better: "▲ +", worse: "▼ −", same: "= " }[kind];
  return el("div", null, el("span", { class: `change ${kind}`, title: "change against the base model" }, sign + shown(Math.abs(value))));
}

function numbers(row) {
  const chosen = scoreNumber();
  if (chosen < 0 || !row.scores.length) return el("div", { class: "numbers" });
  const others = data.scores.map((score, place) => [score.label, row.scores[place], place]).filter(([, , place]) => place !== chosen);
  return el("div", { class: "numbers" },
    el("div", { class: "label" }, data.scores[chosen].label), el("div", { class: "value" }, shown(scoreOf(row))), change(row),
    el("div", { class: "others" }, ...others.slice(0, 5).map(([label, value]) => el("div", null, `${label} ${shown(value ?? null)}`))));
}

function buildRow(place) {
  const row = rows[view[place]];
  const node = el("div", {
    class: "row", role: "listitem", tabindex: place === Math.max(0, current) ? "0" : "-1", "data-place": place,
    "aria-posinset": place + 1, "aria-setsize": view.length, "aria-label": `${data.labels.row} ${row.id}`,
  },
    picture(row),
    el("div", { class: "texts" }, meta(row), row.question ? foreign("p", row.question, { class: "question" }) : null, pair(row),
      row.ranked ? rankedList(row.ranked.slice(0, 5)) : referenceList(row)),
    numbers(row));
  node.style.top = `${place * rowHeight()}px`;
  return node;
}

function moveTo(place) {
  if (!view.length) return;
  current = Math.min(Math.max(place, 0), view.length - 1);
  const height = rowHeight();
  const top = list.getBoundingClientRect().top + scrollY + current * height;
  if (top - toolbarHeight() < scrollY) scrollTo({ top: top - toolbarHeight() });
  else if (top + height > scrollY + innerHeight) scrollTo({ top: top + height - innerHeight });
  render();
  for (const node of list.children) node.tabIndex = Number(node.dataset.place) === current ? 0 : -1;
  const node = list.querySelector(`[data-place="${current}"]`);
  if (node) node.focus({ preventScroll: true });
}

// The large view

function openLarge(place) {
  current = Math.min(Math.max(place, 0), view.length - 1);
  const row = rows[view[current]];
  const step = (by, text, label) => {
    const button = el("button", { type: "button", "aria-label": label }, text);
    button.addEventListener("click", () => openLarge(current + by));
    return button;
  };
  const close = el("button", { type: "button", "aria-label": "Close" }, "Close");
  close.addEventListener("click", () => large.close());
  const table = el("table", null, el("tr", null, el("th", { scope: "col" }, "score"),
    data.hasBase ? el("th", { scope: "col", class: "number" }, "base") : null, el("th", { scope: "col", class: "number" }, data.hasBase ? "fine-tuned" : "value")),
    ...data.scores.map((score, number) => el("tr", null, el("th", { scope: "row" }, score.label),
      data.hasBase ? el("td", { class: "number" }, shown(row.baseScores[number] ?? null)) : null, el("td", { class: "number" }, shown(row.scores[number] ?? null)))));
  const heading = (text) => el("h4", null, text);
  large.replaceChildren(
    el("div", { class: "bar" }, el("span", { class: "note" }, `${current + 1} of ${view.length}`), step(-1, "←", "Previous"), step(1, "→", "Next"), close),
    el("div", { class: "view" }, picture(row), el("div", { class: "texts" }, meta(row),
      row.question ? foreign("p", row.question, { class: "question" }) : null, pair(row),
      el("div", null, heading(data.labels.references), referenceList(row)),
      row.ranked ? el("div", null, heading("Ranked texts"), rankedList(row.ranked)) : null,
      row.baseRanked ? el("div", null, heading("Ranked texts of the base model"), rankedList(row.baseRanked)) : null,
      data.scores.length ? table : null)));
  if (!large.open) large.showModal();
  close.focus();
}

large.addEventListener("close", () => moveTo(current));
for (const dialog of [large, help]) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
list.addEventListener("click", (event) => {
  const node = event.target.closest(".row");
  if (node && !String(getSelection())) openLarge(Number(node.dataset.place));
});

// Histograms: dragging filters by the score.

const [PLOT_LEFT, PLOT_RIGHT] = [10, 410];  // as in charts.py

function drawBrush(low, high) {
  for (const figure of document.querySelectorAll(".histogram")) {
    const chosen = data.scores[scoreNumber()];
    figure.hidden = !chosen || figure.dataset.score !== chosen.name;
    const svg = figure.querySelector("svg"), brush = figure.querySelector(".brush");
    const [start, end] = [Number(svg.dataset.low), Number(svg.dataset.high)];
    const x = (value) => PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * Math.min(1, Math.max(0, (value - start) / (end - start)));
    const isSet = low !== null || high !== null;
    const [left, right] = [x(low ?? start), x(high ?? end)];
    brush.setAttribute("x", left);
    brush.setAttribute("width", isSet ? Math.max(0, right - left) : 0);
  }
}

for (const svg of document.querySelectorAll(".histogram svg")) {
  const [start, end] = [Number(svg.dataset.low), Number(svg.dataset.high)];
  const valueAt = (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * 420 - PLOT_LEFT) / (PLOT_RIGHT - PLOT_LEFT);
    return start + Math.min(1, Math.max(0, share)) * (end - start);
  };
  let from = null;
  const drag = (event) => {
    if (from === null) return;
    const to = valueAt(event);
    const isClick = Math.abs(to - from) < (end - start) / 100;
    $("score-from").value = isClick ? "" : Math.min(from, to).toFixed(3);
    $("score-to").value = isClick ? "" : Math.max(from, to).toFixed(3);
  };
  svg.addEventListener("pointerdown", (event) => { from = valueAt(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointermove", (event) => { drag(event); if (from !== null) drawBrush(numberIn("score-from"), numberIn("score-to")); });
  svg.addEventListener("pointerup", (event) => { drag(event); from = null; update(); });
  svg.addEventListener("pointercancel", () => { from = null; });
}

// Colours: as the system, or a choice that is remembered.

const THEMES = { "": ["Auto", "as the system"], light: ["☀ Light", "light"], dark: ["☾ Dark", "dark"] };
const THEME_KEY = "blip_recipe.theme";

function setTheme(name) {
  const theme = name in THEMES ? name : "";
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = THEMES[theme][0];
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[theme][1]}`);
}

function stored(action) {
  try { return action(localStorage); } catch { return null; }  // a browser may forbid it to files
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const theme = names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length];
  setTheme(theme);
  stored((storage) => storage.setItem(THEME_KEY, theme));
}

// Keys

const KEYS = {
  "/": () => { $("search").focus(); $("search").select(); },
  "?": () => help.showModal(),
  t: nextTheme,
  j: () => moveTo(current + 1), ArrowDown: () => moveTo(current + 1),
  k: () => moveTo(current - 1), ArrowUp: () => moveTo(current - 1),
  Home: () => moveTo(0), End: () => moveTo(view.length - 1),
  Enter: () => openLarge(current),
};
const LARGE_KEYS = {
  j: 1, ArrowDown: 1, ArrowRight: 1, k: -1, ArrowUp: -1, ArrowLeft: -1,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const target = event.target;
  if (large.open) {
    if (event.key in LARGE_KEYS) { event.preventDefault(); openLarge(current + LARGE_KEYS[event.key]); }
    return;
  }
  if (help.open) return;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") { event.preventDefault(); target.blur(); }
    if (target.id === "search" && (event.key === "ArrowDown" || event.key === "Enter")) { event.preventDefault(); target.blur(); moveTo(0); }
    return;
  }
  const isButton = target.matches("button");
  if (!(event.key in KEYS) || (event.key === "Enter" && (isButton || current < 0))) return;
  event.preventDefault();
  KEYS[event.key]();
});

// Start

tools.addEventListener("submit", (event) => event.preventDefault());
tools.addEventListener("input", (event) => {
  // A range belongs to the score that was shown; sorting by a score or a change shows the best first.
  if (event.target.id === "score") { $("score-from").value = ""; $("score-to").value = ""; }
  if (event.target.id === "sort") setDirection(event.target.value === "score" || event.target.value === "change");
  update();
});
for (const id of ["clear", "clear-too"]) $(id).addEventListener("click", () => { tools.reset(); setDirection(false); update(); });
$("direction").addEventListener("click", () => { setDirection(!descending); update(); });
$("theme").addEventListener("click", nextTheme);
$("help-button").addEventListener("click", () => help.showModal());
addEventListener("scroll", renderSoon, { passive: true });
addEventListener("resize", () => { list.replaceChildren(); render(); });
setTheme(stored((storage) => storage.getItem(THEME_KEY)) || "");
update();
})();
