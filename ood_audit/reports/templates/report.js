"use strict";
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const themes = ["auto", "light", "dark"];
const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
let theme = "auto";
try { theme = localStorage.getItem("ood-audit-theme") ?? theme; } catch { /* no storage for this file */ }
root.classList.add("js");
root.dataset.theme = theme;

function make(name, text = "", properties = {}) {
  const element = Object.assign(document.createElement(name), properties);
  element.textContent = text; // never as HTML: file names are hostile
  return element;
}

/* ---- Copying ---- */

let fading;
function say(text) {
  byId("toast").textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => { byId("toast").textContent = ""; }, 3000);
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  const focused = document.activeElement;
  area.className = "offscreen";
  area.value = text;
  area.addEventListener("copy", (event) => { // a text area has changed the line ends
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  });
  (document.querySelector("dialog[open]") ?? document.body).append(area); // what is outside of an open dialog is inert
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return done;
}

async function copy(text, what) {
  let done = true;
  try { await navigator.clipboard.writeText(text); } catch { done = copyBySelection(text); }
  say(done ? `Copied ${what}` : "This browser does not allow copying: select the text and copy it by hand");
}

function copyPaths(elements) {
  const paths = new Map(); // an image may be in two lists, and two images may have the same path
  for (const element of elements) paths.set(element.dataset.image ?? element, element.dataset.path);
  copy([...paths.values()].join("\n"), counted(paths.size, "path", "paths"));
}

const copyCard = (card) => copy(card.dataset.path, "the path");

/* ---- Cards ---- */

const panelOf = (element) => element.closest(".findings");
const visible = (panel) => [...panel.querySelectorAll(".items > :not([hidden])")];
const visibleCards = (panel) => visible(panel).flatMap((item) => (
  item.matches(".card") ? [item] : [...item.querySelectorAll(".card")]));
const offered = (panel) => visibleCards(panel).filter((card) => !card.classList.contains("keep"));

/** Cards get their buttons here, and not in the document, which they would make much longer. */
function addActions() {
  const pattern = byId("actions").content.firstElementChild;
  for (const card of document.querySelectorAll(".card")) {
    const line = pattern.cloneNode(true);
    const [box, details, copies] = line.querySelectorAll("input, button");
    const name = card.getAttribute("aria-label");
    box.setAttribute("aria-label", `Select ${name}`);
    details.setAttribute("aria-label", `Details of ${name}`);
    copies.setAttribute("aria-label", `Copy the path of ${name}`);
    card.append(line);
  }
}

const selected = new Set();
let anchor; // where a range begins

function select(card, on) {
  card.classList.toggle("selected", on);
  card.querySelector(".select").checked = on;
  if (on) selected.add(card); else selected.delete(card);
}

function showSelection() {
  byId("selected").textContent = selected.size.toLocaleString("en");
  byId("selection").hidden = selected.size === 0;
  if (current) byId("details-select").checked = selected.has(current);
}

function choose(card, on, range) {
  const cards = range && anchor ? visibleCards(panelOf(card)) : [];
  const [from, to] = [cards.indexOf(anchor), cards.indexOf(card)].sort((a, b) => a - b);
  if (from >= 0) for (const one of cards.slice(from, to + 1)) select(one, on);
  else select(card, on);
  anchor = card;
  showSelection();
}

/* ---- The dialog ---- */

let data;
let current; // the card whose details are shown
let sequence = []; // the cards that the arrows go through

function pictureOf(card) {
  const image = card.querySelector(".thumb img");
  return image ? make("img", "", { src: image.src, alt: image.alt }) : make("p", card.querySelector(".thumb").textContent);
}

function openDetails(card) {
  sequence = visibleCards(panelOf(card));
  if (!sequence.includes(card)) sequence = [card]; // the filter hides it; the map does not
  showDetails(card);
  byId("details").showModal();
  byId("details-title").focus();
}

function showDetails(card) {
  current = card;
  const record = data.records[card.dataset.record];
  const at = sequence.indexOf(card);
  byId("details-place").textContent = `${at + 1} of ${sequence.length.toLocaleString("en")}`;
  byId("details-title").replaceChildren(card.querySelector(".path code").cloneNode(true));
  byId("details-picture").replaceChildren(pictureOf(card));
  byId("details-select").checked = selected.has(card);
  const link = card.querySelector("a.thumb");
  byId("details-file").hidden = !link;
  if (link) byId("details-file").href = link.href;
  byId("details-evidence").replaceChildren(...(record.evidence ?? []).map((text) => make("li", text)));
  byId("details-facts").replaceChildren(...record.facts.map(([term, value]) => {
    const line = make("div");
    line.append(make("dt", term), make("dd", value));
    return line;
  }));
  byId("details-classes").hidden = !record.classes;
  byId("details-classes").querySelector("dl").replaceChildren(...(record.classes ?? []).map(([label, score, width]) => {
    const line = make("div");
    const bar = make("span", "", { className: "bar" });
    bar.style.width = `${width}%`;
    const value = make("dd");
    value.append(bar, make("span", score));
    line.append(make("dt", label), value);
    return line;
  }));
  byId("details-near").hidden = !record.near;
  byId("details-near").querySelector("ul").replaceChildren(...(record.near ?? []).map(neighbour));
  const dialog = byId("details");
  dialog.querySelector("[data-does=previous]").disabled = at <= 0;
  dialog.querySelector("[data-does=next]").disabled = at < 0 || at + 1 >= sequence.length;
  for (const part of dialog.querySelectorAll(".details-body, .details-text")) part.scrollTop = 0;
  if (dialog.open && (document.activeElement.disabled || !dialog.contains(document.activeElement))) byId("details-title").focus();
}

/** A picture on this page opens; another is only shown. */
function neighbour(near) {
  const item = make("li");
  if (typeof near === "number") {
    const card = byId("cards").querySelector(`[data-record="${near}"]`);
    const button = make("button", "", { type: "button" });
    button.append(pictureOf(card), make("span", card.querySelector(".path code").textContent.trim()));
    button.addEventListener("click", () => {
      if (!sequence.includes(card)) sequence = [current, card];
      showDetails(card);
    });
    item.append(button);
  } else {
    const [name, place] = near;
    item.append(place < 0 ? make("p", "not on this page") : make("img", "", { src: data.pictures[place], alt: "" }), make("span", name));
  }
  return item;
}

function step(by) {
  const card = sequence[sequence.indexOf(current) + by];
  if (card) showDetails(card);
}

function closed() {
  const card = current;
  current = undefined;
  if (card && !card.hidden && !panelOf(card).hidden) card.focus();
}

/* ---- Tabs ---- */

function activate(id) {
  for (const tab of byId("tabs").children) {
    const on = tab.hash === `#${id}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    byId(tab.hash.slice(1)).hidden = !on;
  }
}

function setUpTabs() {
  const bar = byId("tabs");
  const tabs = [...bar.children];
  const ids = tabs.map((tab) => tab.hash.slice(1));
  bar.setAttribute("role", "tablist");
  for (const [i, tab] of tabs.entries()) {
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", ids[i]);
    byId(ids[i]).setAttribute("role", "tabpanel");
    byId(ids[i]).setAttribute("aria-labelledby", tab.id);
  }
  const go = (id) => {
    activate(id);
    try { history.replaceState(null, "", `#${id}`); } catch { /* some browsers refuse that to files */ }
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!link) return;
    event.preventDefault();
    go(link.hash.slice(1));
    if (link.parentElement !== bar) {
      byId(`tab-${link.hash.slice(1)}`).focus({ preventScroll: true });
      bar.scrollIntoView();
    }
  });
  bar.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const tab = tabs[(to + tabs.length) % tabs.length];
    go(tab.hash.slice(1));
    tab.focus();
  });
  activate(ids.includes(location.hash.slice(1)) ? location.hash.slice(1) : "ood");
}

/* ---- Filters ---- */

const compare = new Intl.Collator("en", { numeric: true }).compare;

function setUpPanel(panel) {
  const list = panel.querySelector(".items");
  if (!list) return;
  const form = panel.querySelector("form");
  const { text, label, show, sort } = form.elements;
  const chips = [...panel.querySelectorAll(".chip")];
  const items = [...list.children].map((element) => {
    const paths = element.matches(".card") ? [element] : [...element.querySelectorAll(".card")];
    const path = paths.map((card) => card.dataset.path).join("\n");
    return { element, path, lower: path.toLowerCase(), ...element.dataset };
  });
  const orders = { // the items are in the order of their ranks, and sorting is stable
    rank: () => 0,
    label: (a, b) => a.class - b.class,
    path: (a, b) => compare(a.path, b.path),
    group: (a, b) => (a.group ?? Infinity) - (b.group ?? Infinity) || 0, // those that look like nothing come last
  };
  let group;

  function filter() {
    const wanted = text.value.toLowerCase();
    let shown = 0;
    for (const item of items) {
      const hit = (!label?.value || item.class === label.value)
        && (!show?.value || (show.value === "flagged" ? item.flagged : item.shift === show.value))
        && (group === undefined || item.group === group)
        && item.lower.includes(wanted);
      item.element.hidden = !hit;
      shown += hit;
    }
    byId(`${panel.id}-shown`).textContent = shown.toLocaleString("en");
    panel.querySelector(".nothing").hidden = shown > 0;
    for (const button of form.querySelectorAll("button")) button.disabled = shown === 0;
  }

  form.addEventListener("input", (event) => {
    // replaceChildren and not append, which takes ten times as long.
    if (sort && event.target === sort) list.replaceChildren(...[...items].sort(orders[sort.value]).map((item) => item.element));
    else filter();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset(); // browsers keep what was typed before a reload
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      group = group === chip.dataset.group ? undefined : chip.dataset.group;
      for (const one of chips) one.setAttribute("aria-pressed", one.dataset.group === group);
      filter();
    });
  }
}

/* ---- The map ---- */

function setUpMap() {
  const map = byId("map");
  if (!map) return;
  const tip = byId("map-tip");
  const marker = byId("map-marker");
  const cards = [...byId("cards")?.children ?? []].sort((a, b) => a.dataset.record - b.dataset.record);
  const listed = data.points.filter((point) => point[3] >= 0).sort((a, b) => a[3] - b[3]);
  const [width] = map.getAttribute("viewBox").split(" ").slice(2).map(Number);
  let at = -1; // of the keyboard, in `listed`

  function nearest(event) {
    const box = map.getBoundingClientRect();
    const scale = width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const reach = (event.pointerType === "touch" ? 24 : 12) * scale;
    let best;
    let least = reach * reach;
    for (const point of data.points) { // the last one is drawn on top; an image that can be opened comes first
      const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2 + (point[3] < 0 ? reach * reach / 4 : 0);
      if (distance <= least) [best, least] = [point, distance];
    }
    return best;
  }

  function showTip(point) {
    tip.hidden = !point;
    marker.setAttribute("cx", point ? point[0] : -99);
    marker.setAttribute("cy", point ? point[1] : -99);
    map.classList.toggle("opens", Boolean(point) && point[3] >= 0);
    if (!point) return;
    const [x, y, kind, row] = point;
    tip.replaceChildren(make("strong", data.kinds[kind]));
    if (row >= 0) tip.append(pictureOf(cards[row]), cards[row].querySelector(".path code").cloneNode(true));
    else tip.append(make("span", "not listed below", { className: "muted" }));
    const box = map.getBoundingClientRect();
    const scale = box.width / width;
    tip.style.left = `${Math.min(Math.max(x * scale - tip.offsetWidth / 2, 0), box.width - tip.offsetWidth)}px`;
    const below = y * scale + 16;
    tip.style.top = `${y * scale > box.height / 2 ? y * scale - tip.offsetHeight - 16 : below}px`;
  }

  map.addEventListener("pointermove", (event) => showTip(nearest(event)));
  map.addEventListener("pointerleave", () => showTip());
  map.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point && point[3] >= 0) openDetails(cards[point[3]]);
  });
  if (!listed.length) return;
  map.tabIndex = 0;
  map.addEventListener("blur", () => showTip());
  map.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) {
      at = (at + by + (at < 0 && by < 0 ? 1 : 0) + listed.length) % listed.length;
      showTip(listed[at]);
    } else if (event.key === "Enter" && at >= 0) openDetails(cards[listed[at][3]]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

/* ---- Everything together ---- */

const actions = {
  details: (button) => openDetails(button.closest(".card")),
  copy: (button) => copyCard(button.closest(".card")),
  "copy-shown": (button) => copyPaths(offered(panelOf(button))),
  "copy-selected": () => copyPaths(selected),
  "copy-unreadable": () => copyPaths(byId("unreadable-files").querySelectorAll("[data-path]")),
  "copy-command": (button) => copy(button.parentElement.querySelector("code").dataset.command, "the command"),
  "copy-details": () => copyCard(current),
  "select-shown": (button) => {
    for (const card of offered(panelOf(button))) select(card, true);
    showSelection();
  },
  clear: () => {
    for (const card of [...selected]) select(card, false);
    showSelection();
  },
  previous: () => step(-1),
  next: () => step(1),
  close: () => byId("details").close(),
};

let last; // the card that had the focus

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("details").open) return;
  if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
  const inside = event.target.closest(".card");
  const onCard = event.target === inside;
  const panel = document.querySelector(".findings:not([hidden])");
  const cards = visibleCards(panel);
  const columns = inside ? getComputedStyle(inside.parentElement).gridTemplateColumns.split(" ").length : 1;
  const arrows = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const by = { j: 1, k: -1 }[event.key] ?? (inside ? arrows[event.key] : undefined);
  if (event.key === "/") {
    const box = panel.querySelector("input[name=text]");
    box?.focus();
    box?.select();
  } else if (event.key === "c" && inside) copyCard(inside);
  else if (event.key.toLowerCase() === "x" && inside) choose(inside, !selected.has(inside), event.shiftKey);
  else if (event.key === "Enter" && onCard) openDetails(inside);
  else if (by) {
    const at = cards.indexOf(inside ?? last);
    cards[at < 0 ? 0 : at + by]?.focus();
  } else return;
  event.preventDefault();
}

function clicked(event) {
  const button = event.target.closest("[data-does]");
  if (button) return void actions[button.dataset.does](button);
  const card = event.target.closest(".card");
  if (!card || event.ctrlKey || event.metaKey) return;
  if (event.target.matches(".select")) choose(card, event.target.checked, event.shiftKey);
  else if (event.target.closest(".thumb")) {
    event.preventDefault();
    if (event.shiftKey) choose(card, true, true);
    else openDetails(card);
  }
}

function setUp() {
  data = JSON.parse(byId("data").textContent);
  byId("theme").textContent = `Theme: ${theme}`;
  byId("theme").addEventListener("click", (event) => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    root.dataset.theme = theme;
    event.target.textContent = `Theme: ${theme}`;
    try { localStorage.setItem("ood-audit-theme", theme); } catch { /* holds until the page is closed */ }
  });
  addActions();
  setUpTabs();
  setUpMap();
  for (const panel of document.querySelectorAll(".findings")) setUpPanel(panel);
  document.addEventListener("click", clicked);
  document.addEventListener("keydown", pressed);
  document.addEventListener("focusin", (event) => { last = event.target.closest(".card") ?? last; });
  const dialog = byId("details");
  dialog.addEventListener("close", closed);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(by);
  });
  byId("details-select").addEventListener("click", (event) => choose(current, event.target.checked, false));
}

document.addEventListener("DOMContentLoaded", setUp);
