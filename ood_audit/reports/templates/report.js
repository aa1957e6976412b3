"use strict";

/* The page of a report: looking through findings, and deciding about them. Nothing leaves this file but a download. */
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const themes = ["auto", "light", "dark"];
  const state = {
    data: null, // the block of JSON
    cards: [], // all of them, in the order of the document
    sorted: new Map(), // all of them, by the name of an order
    shown: [], // those that the filters let through, in the order of the page
    kind: "", // the finding that the line of counts has chosen
    current: null, // the card that had the focus last, or whose details are shown
    detailed: null, // the card whose details were shown last
    decisions: new Map(), // by finding: { decision, label, when }
    history: [], // what each step has changed: lists of [finding, before]
  };

  /* ---- What the browser keeps ---- */

  function recall(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(`ood-audit-${name}`)) ?? otherwise; } catch { return otherwise; }
  }

  function store(name, value) {
    try { localStorage.setItem(`ood-audit-${name}`, JSON.stringify(value)); } catch { /* holds until the page is closed */ }
  }

  root.classList.add("js");
  root.dataset.theme = recall("theme", "auto");

  /* ---- Small things ---- */

  function make(name, text = "", properties = {}) {
    const element = Object.assign(document.createElement(name), properties);
    element.textContent = text; // never as HTML: file names are hostile
    return element;
  }

  const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
  const recordOf = (card) => state.data.records[card.dataset.record];
  const findingOf = (card) => `${recordOf(card).kind} ${recordOf(card).hash || recordOf(card).uri}`;
  const isOpen = (id) => byId(id).open;

  let fading;
  function say(text) {
    byId("toast").textContent = text;
    clearTimeout(fading);
    fading = setTimeout(() => { byId("toast").textContent = ""; }, 4000);
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
    (document.querySelector("dialog[open]") ?? document.body).append(area); // what is outside of a dialog is inert
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
    const mark = markOf(state.decisions.get(findingOf(card)));
    if (mark) card.dataset.mark = mark;
    else delete card.dataset.mark;
  }

  /** Set a decision for cards, or take it back where `verdict` is undefined. One step for undo. */
  function decide(cards, verdict) {
    const changed = [];
    for (const finding of new Set(cards.map(findingOf))) {
      changed.push([finding, state.decisions.get(finding)]);
      put(finding, verdict);
    }
    state.history.push(changed);
    showDecisions();
  }

  function put(finding, verdict) {
    if (verdict) state.decisions.set(finding, verdict);
    else state.decisions.delete(finding);
  }

  function undo() {
    const changed = state.history.pop();
    if (!changed) return say("There is nothing to undo");
    for (const [finding, before] of changed) put(finding, before);
    showDecisions();
    const card = state.cards.find((one) => findingOf(one) === changed[0][0]);
    if (card) goTo(card);
  }

  function showDecisions() {
    store(`decisions-${state.data.report}`, [...state.decisions]);
    for (const card of state.cards) showDecision(card);
    showProgress();
    if (isOpen("details")) showVerdict();
  }

  function showProgress() {
    const wanted = state.kind
      ? state.cards.filter((card) => card.dataset.kind === state.kind)
      : state.cards.filter((card) => card.dataset.kind !== state.data.beside || card.dataset.mark);
    byId("reviewed").textContent = wanted.filter((card) => card.dataset.mark).length.toLocaleString("en");
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
    const next = [...state.shown.slice(at + 1), ...state.shown.slice(0, Math.max(at, 0))].find((one) => !one.dataset.mark);
    if (next) goTo(next);
  }

  function decideGroup(button, decision) {
    const cards = [...button.closest(".group").querySelectorAll(".card:not([hidden])")].filter((card) => !card.dataset.mark);
    decide(cards, verdictOf(decision));
    say(`${decision === "keep" ? "Keep" : "Remove"} ${counted(cards.length, "picture", "pictures")}; u takes it back`);
  }

  function askForClass(decision) {
    if (!state.current) return;
    const { suggestion, guess } = recordOf(state.current);
    const box = byId("naming-label");
    byId("naming-title").textContent = decision === "relabel" ? "Which class does it show?" : "What is the new class called?";
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

  function decisionsAsCsv() {
    const lines = ["path,content_hash,kind,decision,label,when,uri"];
    const written = new Set();
    for (const card of state.cards) {
      const verdict = state.decisions.get(findingOf(card));
      const { hash, kind, uri } = recordOf(card);
      if (!verdict || written.has(`${kind} ${uri}`)) continue;
      written.add(`${kind} ${uri}`);
      lines.push([card.dataset.path, hash, kind, verdict.decision, verdict.label, verdict.when, uri].map(quoted).join(","));
    }
    return `${lines.join("\n")}\n`;
  }

  function finish() {
    const link = make("a", "", { download: "decisions.csv" });
    link.href = URL.createObjectURL(new Blob([decisionsAsCsv()], { type: "text/csv" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say("Saved decisions.csv. Now run: ood-audit apply decisions.csv --to ../aside");
  }

  /* ---- Going from card to card ---- */

  function goTo(card) {
    state.current = card;
    if (isOpen("details")) showDetails(card);
    else {
      card.focus({ preventScroll: true });
      card.scrollIntoView({ block: "nearest" });
    }
  }

  function step(by) {
    const at = state.shown.indexOf(state.current);
    const card = state.shown[at < 0 ? 0 : at + by];
    if (card) goTo(card);
  }

  function columnsOf(card) {
    return getComputedStyle(card.parentElement).gridTemplateColumns.split(" ").length;
  }

  /* ---- The dialog ---- */

  function pictureOf(card) {
    const image = card.querySelector(".thumb img");
    return image ? make("img", "", { src: image.src, alt: image.alt }) : make("p", card.querySelector(".thumb").textContent);
  }

  /** A picture on this page, by the number of its record; another one by its path and its place. */
  function pictureFor(near) {
    if (typeof near === "number") return pictureOf(cardOf(near));
    const [name, place] = near;
    return place < 0 ? make("p", "not on this page", { title: name }) : make("img", "", { src: state.data.pictures[place], alt: name, title: name });
  }

  const cardOf = (record) => state.byRecord.get(record);

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
    byId("details-place").textContent = at < 0 ? "" : `${(at + 1).toLocaleString("en")} of ${state.shown.length.toLocaleString("en")}`;
    byId("details-title").replaceChildren(card.querySelector(".path").cloneNode(true));
    byId("details-picture").replaceChildren(...comparison(card, record));
    byId("details-say").replaceChildren(...card.querySelector(".say").cloneNode(true).childNodes);
    const link = card.querySelector("a.thumb");
    byId("details-file").hidden = !link;
    if (link) byId("details-file").href = link.href;
    byId("details-typical").replaceChildren(...record.compare.filter((k) => state.data.typical[k]).map((k) => typicalOf(k, record)));
    showBars(record);
    showNeighbours(record);
    byId("details-facts").replaceChildren(...record.facts.map(([term, value]) => row(make("dt", term), make("dd", value))));
    showVerdict();
    const dialog = byId("details");
    dialog.querySelector("[data-does=previous]").disabled = at <= 0;
    dialog.querySelector("[data-does=next]").disabled = at < 0 || at + 1 >= state.shown.length;
    for (const part of dialog.querySelectorAll(".details-body, .details-text")) part.scrollTop = 0;
    if (document.activeElement.disabled || !dialog.contains(document.activeElement)) byId("details-title").focus({ preventScroll: true });
  }

  function row(...children) {
    const line = make("div");
    line.append(...children);
    return line;
  }

  /** The picture; a duplicate beside the one to keep, a box beside the picture that it is in. */
  function comparison(card, record) {
    const scene = record.scene < 0 ? [] : [captioned(pictureFor(["", record.scene]), "in its picture")];
    if (!record.twin) return [captioned(pictureOf(card), ""), ...scene];
    const kept = typeof record.twin === "number" ? cardOf(record.twin).dataset.path : record.twin[0];
    return [captioned(pictureOf(card), card.dataset.path), captioned(pictureFor(record.twin), `kept: ${kept}`), ...scene];
  }

  function captioned(picture, text) {
    const figure = make("figure");
    figure.append(picture, ...(text ? [make("figcaption", text)] : []));
    return figure;
  }

  function typicalOf(k, record) {
    const section = make("section");
    const strip = make("ul", "", { className: "strip" });
    strip.append(...state.data.typical[k].map((place) => item(make("img", "", { src: state.data.pictures[place], alt: "" }))));
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
    byId("details-bars").querySelector("dl").replaceChildren(...record.bars.map(([label, value, width]) => {
      const bar = make("span", "", { className: "bar" });
      bar.style.width = `${width}%`;
      const number = make("dd");
      number.append(bar, make("span", value));
      const line = row(make("dt", label, { title: label }), number);
      line.classList.toggle("given", label === state.data.classes[record.given]);
      return line;
    }));
  }

  function showNeighbours(record) {
    byId("details-near").hidden = record.near.length === 0;
    byId("details-near").querySelector("ul").replaceChildren(...record.near.map((near) => {
      if (typeof near !== "number") return item(pictureFor(near));
      const button = make("button", "", { type: "button", title: cardOf(near).dataset.path });
      button.append(pictureFor(near));
      button.addEventListener("click", () => showDetails(cardOf(near)));
      return item(button);
    }));
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
    if (state.detailed && !state.detailed.hidden) goTo(state.detailed);
  }

  /* ---- Filters and the look of the grid ---- */

  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const orders = {
    severity: (a, b) => b.severity - a.severity || a.rank - b.rank,
    class: (a, b) => compare(a.label, b.label),
    folder: (a, b) => compare(a.path, b.path),
  };
  const filters = ["given", "nearest", "folder", "group"];
  const form = () => byId("tools");

  function fits(card, wanted, text) {
    return (!state.kind || card.dataset.kind === state.kind)
      && filters.every((name) => !wanted[name]?.value || card.dataset[name] === wanted[name].value)
      && (!wanted.state.value || (wanted.state.value === "done") === Boolean(card.dataset.mark))
      && state.texts.get(card).includes(text);
  }

  function filter() {
    const wanted = form().elements;
    const text = wanted.text.value.toLowerCase();
    for (const card of state.cards) card.hidden = !fits(card, wanted, text);
    state.shown = inOrder(wanted.sort.value).filter((card) => !card.hidden);
    const shownGroups = new Set(state.shown.map((card) => state.homes.get(card)));
    for (const list of new Set(state.homes.values())) list.closest(".group").hidden = !shownGroups.has(list);
    for (const part of document.querySelectorAll(".part")) {
      part.hidden = part.id === "unreadable" ? Boolean(state.kind || text) : !part.querySelector(".group:not([hidden])");
    }
    byId("shown").textContent = state.shown.length.toLocaleString("en");
    byId("nothing").hidden = state.shown.length > 0;
    showProgress();
  }

  /** Grouped, as in the document; or all cards in one list. Each order is made once. */
  function inOrder(order) {
    if (!orders[order]) return state.cards;
    if (!state.sorted.has(order)) {
      const keyed = state.cards.map((card) => {
        const { given, bars } = recordOf(card);
        const { severity, rank, path } = card.dataset;
        return { card, severity, rank, path, label: state.data.classes[given] ?? bars[0]?.[0] ?? "" };
      });
      state.sorted.set(order, keyed.sort(orders[order]).map(({ card }) => card));
    }
    return state.sorted.get(order);
  }

  function sort() {
    const order = form().elements.sort.value;
    const flat = Boolean(orders[order]);
    // replaceChildren and not append, which takes ten times as long.
    if (flat) byId("flat").replaceChildren(...inOrder(order));
    else for (const [list, cards] of state.lists) list.replaceChildren(...cards);
    byId("flat").hidden = !flat;
    for (const part of document.querySelectorAll(".part")) part.classList.toggle("js-only", flat);
    root.classList.toggle("flat", flat);
  }

  function look() {
    const { size, bare, numbers } = form().elements;
    root.style.setProperty("--size", `${size.value}px`);
    root.classList.toggle("bare", bare.checked);
    root.classList.toggle("with-numbers", numbers.checked);
    store("look", { size: size.value, bare: bare.checked, numbers: numbers.checked });
  }

  function setUpTools() {
    if (!byId("tools")) return;
    const { size, bare, numbers } = form().elements;
    form().reset(); // browsers keep what was typed before a reload
    const kept = recall("look", {});
    size.value = kept.size ?? (innerWidth < 480 ? 160 : 220);
    bare.checked = Boolean(kept.bare);
    numbers.checked = Boolean(kept.numbers);
    form().addEventListener("input", (event) => {
      if ([size, bare, numbers].includes(event.target)) return look();
      if (event.target.name === "sort") sort();
      return filter();
    });
    form().addEventListener("submit", (event) => event.preventDefault());
    look();
  }

  function chooseKind(link) {
    const kind = link.dataset.kind;
    state.kind = state.kind === kind ? "" : kind;
    for (const one of document.querySelectorAll(".counts [data-kind]")) one.setAttribute("aria-current", one.dataset.kind === state.kind);
    filter();
    scrollTo({ top: 0 });
  }

  /* ---- The map ---- */

  function setUpMap() {
    const map = byId("map");
    if (!map) return;
    const [fullWidth, fullHeight] = map.getAttribute("viewBox").split(" ").slice(2).map(Number);
    const view = { x: 0, y: 0, scale: 1 };
    const listed = state.data.points.filter((point) => point[3] >= 0);
    let at = -1; // of the keyboard, in `listed`

    function place(event) {
      const box = map.getBoundingClientRect();
      const unit = fullWidth / view.scale / box.width;
      return [view.x + (event.clientX - box.left) * unit, view.y + (event.clientY - box.top) * unit, unit];
    }

    function zoom(by, [x, y] = [view.x + fullWidth / view.scale / 2, view.y + fullHeight / view.scale / 2]) {
      const scale = Math.min(Math.max(view.scale * by, 1), 16);
      const keep = (low, centre, length) => Math.min(Math.max(centre - (centre - low) * view.scale / scale, 0), length - length / scale);
      [view.x, view.y] = [keep(view.x, x, fullWidth), keep(view.y, y, fullHeight)];
      view.scale = scale;
      map.setAttribute("viewBox", `${view.x} ${view.y} ${fullWidth / scale} ${fullHeight / scale}`);
      byId("map-marker").setAttribute("r", 11 / scale);
      showTip();
    }

    function nearest(event) {
      const [x, y, unit] = place(event);
      const reach = (event.pointerType === "touch" ? 24 : 12) * unit;
      let best;
      let least = reach * reach;
      for (const point of state.data.points) { // the last one is drawn on top; one that can be opened comes first
        const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2 + (point[3] < 0 ? reach * reach / 4 : 0);
        if (distance <= least) [best, least] = [point, distance];
      }
      return best;
    }

    function showTip(point) {
      const tip = byId("map-tip");
      tip.hidden = !point;
      byId("map-marker").setAttribute("cx", point ? point[0] : -99);
      byId("map-marker").setAttribute("cy", point ? point[1] : -99);
      map.classList.toggle("opens", Boolean(point) && point[3] >= 0);
      if (!point) return;
      const [x, y, kind, record, label] = point;
      tip.replaceChildren(make("strong", state.data.kinds[kind]), make("span", state.data.classes[label] ?? ""));
      if (record >= 0) tip.append(pictureOf(cardOf(record)), cardOf(record).querySelector(".path").cloneNode(true));
      const scale = map.getBoundingClientRect().width / fullWidth * view.scale;
      const [left, top] = [(x - view.x) * scale, (y - view.y) * scale + map.offsetTop];
      tip.style.left = `${Math.min(Math.max(left - tip.offsetWidth / 2, 0), map.clientWidth - tip.offsetWidth)}px`;
      tip.style.top = `${top - map.offsetTop > map.clientHeight / 2 ? top - tip.offsetHeight - 16 : top + 16}px`;
    }

    map.addEventListener("pointermove", (event) => showTip(nearest(event)));
    map.addEventListener("pointerleave", () => showTip());
    map.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : 0.8, place(event));
    }, { passive: false });
    map.addEventListener("click", (event) => {
      const point = nearest(event);
      if (point && point[3] >= 0) openDetails(cardOf(point[3]));
    });
    map.addEventListener("blur", () => showTip());
    map.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (by && listed.length) {
        at = (at + by + (at < 0 && by < 0 ? 1 : 0) + listed.length) % listed.length;
        showTip(listed[at]);
      } else if (event.key === "Enter" && at >= 0) openDetails(cardOf(listed[at][3]));
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    map.tabIndex = 0;
    byId("map-colour").addEventListener("change", (event) => colourBy(event.target.value));
    actions["zoom-in"] = () => zoom(1.5);
    actions["zoom-out"] = () => zoom(1 / 1.5);
  }

  const COLOURED = 8; // classes; more colours cannot be told apart

  /** By finding, as in the document; or by the nearest class, the most frequent ones each in a colour. */
  function colourBy(what) {
    const byClass = what === "class";
    const marksByKind = byId("map").querySelectorAll(":scope > .mark");
    for (const mark of marksByKind) mark.classList.toggle("js-only", byClass);
    for (const mark of marksByKind) mark.toggleAttribute("hidden", byClass);
    const layer = byId("map-classes");
    layer.replaceChildren();
    const legend = byId("map-legend");
    legend.of ??= [...legend.children];
    legend.replaceChildren(...legend.of);
    if (!byClass) return;
    const counts = new Map();
    for (const point of state.data.points) counts.set(point[4], (counts.get(point[4]) ?? 0) + 1);
    const often = [...counts].sort((a, b) => b[1] - a[1]).slice(0, COLOURED).map(([k]) => k);
    const kinds = [[-1, "other classes"], ...often.map((k) => [k, state.data.classes[k]])];
    legend.replaceChildren(...kinds.map(([k, name], i) => {
      const points = state.data.points.filter((point) => (k < 0 ? !often.includes(point[4]) : point[4] === k));
      layer.append(drawn(points.map(([x, y]) => `M${x} ${y}h0`).join(""), i));
      const sign = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      sign.setAttribute("viewBox", "0 0 16 16");
      sign.append(drawn("M8 8h0", i));
      const line = item(sign);
      line.append(` ${name} `, make("span", points.length.toLocaleString("en"), { className: "muted" }));
      return line;
    }));
  }

  function drawn(path, i) {
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "path");
    mark.setAttribute("class", i ? "mark of-class" : "mark of-others");
    mark.setAttribute("d", path);
    mark.style.setProperty("--place", i);
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
    state.homes = new Map(state.cards.map((card) => [card, card.parentElement]));
    state.lists = new Map([...new Set(state.homes.values())].map((list) => [list, [...list.children]]));
    state.texts = new Map(state.cards.map((card) => {
      const group = card.closest(".group").querySelector("h3").textContent;
      return [card, `${card.dataset.path}\n${card.querySelector(".say").textContent}\n${group}`.toLowerCase()];
    }));
    state.byRecord = new Map(state.cards.map((card) => [Number(card.dataset.record), card]));
    const listed = new Set(state.cards.map(findingOf));
    state.decisions = new Map(recall(`decisions-${state.data.report}`, []).filter(([finding]) => listed.has(finding)));
    setUpTheme();
    setUpTools();
    setUpActions();
    setUpMap();
    for (const card of state.cards) showDecision(card);
    if (byId("tools")) filter();
    document.addEventListener("click", clicked);
    document.addEventListener("keydown", pressed);
    const dialog = byId("details");
    dialog.addEventListener("close", closed);
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
  }

  document.addEventListener("DOMContentLoaded", setUp);
})();
