
// The page: one state, of which the slider, the chips and the plots are views.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { position: data.models[0].at, group: 0, kind: "miss", owner: 0 };
const RATES = [0.125, 0.25, 0.5, 1, 2, 4, 8];
const $ = (id) => document.getElementById(id);
const several = data.models.length > 1;

// Numbers of one model and class at the slider; all come from counts that were made beforehand.
function numbers(model, group = state.group, position = state.position) {
  const { boxes, tp, fp } = model.counts[group];
  const hits = tp[position], alarms = fp[position];
  return {
    tp: hits, fp: alarms, fn: boxes - hits,
    sensitivity: share(hits, boxes), precision: share(hits, hits + alarms),
    F1: boxes ? share(2 * hits, hits + alarms + boxes) : null, fp_per_image: share(alarms, data.images),
  };
}

const suffix = () => (state.group ? `/${data.names[state.group - 1]}` : "");

// Plots -------------------------------------------------------------------------------------------------------------

const charts = {};

// The part of a FROC curve between the ends of its axis.
function within(points, low = 0.0625, high = 16) {
  const before = points.filter(([x]) => x <= low).pop(), inside = points.filter(([x]) => x > low && x <= high);
  const last = inside.length ? inside[inside.length - 1] : before;
  return [...(before ? [[low, before[1]]] : []), ...inside, ...(last && points[points.length - 1][0] > high ? [[high, last[1]]] : [])];
}

function drawCurves() {
  const froc = plot($("froc"), { label: "FROC curve", x: "false alarms per image", y: "sensitivity", xTicks: [0.0625, ...RATES, 16], logarithmic: true });
  const pr = plot($("pr"), { label: "Precision over recall", x: "recall (sensitivity)", y: "precision" });
  data.models.forEach((model, number) => {
    const { tp, fp } = model.curves[state.group], { boxes } = model.counts[state.group];
    const own = { "data-colour": number % 4 };
    if (!boxes || !tp.length) return;
    const bounds = RATES.map((r) => [r, model.scores[`sensitivity@${r}fp${suffix()}`]]).filter(([, s]) => s && s[1] !== null);
    if (bounds.length > 1) {
      const upper = bounds.map(([r, s]) => [froc.X(r), froc.Y(s[2])]), lower = bounds.map(([r, s]) => [froc.X(r), froc.Y(s[1])]);
      drawn(drawn(froc.svg, "g", own), "path", { class: "band", d: path([...upper, ...lower.reverse()]) + "Z" });
    }
    drawn(drawn(froc.svg, "g", own), "path", { class: "curve", d: path(within(tp.map((n, i) => [fp[i] / data.images, n / boxes])).map(([x, y]) => [froc.X(x), froc.Y(y)])) });
    const steps = tp.map((n, i) => [n, fp[i]]).filter(([n, f]) => n + f > 0);
    drawn(drawn(pr.svg, "g", own), "path", { class: "curve", d: path(steps.map(([n, f]) => [pr.X(n / boxes), pr.Y(n / (n + f))])) });
  });
  charts.froc = { ...froc, place: (n) => [froc.X(n.fp_per_image), froc.Y(n.sensitivity || 0)] };
  charts.pr = { ...pr, place: (n) => [pr.X(n.sensitivity || 0), pr.Y(n.precision === null ? 1 : n.precision)] };
  for (const chart of [charts.froc, charts.pr]) {
    chart.points = data.models.map((_, number) => drawn(drawn(chart.svg, "g", { "data-colour": number % 4 }), "circle", { class: "point", r: 6.5 }));
    onPlotClick(chart, () => data.models.flatMap((model) => data.thresholds.map((_, i) => chart.place(numbers(model, state.group, i)))), (i) => move(i % data.thresholds.length));
  }
}

function drawReliability() {
  if (!data.models.some((model) => model.reliability)) return $("reliability-figure").remove();
  const chart = plot($("reliability"), { label: "Reliability diagram", x: "confidence", y: "precision" });
  drawn(chart.svg, "line", { class: "ideal", x1: chart.X(0), y1: chart.Y(0), x2: chart.X(1), y2: chart.Y(1) });
  const bins = [];
  data.models.forEach((model, number) => {
    const table = model.reliability && model.reliability[state.group];
    if (!table) return;
    const group = drawn(chart.svg, "g", { "data-colour": number % 4 });
    const most = Math.max(1, ...table.boxes);
    const known = table.boxes.map((boxes, i) => ({ boxes, i })).filter(({ boxes }) => boxes);
    drawn(group, "path", { class: "curve", "stroke-opacity": 0.35, d: path(known.map(({ i }) => [chart.X(table.confidence[i]), chart.Y(table.precision[i])])) });
    for (const { boxes, i } of known) {
      const dot = drawn(group, "circle", { class: "bin", cx: chart.X(table.confidence[i]), cy: chart.Y(table.precision[i]), r: 2.5 + 5.5 * Math.sqrt(boxes / most) });
      drawn(dot, "title", {}, `${model.name}: ${boxes} boxes of confidence ${fixed(table.confidence[i], 2)}, precision ${fixed(table.precision[i], 2)}`);
      bins.push({ dot, end: table.edges[i + 1] });
    }
  });
  charts.reliability = { ...chart, bins, rule: drawn(chart.svg, "line", { class: "rule", y1: chart.top, y2: chart.bottom }) };
}

function drawNoise() {
  data.noise.forEach((one, i) => {
    const strengths = one.lines[0].map(([sigma]) => sigma);
    if (strengths.length < 2) strengths.unshift(0);
    const chart = plot($(`noise-${i}`), { label: `Accuracy under ${one.kind} noise`, x: one.unit, y: "mAP50-95", xTicks: strengths, written: String });
    one.lines.forEach((line, number) => {
      const group = drawn(chart.svg, "g", { "data-colour": number % 4 });
      const places = line.map(([x, y]) => [chart.X(x), chart.Y(y)]);
      drawn(group, "path", { class: "curve", d: path(places) });
      places.forEach(([cx, cy], j) => {
        const dot = drawn(group, "circle", { class: "bin", cx, cy, r: 4 });
        drawn(dot, "title", {}, `${data.models[number].name}: ${fixed(line[j][1])} at ${line[j][0]}`);
      });
    });
  });
}

function updateCharts() {
  for (const chart of [charts.froc, charts.pr]) {
    data.models.forEach((model, number) => {
      const at = numbers(model), [x, y] = chart.place(at), point = chart.points[number];
      point.setAttribute("cx", x.toFixed(1));
      point.setAttribute("cy", y.toFixed(1));
      point.setAttribute("data-fp-per-image", at.fp_per_image);
      point.setAttribute("data-sensitivity", at.sensitivity);
    });
  }
  const { reliability } = charts, threshold = data.thresholds[state.position];
  if (!reliability) return;
  reliability.rule.setAttribute("x1", reliability.X(threshold));
  reliability.rule.setAttribute("x2", reliability.X(threshold));
  for (const { dot, end } of reliability.bins) dot.classList.toggle("off", end <= threshold);
}

// Tables and rows ---------------------------------------------------------------------------------------------------

const COLUMNS = { tp: "Found (TP)", fp: "False alarms (FP)", fn: "Missed (FN)", sensitivity: "Sensitivity", precision: "Precision", F1: "F1", fp_per_image: "FP per image" };

function modelName(model, number) {
  return element("span", { "data-colour": number % 4 }, element("span", { class: "dot" }), model.name);
}

function updateCounts() {
  const head = element("tr", {}, element("th", { scope: "col" }, "Model"), ...Object.values(COLUMNS).map((name) => element("th", { scope: "col" }, name)));
  const rows = data.models.map((model, number) => {
    const at = numbers(model);
    const cells = Object.keys(COLUMNS).map((key) => {
      const text = Number.isInteger(at[key]) && ["tp", "fp", "fn"].includes(key) ? String(at[key]) : fixed(at[key]);
      return element("td", { "data-count": `${number}.${key}` }, text);
    });
    return element("tr", {}, element("th", { scope: "row" }, modelName(model, number)), ...cells);
  });
  $("counts").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  $("brief").replaceChildren(...data.models.map((model, number) => {
    const at = numbers(model);
    return element("span", {}, modelName(model, number), ": ", element("b", {}, `TP\u00a0${at.tp} · FP\u00a0${at.fp} · FN\u00a0${at.fn}`), ` ·\u00a0${fixed(at.fp_per_image, 2)}\u00a0FP/image`);
  }));
}

function bar(label, title, value, colour, second) {
  const fill = element("i", { class: second ? "fill second" : "fill" });
  fill.style.width = `${100 * (value || 0)}%`;
  const name = element("span", { class: "label" }, element("span", { class: "dot" }), label);
  return element("div", { class: "row", "data-colour": colour, title }, name, element("div", { class: "track" }, fill), element("span", { class: "value" }, fixed(value)));
}

function updateClasses() {
  $("class-live").replaceChildren(...data.names.map((name, i) => element("div", { class: "block" },
    element("div", { class: "about" }, element("b", {}, name), element("small", {}, `${data.models[0].counts[i + 1].boxes} boxes`)),
    ...data.models.flatMap((model, number) => {
      const at = numbers(model, i + 1);
      return ["sensitivity", "precision"].map((key, second) => bar(key, `${model.name}: ${key}`, at[key], number % 4, second));
    }),
  )), ...(several ? [element("div", { class: "legend" }, ...data.models.map(modelName))] : []));
}

function forest(host, groups, key) {
  const most = scaleOf(groups.flatMap((group) => group.scores.map((s) => s[key(group)])));
  host.replaceChildren(...groups.map((group) => element("div", { class: "block" },
    ...(group.heading ? [element("div", { class: "group" }, group.heading)] : []),
    element("div", { class: "about" }, element("b", {}, group.label), element("small", {}, group.about || "")),
    ...group.scores.map((scores, number) => intervalRow(data.models[number].name, scores[key(group)], number % 4, most)),
  )));
}

function chooser(select, keys, change) {
  select.replaceChildren(...keys.map((key) => element("option", { value: key }, key)));
  select.addEventListener("change", change);
  change();
}

function drawForests() {
  const scores = data.models.map((model) => model.scores);
  const perClass = Object.keys(scores[0]).filter((key) => key.endsWith(`/${data.names[0]}`)).map((key) => key.slice(0, -data.names[0].length - 1));
  const classes = data.names.map((name) => ({ label: name, scores }));
  if (perClass.length) chooser($("class-score"), perClass, () => forest($("class-forest"), classes, (g) => `${$("class-score").value}/${g.label}`));
  else $("class-forest").parentElement.remove();
  if (data.subgroups.length) {
    const keys = data.headline.filter((key) => data.subgroups.some((g) => g.scores.some((s) => s[key] && s[key][0] !== null)));
    const groups = data.subgroups.map((g, i) => ({ ...g, label: g.value, heading: i && data.subgroups[i - 1].column === g.column ? "" : g.column }));
    chooser($("subgroup-score"), keys, () => forest($("subgroup-forest"), groups, () => $("subgroup-score").value));
  }
  if (data.sizes) forest($("size-forest"), data.sizes.map((size) => ({ ...size, scores })), (g) => g.key);
  else $("sizes-section").remove();
  const errors = Object.keys(scores[0]).filter((key) => key.startsWith("errors/"));
  if (errors.length) forest($("error-forest"), errors.map((key) => ({ label: key.slice(7), scores, key })), (g) => g.key);
  else $("errors-section").remove();
}

// Choices -----------------------------------------------------------------------------------------------------------

function chips(host, labels, chosen, choose) {
  if (!host) return;
  const buttons = labels.map((label, i) => {
    const button = element("button", { type: "button", "aria-pressed": i === chosen }, label);
    button.addEventListener("click", () => {
      buttons.forEach((other, j) => other.setAttribute("aria-pressed", i === j));
      choose(i);
    });
    return button;
  });
  host.replaceChildren(...buttons);
}

const updateGallery = gallery(data, state);

function update() {
  const text = fixed(data.thresholds[state.position]);
  $("threshold").value = state.position;
  $("threshold").setAttribute("aria-valuetext", text);
  $("threshold-value").textContent = text;
  updateCounts();
  updateCharts();
  updateClasses();
  updateGallery();
}

function move(position) {
  state.position = position;
  update();
}

function drawAll() {
  drawCurves();
  drawReliability();
  drawNoise();
  updateCharts();
}

function theme() {
  const root = document.documentElement, buttons = [...document.querySelectorAll("[data-theme-choice]")];
  const set = (choice) => {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    buttons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.themeChoice === choice));
  };
  buttons.forEach((button) => button.addEventListener("click", () => set(button.dataset.themeChoice)));
}

$("threshold").max = data.thresholds.length - 1;
$("threshold").addEventListener("input", (event) => move(Number(event.target.value)));
data.models.forEach((model) => {
  const button = element("button", { type: "button" }, several ? `${model.name} ${fixed(data.thresholds[model.at])}` : "as judged");
  button.addEventListener("click", () => move(model.at));
  $("jump").append(button);
});
chips($("groups"), ["all classes", ...data.names], 0, (i) => { state.group = i; drawAll(); update(); });
chips($("kinds"), Object.values(KINDS), 0, (i) => { state.kind = Object.keys(KINDS)[i]; updateGallery(); });
if (several) chips($("owners"), data.models.map((model) => model.name), 0, (i) => { state.owner = i; updateGallery(); });
$("legend").append(...data.models.map(modelName));
if ($("box-legend")) boxLegend($("box-legend"));
theme();
drawForests();
drawAll();
update();

let width = $("froc").clientWidth;
new ResizeObserver(() => {
  if ($("froc").clientWidth === width) return;
  width = $("froc").clientWidth;
  drawAll();
}).observe($("froc"));
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
