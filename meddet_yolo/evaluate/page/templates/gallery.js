
// The cases: pictures with labelled and found boxes, which the slider filters.

const HIT = 1, ALARM = 0;
const KINDS = { miss: "Worst misses", alarm: "Worst false alarms", random: "Random cases" };

// Rows of data/page: truth is x1, y1, x2, y2, class and for each model the steps at which it is found; found is x1, y1,
// x2, y2, class, steps, confidence, kind. A box is there at a position of the slider if it reaches more steps.
const foundAt = (row, model, position) => row[5 + model] > position;
const shownAt = (row, position) => row[5] > position;

function tally(picture, model, position) {
  const shown = picture.found[model].filter((row) => shownAt(row, position));
  const hits = picture.truth.filter((row) => foundAt(row, model, position)).length;
  return { tp: hits, fp: shown.filter((row) => row[7] === ALARM).length, fn: picture.truth.length - hits };
}

function boxOf(parent, row, kind, title, text, size) {
  const [x1, y1, x2, y2] = row;
  const box = drawn(parent, "rect", { class: `box ${kind}`, x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
  drawn(box, "title", {}, title);
  const at = kind === "missed" ? { x: x1 - size * 0.3, "text-anchor": "end" } : { x: x2 + size * 0.3 };
  if (text) drawn(parent, "text", { class: kind, ...at, y: (y1 + y2) / 2 + size * 0.35, "font-size": size, "stroke-width": size / 5 }, text);
  return box;
}

// Draws a picture of one model; labelled boxes above found ones, so that a miss is seen under a false alarm.
function side(picture, model, position, names, written) {
  const { width, height } = picture;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", picture.name);
  if (picture.source) drawn(svg, "image", { href: picture.source, width, height, preserveAspectRatio: "none" });
  const layer = drawn(svg, "g");
  const size = Math.max(width, height) / 42;
  const redraw = (at) => {
    layer.replaceChildren();
    for (const row of picture.found[model]) {
      if (!shownAt(row, at)) continue;
      const kind = row[7] === HIT ? "hit" : row[7] === ALARM ? "alarm" : "neither";
      boxOf(layer, row, kind, `${names[row[4]]}, confidence ${fixed(row[6])}`, written && `${names[row[4]]} ${fixed(row[6], 2)}`, size);
    }
    for (const row of picture.truth) {
      const found = foundAt(row, model, at);
      const title = `${names[row[4]]}, labelled${found ? "" : ", missed"}`;
      boxOf(layer, row, found ? "truth" : "missed", title, written && !found && `${names[row[4]]} missed`, size);
    }
  };
  redraw(position);
  return { svg, redraw };
}

function gallery(data, state) {
  const host = document.getElementById("gallery");
  if (!host || !data.cases) return () => {};
  host.dataset.models = Math.min(4, data.models.length);
  const told = (t) => `TP\u00a0${t.tp} · FP\u00a0${t.fp} · FN\u00a0${t.fn}`;
  const items = data.cases.map((item) => {
    const picture = data.pictures[item.picture];
    const sides = element("span", { class: "sides" }), facts = element("span", { class: "told" });
    const card = element("button", { type: "button", class: "case", "data-kind": item.kind }, sides, element("span", { class: "name" }, picture.name), facts);
    card.addEventListener("click", () => enlarge(picture));
    return { ...item, picture, sides, facts, card, parts: null };
  });
  host.append(...items.map((item) => item.card));

  function wanted(item) {
    if (item.kind !== state.kind) return false;
    if (item.kind === "random") return true;
    if (item.model !== state.owner) return false;
    const count = tally(item.picture, item.model, state.position);
    return item.kind === "miss" ? count.fn > 0 : count.fp > 0;
  }

  function enlarge(picture) {
    const dialog = document.getElementById("large");
    const close = element("button", { type: "button" }, "Close");
    close.addEventListener("click", () => dialog.close());
    const sides = element("div", { class: "sides" });
    data.models.forEach((model, number) => {
      const shown = tally(picture, number, state.position);
      const part = element("div", { class: "side" }, element("p", {}, `${model.name}: ${told(shown)}`));
      part.append(side(picture, number, state.position, data.names, true).svg);
      sides.append(part);
    });
    dialog.replaceChildren(element("header", {}, element("b", {}, picture.name), close), sides);
    dialog.showModal();
  }

  function update() {
    let shown = 0, all = 0;
    for (const item of items) {
      const own = item.kind === state.kind && (item.model === null || item.model === state.owner);
      all += own;
      const show = own && wanted(item);
      shown += show;
      item.card.hidden = !show;
      if (!show) continue;
      if (!item.parts) {  // drawn when first seen
        item.parts = data.models.map((_, number) => side(item.picture, number, state.position, data.names, false));
        item.sides.append(...item.parts.map((part) => element("span", { class: "side" }, part.svg)));
      }
      item.parts.forEach((part) => part.redraw(state.position));
      item.facts.replaceChildren(...data.models.map((model, number) => {
        const name = data.models.length > 1 ? [element("b", {}, model.name)] : [];
        return element("span", {}, ...name, told(tally(item.picture, number, state.position)));
      }));
    }
    const what = { miss: "have a miss", alarm: "have a false alarm", random: "" }[state.kind];
    const line = state.kind === "random" ? `${all} images drawn at random.` : `${shown} of the ${all} worst images ${what} at this threshold.`;
    document.getElementById("case-count").textContent = line;
  }
  return update;
}

function boxLegend(host) {
  const kinds = { truth: "labelled and found", missed: "labelled, missed", hit: "found, right", alarm: "false alarm" };
  for (const [kind, text] of Object.entries(kinds)) {
    const item = element("span");
    const svg = drawn(item, "svg", { viewBox: "0 0 30 18" });
    drawn(svg, "rect", { class: `box ${kind}`, x: 5, y: 4, width: 20, height: 10 });
    item.append(text);
    host.append(item);
  }
}
