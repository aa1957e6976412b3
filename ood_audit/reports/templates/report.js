/* The page of a report: looking through findings, and deciding about them. Nothing leaves this file but a download. */

const AT_ONCE = 60; // cards that are put on the page at a time: thousands would make every change slow
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const themes = ["auto", "light", "dark"];
const state = {
  data: null, // the block of JSON
  cards: [], // all of them, in the order of the document and of the records
  about: new Map(), // what is known of each card: { record, finding, list, title, text }
  cardsOf: new Map(), // by finding: its cards, as two files may have the same bytes
  shown: [], // the cards that the filters let through, in their order
  placed: 0, // how many of them are on the page
  kind: "", // the finding that the line of counts has chosen
  chosen: null, // the cards that were chosen on the map
  current: null, // the card that had the focus last, or whose details are shown
  detailed: null, // the card whose details were shown last
  decisions: new Map(), // by finding: { decision, label, when }, of this page
  history: [], // what each step has changed: lists of [finding, before]
};

/* ---- What the browser keeps ---- */

function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`ood-audit-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Whether there was room for it; without it, it holds until the page is closed. */
function store(name, value) {
  try {
    localStorage.setItem(`ood-audit-${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

root.dataset.theme = recall("theme", "auto");

/* ---- Small things ---- */

function make(name, text = "", properties = {}) {
  const element = Object.assign(document.createElement(name), properties);
  element.textContent = text; // never as HTML: file names are hostile
  return element;
}

const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const recordOf = (card) => state.about.get(card).record;
const findingOf = (card) => state.about.get(card).finding;
const listOf = (card) => state.about.get(card).list;
const verdictFor = (card) => state.decisions.get(findingOf(card));
const isOpen = (id) => byId(id).open;

let fading;
function say(text) {
  byId("toast").textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => {
    byId("toast").textContent = "";
  }, 4000);
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  const focused = document.activeElement;
  area.className = "offscreen";
  area.value = text;
  area.addEventListener("copy", (event) => {
    // a text area has changed the line ends
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  });
  (document.querySelector("dialog[open]") ?? document.body).append(area); // what is outside of a dialog is inert
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return done;
}

async function copy(text, what) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyBySelection(text);
  }
  say(done ? `Copied ${what}` : "This browser does not allow copying: select the text and copy it by hand");
}

function copyShown() {
  const paths = new Map(state.shown.map((card) => [card.dataset.image, card.dataset.path])); // an image may be listed twice
  copy([...paths.values()].join("\n"), counted(paths.size, "path", "paths"));
}

/* ---- Deciding ---- */

const marks = { keep: "✓ keep", remove: "✕ remove" };

function markOf(verdict) {
  return verdict && (marks[verdict.decision] ?? `→ ${verdict.label}`);
}

function showDecision(card) {
  const mark = markOf(verdictFor(card));
  if (mark) card.dataset.mark = mark;
  else delete card.dataset.mark;
}

/** Set a decision for cards. One step for undo. */
function decide(cards, verdict) {
  if (!cards.length) return;
  const findings = [...new Set(cards.map(findingOf))];
  state.history.push(findings.map((finding) => [finding, state.decisions.get(finding)]));
  change(findings.map((finding) => [finding, verdict]));
}

function change(changes) {
  for (const [finding, verdict] of changes) {
    if (verdict) state.decisions.set(finding, verdict);
    else state.decisions.delete(finding);
    for (const card of state.cardsOf.get(finding)) showDecision(card);
  }
  keepDecisions();
  showProgress();
  if (isOpen("details")) showVerdict();
}

function undo() {
  const changed = state.history.pop();
  if (!changed) return say("There is nothing to undo");
  change(changed);
  goTo(state.cardsOf.get(changed[0][0])[0]);
}

/* Decisions are kept for all pages of a report together, each with what Finish needs to write it on another page. */

const keptAs = () => `decisions-${state.data.report}`;

/** The decisions about what this page does not list. On one page they are about findings that there are no more. */
function decidedElsewhere() {
  if (state.data.pages === 1) return [];
  return recall(keptAs(), []).filter(([finding]) => !state.cardsOf.has(finding));
}

function recallDecisions() {
  const here = recall(keptAs(), []).filter(([finding]) => state.cardsOf.has(finding));
  state.decisions = new Map(here);
  for (const [finding] of here) for (const card of state.cardsOf.get(finding)) showDecision(card);
  if (here.length) keepDecisions(); // as those of this report, also where an older one asked
}

function keepDecisions() {
  const { made, pages } = state.data;
  const here = [...state.decisions].map(([finding, verdict]) => {
    return [finding, pages === 1 ? verdict : { ...verdict, made, rows: rowsOf(finding, verdict) }];
  });
  if (!store(keptAs(), [...decidedElsewhere(), ...here])) {
    say("This browser has no room to keep more decisions: press Finish before you close the page");
  }
}

function showProgress() {
  const wanted = state.cards.filter((card) => {
    const { kind } = recordOf(card);
    return state.kind ? kind === state.kind : kind !== state.data.beside || verdictFor(card);
  });
  byId("reviewed").textContent = wanted.filter(verdictFor).length.toLocaleString("en");
  byId("reviewable").textContent = wanted.length.toLocaleString("en");
  byId("progress").hidden = state.decisions.size === 0;
}

const verdictOf = (decision, label = "") => ({ decision, label, when: new Date().toISOString() });

/** Decide about the card at hand, and go on to the next one that is open. */
function decideHere(decision, label) {
  const card = state.current;
  if (!card) return;
  decide([card], verdictOf(decision, label));
  const at = state.shown.indexOf(card);
  const following = [...state.shown.slice(at + 1), ...state.shown.slice(0, Math.max(at, 0))];
  const next = following.find((one) => !verdictFor(one));
  if (next) goTo(next);
}

function decideGroup(button, decision) {
  const list = button.closest(".group").querySelector(".cards");
  const cards = state.shown.filter((card) => listOf(card) === list && !verdictFor(card));
  decide(cards, verdictOf(decision));
  say(`${decision === "keep" ? "Keep" : "Remove"} ${counted(cards.length, "picture", "pictures")}; u takes it back`);
}

function askForClass(decision) {
  if (!state.current) return;
  const { suggestion, guess } = recordOf(state.current);
  const box = byId("naming-label");
  byId("naming-title").textContent =
    decision === "relabel" ? "Which class does it show?" : "What is the new class called?";
  box.setAttribute("list", decision === "relabel" ? "classes" : "");
  box.value = decision === "relabel" ? suggestion : guess;
  const dialog = byId("naming");
  dialog.returnValue = "";
  dialog.onclose = () => {
    const label = box.value.trim();
    if (dialog.returnValue === "ok" && label) decideHere(decision, label);
  };
  dialog.showModal();
  box.select();
}

/* ---- Finishing ---- */

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** The rows of decisions.csv about a finding: one for each file that has its bytes. */
function rowsOf(finding, { decision, label, when }) {
  const rows = state.cardsOf.get(finding).map((card) => {
    const { hash, kind, uri } = recordOf(card);
    return [card.dataset.path, hash, kind, decision, label, when, uri].map(quoted).join(",");
  });
  return [...new Set(rows)];
}

/** In the order of the page; those of other pages of this report last. */
function decisionsAsCsv() {
  const here = new Set(state.cards.map(findingOf).filter((finding) => state.decisions.has(finding)));
  const elsewhere = decidedElsewhere().filter(([, verdict]) => verdict.made === state.data.made);
  return [
    "path,content_hash,kind,decision,label,when,uri",
    ...[...here].flatMap((finding) => rowsOf(finding, state.decisions.get(finding))),
    ...elsewhere.flatMap(([, verdict]) => verdict.rows),
  ];
}

function finish() {
  const lines = decisionsAsCsv();
  const link = make("a", "", { download: "decisions.csv" });
  link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  const saved = counted(lines.length - 1, "decision", "decisions");
  say(`Saved decisions.csv with ${saved}. Now run: ood-audit apply decisions.csv --to ../aside`);
}

/* ---- Going from card to card ---- */

function goTo(card) {
  state.current = card;
  if (isOpen("details")) return showDetails(card);
  const at = state.shown.indexOf(card);
  if (at >= state.placed) place(at + AT_ONCE);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const at = state.shown.indexOf(state.current);
  const card = state.shown[at < 0 ? 0 : at + by];
  if (card) goTo(card);
}

function columnsOf(card) {
  return getComputedStyle(card.parentElement).gridTemplateColumns.split(" ").length;
}

/* ---- Pictures ---- */

/** Make the picture of a card, which is only text until the card is reached. */
function showPicture(card) {
  const waiting = card.querySelector(".thumb noscript");
  if (!waiting) return;
  const [, src] = /src="([^"]*)"/.exec(waiting.textContent);
  waiting.replaceWith(
    make("img", "", { src, alt: card.querySelector(".path bdi:last-child").textContent, decoding: "async" }),
  );
}

function pictureOf(card) {
  showPicture(card);
  const image = card.querySelector(".thumb img");
  return image
    ? make("img", "", { src: image.src, alt: image.alt })
    : make("p", card.querySelector(".thumb").textContent);
}

/** A picture on this page, by the number of its record; another one by its path and its place. */
function pictureFor(reference) {
  if (typeof reference === "number") return pictureOf(state.cards[reference]);
  const [name, place] = reference;
  if (place < 0) return make("p", "not on this page", { title: name });
  return make("img", "", { src: state.data.pictures[place], alt: name || "the picture that it is in", title: name });
}

/** A small picture of an image that is not listed, from the sheet of all of them. */
function spriteOf(tile) {
  const { picture, size, columns } = state.data.sprites;
  state.sheet ??= make("img", "", { src: picture });
  const canvas = make("canvas", "", { width: size, height: size });
  const [left, top] = [(tile % columns) * size, Math.floor(tile / columns) * size];
  const draw = () => canvas.getContext("2d").drawImage(state.sheet, left, top, size, size, 0, 0, size, size);
  if (state.sheet.complete) draw();
  else state.sheet.addEventListener("load", draw, { once: true });
  return canvas;
}

/* ---- The dialog ---- */

function openDetails(card) {
  byId("details").showModal();
  showDetails(card);
  byId("details-title").focus({ preventScroll: true });
}

function showDetails(card) {
  state.current = card;
  state.detailed = card;
  const record = recordOf(card);
  const at = state.shown.indexOf(card);
  const place = `${(at + 1).toLocaleString("en")} of ${state.shown.length.toLocaleString("en")}`;
  byId("details-place").textContent = at < 0 ? "" : place;
  byId("details-title").replaceChildren(card.querySelector(".path").cloneNode(true));
  byId("details-picture").replaceChildren(...comparison(card, record));
  byId("details-say").replaceChildren(...card.querySelector(".say").cloneNode(true).childNodes);
  const link = card.querySelector("a.thumb");
  byId("details-file").hidden = !link;
  if (link) byId("details-file").href = link.href;
  const compared = record.compare.filter((k) => state.data.typical[k]);
  byId("details-typical").replaceChildren(...compared.map((k) => typicalOf(k, record)));
  showBars(record);
  showNeighbours(record);
  byId("details-facts").replaceChildren(
    ...record.facts.map(([term, value]) => row(make("dt", term), make("dd", value))),
  );
  showVerdict();
  const dialog = byId("details");
  dialog.querySelector("[data-does=previous]").disabled = at <= 0;
  dialog.querySelector("[data-does=next]").disabled = at < 0 || at + 1 >= state.shown.length;
  for (const part of dialog.querySelectorAll(".details-body, .details-text")) part.scrollTop = 0;
  const focused = document.activeElement;
  if (focused.disabled || !dialog.contains(focused)) byId("details-title").focus({ preventScroll: true });
}

function row(...children) {
  const line = make("div");
  line.append(...children);
  return line;
}

/** The picture; beside it the one that it is in, and the one that it is compared with, and what differs. */
function comparison(card, record) {
  const around = record.around === undefined ? [] : [captioned(pictureFor(["", record.around]), "in its picture")];
  if (record.twin === undefined) return [captioned(pictureOf(card), ""), ...around];
  const listed = typeof record.twin === "number";
  const kept = listed ? state.cards[record.twin].dataset.path : record.twin[0];
  const [own, other] = [pictureOf(card), pictureFor(record.twin)];
  const figures = [captioned(own, card.dataset.path), captioned(other, `${record.twinIs}: ${kept}`)];
  if (own.src && other.src) figures.push(difference(own, other));
  return [...figures, ...around];
}

function captioned(picture, text) {
  const figure = make("figure");
  figure.append(picture, ...(text ? [make("figcaption", text)] : []));
  return figure;
}

const STRONGER = 4; // differences are shown so many times as strong, as a faint one would not be seen

/** How two pictures differ, colour by colour: black where they are the same. */
function difference(one, other) {
  const canvas = make("canvas", "", { className: "difference" });
  const figure = captioned(canvas, "difference");
  Promise.all([one.decode(), other.decode()]).then(() => {
    [canvas.width, canvas.height] = [other.naturalWidth, other.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(other, 0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "difference";
    context.drawImage(one, 0, 0, canvas.width, canvas.height);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const share = strengthen(pixels.data);
    context.putImageData(pixels, 0, 0);
    figure.lastChild.textContent = share
      ? `difference, ${STRONGER} × as strong: ${percent(share)} on average`
      : "no difference";
  });
  return figure;
}

/** Multiply the colours of pixels; returns their mean before, in 0 … 1. */
function strengthen(colours) {
  let sum = 0;
  for (let i = 0; i < colours.length; i++) {
    if (i % 4 === 3) continue; // how opaque it is
    sum += colours[i];
    colours[i] *= STRONGER;
  }
  return sum / (colours.length * 0.75 * 255);
}

const percent = (share) => (share < 0.001 ? "less than 0.1%" : `${(100 * share).toFixed(1)}%`);

function typicalOf(k, record) {
  const section = make("section");
  const strip = make("ul", "", { className: "strip" });
  strip.append(...state.data.typical[k].map((reference) => item(pictureFor(reference))));
  const title = make("h3", k === record.given ? "In this class: " : "Nearest class: ");
  title.append(make("strong", state.data.classes[k]));
  section.append(title, strip);
  return section;
}

function item(child) {
  const line = make("li");
  line.append(child);
  return line;
}

function showBars(record) {
  byId("details-bars").hidden = record.bars.length === 0;
  byId("details-bars")
    .querySelector("dl")
    .replaceChildren(
      ...record.bars.map(([label, value, width]) => {
        const bar = make("span", "", { className: "bar" });
        bar.style.width = `${width}%`;
        const number = make("dd");
        number.append(bar, make("span", value));
        const line = row(make("dt", label, { title: label }), number);
        line.classList.toggle("given", label === state.data.classes[record.given]);
        return line;
      }),
    );
}

function showNeighbours(record) {
  byId("details-near").hidden = record.near.length === 0;
  byId("details-near")
    .querySelector("ul")
    .replaceChildren(
      ...record.near.map((near) => {
        if (typeof near !== "number") return item(pictureFor(near));
        const card = state.cards[near];
        const button = make("button", "", { type: "button", title: card.dataset.path });
        button.append(pictureOf(card));
        button.addEventListener("click", () => showDetails(card));
        return item(button);
      }),
    );
}

function showVerdict() {
  const verdict = state.decisions.get(findingOf(state.current));
  byId("details-verdict").textContent = verdict ? `Decided: ${markOf(verdict)}` : "";
  for (const button of byId("details").querySelectorAll(".verdicts [data-does]")) {
    button.setAttribute("aria-pressed", button.dataset.does === verdict?.decision);
  }
}

/** Back to the card; the browser itself goes back to where the dialog was opened. */
function closed() {
  if (state.shown.includes(state.detailed)) goTo(state.detailed);
}

/* ---- Filters and the look of the grid ---- */

const form = () => byId("tools");

function textOf(card) {
  const about = state.about.get(card);
  about.text ??= `${card.dataset.path}\n${card.querySelector(".say").textContent}\n${about.title}`.toLowerCase();
  return about.text;
}

function fits(card, wanted, text) {
  const { kind, values } = recordOf(card);
  if (state.kind && kind !== state.kind) return false;
  if (state.chosen && !state.chosen.has(card)) return false;
  if (!wanted.every(([name, number]) => values[name] === number)) return false;
  const done = form().elements.state.value;
  if (done && (done === "done") !== Boolean(verdictFor(card))) return false;
  return !text || textOf(card).includes(text);
}

/** Show what the filters let through, in the order that is chosen: grouped as in the document, or in one list. */
function refresh() {
  const { text, sort } = form().elements;
  const wanted = [...form().querySelectorAll("[data-filter]")]
    .filter((box) => box.value)
    .map((box) => [box.name, Number(box.value)]);
  const order = state.data.orders[sort.value];
  const all = order ? order.map((place) => state.cards[place]) : state.cards;
  const sought = text.value.toLowerCase();
  state.shown = all.filter((card) => fits(card, wanted, sought));
  byId("flat").hidden = !order;
  for (const list of document.querySelectorAll(".cards")) list.replaceChildren();
  for (const part of document.querySelectorAll(".part, .group")) part.hidden = true;
  state.placed = 0;
  place(AT_ONCE);
  if (byId("unreadable")) byId("unreadable").hidden = Boolean(state.kind || state.chosen || sought);
  byId("shown").textContent = state.shown.length.toLocaleString("en");
  byId("nothing").hidden = state.shown.length > 0;
  showProgress();
}

/** Put cards on the page, up to so many of those shown. */
function place(count) {
  const flat = !byId("flat").hidden;
  for (const card of state.shown.slice(state.placed, count)) {
    const list = flat ? byId("flat") : listOf(card);
    if (!flat) for (const around of [list.closest(".group"), list.closest(".part")]) around.hidden = false;
    list.append(card);
    showPicture(card);
    showNumbers(card);
  }
  state.placed = Math.min(count, state.shown.length);
}

/** Put more cards on the page before its end is reached. */
function setUpPlacing() {
  const end = byId("end");
  const observer = new IntersectionObserver(
    ([entry]) => {
      if (!entry.isIntersecting || state.placed >= state.shown.length) return;
      place(state.placed + AT_ONCE);
      observer.unobserve(end);
      observer.observe(end); // it may still be near
    },
    { rootMargin: "1500px" },
  );
  observer.observe(end);
  addEventListener("beforeprint", () => place(state.shown.length));
}

function showNumbers(card) {
  if (!root.classList.contains("with-numbers") || card.querySelector(".numbers")) return;
  const text = recordOf(card)
    .facts.map((fact) => fact.join(" "))
    .join(" · ");
  card.querySelector(".say").after(make("p", text, { className: "numbers muted" }));
}

function look() {
  const { size, bare, numbers } = form().elements;
  root.style.setProperty("--size", `${size.value}px`);
  root.classList.toggle("bare", bare.checked);
  root.classList.toggle("with-numbers", numbers.checked);
  if (numbers.checked) for (const card of state.shown.slice(0, state.placed)) showNumbers(card);
  store("look", { size: size.value, bare: bare.checked, numbers: numbers.checked });
}

function setUpTools() {
  const { size, bare, numbers } = form().elements;
  form().reset(); // browsers keep what was typed before a reload
  const kept = recall("look", {});
  size.value = kept.size ?? (innerWidth < 480 ? 160 : 220);
  bare.checked = Boolean(kept.bare);
  numbers.checked = Boolean(kept.numbers);
  form().addEventListener("input", (event) => ([size, bare, numbers].includes(event.target) ? look() : refresh()));
  form().addEventListener("submit", (event) => event.preventDefault());
  look();
  refresh();
  setUpPlacing();
}

function chooseKind(link) {
  const { kind } = link.dataset;
  state.kind = state.kind === kind ? "" : kind;
  for (const one of document.querySelectorAll(".counts [data-kind]")) {
    one.setAttribute("aria-current", one.dataset.kind === state.kind);
  }
  refresh();
  scrollTo({ top: 0 });
}

/** Show only these cards, or all. */
function choose(cards) {
  state.chosen = cards && new Set(cards);
  byId("chosen").hidden = !cards;
  byId("chosen").textContent = cards ? `${counted(cards.length, "finding", "findings")} of an area ✕` : "";
  refresh();
  scrollTo({ top: 0 });
}

/* ---- The map ---- */

const SVG = "http://www.w3.org/2000/svg";

function setUpMap() {
  const map = byId("map");
  const [fullWidth, fullHeight] = map.getAttribute("viewBox").split(" ").slice(2).map(Number);
  const view = { x: 0, y: 0, scale: 1 };
  const points = state.data.points.map(([x, y, kind, level, record, label, tile]) => ({
    x,
    y,
    kind,
    level,
    record,
    label,
    tile,
  }));
  const listed = points.filter((point) => point.record >= 0);
  let at = -1; // of the keyboard, in `listed`
  let drag = null; // where a pointer went down and has been since, while it is down
  let pen = null; // where the keyboard draws, and the corners that it has set

  function spot(event) {
    const box = map.getBoundingClientRect();
    const unit = fullWidth / view.scale / box.width;
    return { x: view.x + (event.clientX - box.left) * unit, y: view.y + (event.clientY - box.top) * unit, unit };
  }

  function look({ x = view.x, y = view.y, scale = view.scale }) {
    view.scale = scale;
    view.x = Math.min(Math.max(x, 0), fullWidth - fullWidth / scale);
    view.y = Math.min(Math.max(y, 0), fullHeight - fullHeight / scale);
    map.setAttribute("viewBox", `${view.x} ${view.y} ${fullWidth / scale} ${fullHeight / scale}`);
    map.classList.toggle("zoomed", scale > 1);
    byId("map-marker").setAttribute("r", 11 / scale);
    showTip();
  }

  function zoom(by, { x, y } = { x: view.x + fullWidth / view.scale / 2, y: view.y + fullHeight / view.scale / 2 }) {
    const scale = Math.min(Math.max(view.scale * by, 1), 16);
    look({ scale, x: x - ((x - view.x) * view.scale) / scale, y: y - ((y - view.y) * view.scale) / scale });
  }

  function nearest(event) {
    const { x, y, unit } = spot(event);
    const reach = (event.pointerType === "touch" ? 24 : 12) * unit;
    let best;
    let least = reach * reach;
    for (const point of points) {
      // The last one is drawn on top; one that can be opened comes first.
      const distance = (point.x - x) ** 2 + (point.y - y) ** 2 + (point.record < 0 ? (reach * reach) / 4 : 0);
      if (distance <= least) [best, least] = [point, distance];
    }
    return best;
  }

  function showTip(point) {
    const tip = byId("map-tip");
    tip.hidden = !point;
    byId("map-marker").setAttribute("cx", point ? point.x : -99);
    byId("map-marker").setAttribute("cy", point ? point.y : -99);
    map.classList.toggle("opens", Boolean(point) && point.record >= 0);
    if (!point) return;
    tip.replaceChildren(
      make("strong", state.data.kinds[point.kind]),
      make("span", state.data.classes[point.label] ?? ""),
    );
    const card = state.cards[point.record];
    if (card) tip.append(pictureOf(card), card.querySelector(".path").cloneNode(true));
    else if (point.tile >= 0) tip.append(spriteOf(point.tile));
    const scale = (map.getBoundingClientRect().width / fullWidth) * view.scale;
    const [left, top] = [(point.x - view.x) * scale, (point.y - view.y) * scale + map.offsetTop];
    tip.style.left = `${Math.min(Math.max(left - tip.offsetWidth / 2, 0), map.clientWidth - tip.offsetWidth)}px`;
    tip.style.top = `${top - map.offsetTop > map.clientHeight / 2 ? top - tip.offsetHeight - 16 : top + 16}px`;
  }

  const drawing = () => map.classList.contains("drawing");

  function setDrawing(on) {
    map.classList.toggle("drawing", on);
    document.querySelector("[data-does=lasso]").setAttribute("aria-pressed", on);
    pen = on ? { x: view.x + fullWidth / view.scale / 2, y: view.y + fullHeight / view.scale / 2, line: [] } : null;
    showLine([]);
  }

  function showLine(line) {
    byId("map-lasso").setAttribute("points", line.map((corner) => corner.join(",")).join(" "));
  }

  /** Draw by keys: the arrows move, space sets a corner, Enter closes the area. Whether it was one of these. */
  function drew(event) {
    const across = { ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? 0;
    const down = { ArrowDown: 1, ArrowUp: -1 }[event.key] ?? 0;
    if (event.key === "Escape") setDrawing(false);
    else if (event.key === " ") pen.line.push([pen.x, pen.y]);
    else if (event.key === "Enter") {
      if (pen.line.length < 3) say("Set three corners at least with the space bar");
      else finishArea(pen.line);
    } else if (!across && !down) return false;
    if (pen) {
      const unit = ((event.shiftKey ? 4 : 20) / view.scale) * (fullWidth / 600);
      pen.x = Math.min(Math.max(pen.x + across * unit, view.x), view.x + fullWidth / view.scale);
      pen.y = Math.min(Math.max(pen.y + down * unit, view.y), view.y + fullHeight / view.scale);
      showLine([...pen.line, [pen.x, pen.y]]);
    }
    byId("map-marker").setAttribute("cx", pen ? pen.x : -99);
    byId("map-marker").setAttribute("cy", pen ? pen.y : -99);
    return true;
  }

  /** Review what lies within a line. */
  function finishArea(line) {
    setDrawing(false);
    const inside = listed.filter((point) => isInside(point, line));
    const images = new Set(inside.map((point) => state.cards[point.record].dataset.image));
    const cards = state.cards.filter((card) => images.has(card.dataset.image)); // an image may be listed twice
    if (cards.length) choose(cards);
    else say("None of the listed images lies there");
  }

  function dragged(event) {
    const here = spot(event);
    drag.far ||= Math.hypot(here.x - drag.from.x, here.y - drag.from.y) > 4 * here.unit;
    if (!drag.far) return;
    if (!drawing()) return look({ x: view.x + drag.from.x - here.x, y: view.y + drag.from.y - here.y });
    drag.line.push([here.x, here.y]);
    showLine(drag.line);
  }

  function released() {
    const { far, line } = drag;
    drag = null;
    if (!drawing() || !far) return far;
    finishArea(line);
    return true;
  }

  map.addEventListener("pointerdown", (event) => {
    const from = spot(event);
    drag = { from, line: [[from.x, from.y]], far: false };
    map.setPointerCapture(event.pointerId);
    event.preventDefault(); // nothing is to be marked as text
  });
  map.addEventListener("pointermove", (event) => (drag ? dragged(event) : showTip(nearest(event))));
  map.addEventListener("pointerup", (event) => {
    if (!drag || released()) return;
    const point = nearest(event);
    if (point?.record >= 0) openDetails(state.cards[point.record]);
    else showTip(point);
  });
  map.addEventListener("pointercancel", () => {
    drag = null;
  });
  map.addEventListener("pointerleave", () => showTip());
  map.addEventListener(
    "wheel",
    (event) => {
      if (view.scale === 1 && event.deltaY > 0) return; // the page scrolls
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : 0.8, spot(event));
    },
    { passive: false },
  );
  map.addEventListener("blur", () => showTip());
  map.addEventListener("keydown", (event) => {
    if (drawing() && drew(event)) {
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by && listed.length) {
      at = (at + by + (at < 0 && by < 0 ? 1 : 0) + listed.length) % listed.length;
      showTip(listed[at]);
    } else if (event.key === "Enter" && at >= 0) openDetails(state.cards[listed[at].record]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  map.tabIndex = 0;
  byId("map-colour").addEventListener("change", (event) => colourBy(event.target.value, points));
  actions["zoom-in"] = () => zoom(1.5);
  actions["zoom-out"] = () => zoom(1 / 1.5);
  actions.lasso = () => {
    setDrawing(!drawing());
    if (drawing()) map.focus({ preventScroll: true });
  };
}

/** Whether a point lies in a polygon: whether a ray from it crosses the edges an odd number of times. */
function isInside({ x, y }, corners) {
  let inside = false;
  corners.forEach(([x1, y1], i) => {
    const [x2, y2] = corners.at(i - 1);
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  });
  return inside;
}

const COLOURED = 8; // classes; more colours cannot be told apart

/** What the colours of the map stand for: names, and the points of each. The first are drawn on top. */
function coloured(what, points) {
  if (what === "score") {
    const byLevel = Map.groupBy(points, (point) => point.level);
    return state.data.levels.map((name, i) => ({ name, points: byLevel.get(i) ?? [], style: `mark level-${i}` }));
  }
  const byLabel = Map.groupBy(points, (point) => point.label);
  const often = [...byLabel].sort((a, b) => b[1].length - a[1].length).slice(0, COLOURED);
  const names = new Set(often.map(([label]) => label));
  const others = points.filter((point) => !names.has(point.label));
  return [
    ...often.map(([label, own], place) => ({
      name: state.data.classes[label],
      points: own,
      style: "mark of-class",
      place,
    })),
    { name: "other classes", points: others, style: "mark of-others" },
  ];
}

/** By finding, as in the document; or by the nearest class or the score. */
function colourBy(what, points) {
  const byKind = what === "kind";
  for (const mark of byId("map").querySelectorAll(":scope > .mark")) mark.toggleAttribute("hidden", !byKind);
  const legend = byId("map-legend");
  legend.of ??= [...legend.children];
  const colours = byKind ? [] : coloured(what, points).filter((colour) => colour.points.length);
  const lines = colours.map((colour) => {
    const sign = document.createElementNS(SVG, "svg");
    sign.setAttribute("viewBox", "0 0 16 16");
    sign.append(drawn("M8 8h0", colour));
    const line = item(sign);
    line.append(` ${colour.name} `, make("span", colour.points.length.toLocaleString("en"), { className: "muted" }));
    return line;
  });
  byId("map-colours").replaceChildren(
    ...colours.toReversed().map((colour) => drawn(colour.points.map(({ x, y }) => `M${x} ${y}h0`).join(""), colour)),
  );
  legend.replaceChildren(...(byKind ? legend.of : lines));
}

function drawn(path, { style, place }) {
  const mark = document.createElementNS(SVG, "path");
  mark.setAttribute("class", style);
  mark.setAttribute("d", path);
  if (place !== undefined) mark.style.setProperty("--place", place);
  return mark;
}

/* ---- Everything together ---- */

const actions = {
  keep: () => decideHere("keep"),
  remove: () => decideHere("remove"),
  relabel: () => askForClass("relabel"),
  "new-class": () => askForClass("new-class"),
  undo,
  finish,
  "keep-group": (button) => decideGroup(button, "keep"),
  "remove-group": (button) => decideGroup(button, "remove"),
  "copy-shown": copyShown,
  "copy-command": (button) => copy(button.parentElement.querySelector("code").dataset.command, "the command"),
  "copy-path": () => copy(state.current.dataset.path, "the path"),
  "clear-choice": () => choose(null),
  previous: () => step(-1),
  next: () => step(1),
  close: () => byId("details").close(),
  help: () => byId("help").showModal(),
};

const large = () => {
  if (isOpen("details")) byId("details").close();
  else if (state.current) openDetails(state.current);
};

const keys = {
  k: actions.keep,
  r: actions.remove,
  l: actions.relabel,
  c: actions["new-class"],
  u: undo,
  n: () => step(1),
  p: () => step(-1),
  " ": large,
  "?": actions.help,
};

function arrow(key) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (by) return by;
  const inGrid = !isOpen("details") && state.current === document.activeElement;
  return inGrid ? { ArrowDown: 1, ArrowUp: -1 }[key] * columnsOf(state.current) || 0 : 0;
}

function search() {
  form().elements.text.focus();
  form().elements.text.select();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || isOpen("naming") || isOpen("help")) return;
  if (event.target.closest("input:not([type=checkbox]), select, textarea, summary")) return;
  const onButton = event.target.closest("button, a[href], [type=checkbox]") && [" ", "Enter"].includes(event.key);
  if (onButton) return;
  const by = arrow(event.key);
  if (keys[event.key]) keys[event.key]();
  else if (event.key === "/" && byId("tools") && !isOpen("details")) search();
  else if (event.key === "Enter" && event.target.matches(".card")) openDetails(event.target);
  else if (by) step(by);
  else return;
  event.preventDefault();
}

function clicked(event) {
  const link = event.target.closest(".counts a");
  if (link?.dataset.kind) {
    event.preventDefault();
    return chooseKind(link);
  }
  if (link?.hash === "#more") byId("more").open = true;
  const card = event.target.closest(".card");
  if (card) state.current = card;
  const button = event.target.closest("[data-does]");
  if (button) return actions[button.dataset.does](button);
  if (!card || event.ctrlKey || event.metaKey || !event.target.closest(".thumb")) return;
  event.preventDefault();
  openDetails(card);
}

/** One line of buttons, which lies on the card at hand: thousands of them would make the page slow. */
function setUpActions() {
  const line = byId("actions").content.firstElementChild;
  const move = (event) => {
    const card = event.target.closest?.(".card");
    if (card && line.parentElement !== card) card.append(line);
  };
  document.addEventListener("pointerover", move);
  document.addEventListener("focusin", (event) => {
    move(event);
    state.current = event.target.closest(".card") ?? state.current;
  });
}

function setUpTheme() {
  const button = byId("theme");
  button.textContent = `Theme: ${root.dataset.theme}`;
  button.addEventListener("click", () => {
    const theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
    root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    store("theme", theme);
  });
}

function setUp() {
  state.data = JSON.parse(byId("data").textContent);
  state.cards = [...document.querySelectorAll(".card")];
  const groups = [...document.querySelectorAll(".group")];
  const titles = new Map(groups.map((group) => [group.querySelector(".cards"), group.querySelector("h3").textContent]));
  state.cards.forEach((card, i) => {
    const record = state.data.records[i];
    const finding = `${record.kind} ${record.hash || record.uri}`;
    const list = card.parentElement;
    state.about.set(card, { record, finding, list, title: titles.get(list) });
    if (!state.cardsOf.has(finding)) state.cardsOf.set(finding, []);
    state.cardsOf.get(finding).push(card);
  });
  recallDecisions();
  setUpTheme();
  setUpActions();
  if (byId("map")) setUpMap();
  if (form()) setUpTools();
  document.addEventListener("click", clicked);
  document.addEventListener("keydown", pressed);
  const dialog = byId("details");
  dialog.addEventListener("close", closed);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", setUp);
else setUp();
