
"use strict";
// Drawing: elements, axes and rows with intervals. Text from data is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(parent, tag, attributes = {}, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// As Python writes it: a tie goes to the even digit, where toFixed rounds up.
function fixed(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  const [whole, rest] = Math.abs(value).toFixed(60).split(".");
  const tie = /^50*$/.test(rest.slice(digits)) && Number((whole + rest.slice(0, digits)).slice(-1)) % 2 === 0;
  if (!tie) return value.toFixed(digits);
  return (value < 0 ? "-" : "") + whole + (digits ? "." + rest.slice(0, digits) : "");
}

const share = (part, whole) => (whole ? part / whole : null);

// A plot with x and y from 0 to 1 unless told otherwise; returns where to draw, and the two scales.
function plot(host, { label, x, y, xTicks, logarithmic, written = (v) => v.toFixed(1) }) {
  const width = Math.max(240, host.clientWidth), height = Math.round(Math.min(width * 0.82, 340));
  const left = 38, right = 10, top = 24, bottom = 38;
  host.replaceChildren();
  const svg = drawn(host, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  const ticks = xTicks || [0, 0.2, 0.4, 0.6, 0.8, 1];
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const part = logarithmic
    ? (v) => Math.log(Math.min(high, Math.max(low, v)) / low) / Math.log(high / low)
    : (v) => (v - low) / (high - low);
  const X = (v) => left + part(v) * (width - left - right);
  const Y = (v) => height - bottom - v * (height - top - bottom);
  for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    drawn(svg, "line", { class: "grid", x1: left, x2: width - right, y1: Y(v), y2: Y(v) });
    drawn(svg, "text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, v.toFixed(1));
  }
  for (const v of ticks) {
    drawn(svg, "line", { class: "grid", x1: X(v), x2: X(v), y1: top, y2: height - bottom });
    const shown = logarithmic ? (v < 1 ? `1/${Math.round(1 / v)}` : `${v}`) : written(v);
    drawn(svg, "text", { x: X(v), y: height - bottom + 15, "text-anchor": "middle" }, shown);
  }
  drawn(svg, "line", { class: "axis", x1: left, x2: width - right, y1: Y(0), y2: Y(0) });
  drawn(svg, "text", { class: "title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x);
  drawn(svg, "text", { class: "title", x: left - 30, y: 11 }, y);
  return { svg, X, Y, left, right: width - right, top, bottom: height - bottom };
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

// Calls back with the nearest of some places when a plot is clicked.
function onPlotClick(chart, places, choose) {
  chart.svg.addEventListener("click", (event) => {
    const box = chart.svg.getBoundingClientRect(), scale = chart.svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = 0, least = Infinity;
    places().forEach(([px, py], i) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    choose(best);
  });
}

// A row with a dot and its interval; `score` is [value, low, high, text].
function intervalRow(label, score, colour, most) {
  const track = element("div", { class: "track" });
  const known = score && score[0] !== null;
  const at = (v) => `${(100 * Math.min(1, Math.max(0, v / most))).toFixed(2)}%`;
  if (known && score[1] !== null && score[2] !== null) {
    const range = element("i", { class: "range" });
    range.style.left = at(score[1]);
    range.style.right = `calc(100% - ${at(score[2])})`;
    track.append(range);
  }
  if (known) {
    const middle = element("i", { class: "middle" });
    middle.style.left = at(score[0]);
    track.append(middle);
  }
  const row = element("div", { class: "row", "data-colour": colour, title: score ? `${label}: ${score[3]}` : label });
  row.append(element("span", { class: "label" }, label), track, element("span", { class: "value" }, known ? fixed(score[0]) : "–"));
  return row;
}

// The end of the scale of some scores: 1 for shares, else the greatest bound.
function scaleOf(scores) {
  const ends = scores.filter((s) => s && s[0] !== null).map((s) => (s[2] === null ? s[0] : s[2]));
  const most = Math.max(0, ...ends);
  return most <= 1 ? 1 : most * 1.05;
}
