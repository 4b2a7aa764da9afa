"use strict";
// Charts (by Observable Plot, from the data in #data), the table, the slider, downloads. Without it the text and the
// table still read; figures are then in the folder figures/ beside the page.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SYMBOLS = { o: "circle", s: "square", "^": "triangle", D: "diamond", X: "times", P: "plus", v: "wye", _: "asterisk" };
const colour = (role) => `var(--${role})`;
const format = (value) => (value === null || value === undefined ? "–" : String(+value.toPrecision(4)).replace("-", "−"));
const shorten = (name, limit) => (name.length <= limit ? name : "…" + name.slice(1 - limit));

function describe(chart, marks, index) {
  const place = marks.of ? DATA.names[marks.of[index]] : "";
  const interval = marks.low && marks.kind === "dot" ? ` [${format(marks.low[index])}, ${format(marks.high[index])}]` : "";
  const height = marks.kind === "bar" ? marks.high[index] - marks.low[index] : marks.y[index];
  const ticks = chart.x_ticks || [];
  const x = place && ticks.length ? "" : `; ${chart.x_label} ${format(marks.x[index])}`;
  return `${place ? place + ": " : ""}${marks.label ? marks.label + ", " : ""}${chart.y_label} ${format(height)}${interval}${x}`;
}

function marksOf(chart) {
  const found = [];
  const bars = chart.marks.filter((one) => one.kind === "bar" && one.x.length > 1);
  const gaps = bars.flatMap((one) => one.x.slice(1).map((x, i) => x - one.x[i])).filter((gap) => gap > 0);
  const half = 0.38 * Math.min(1, ...gaps);
  for (const one of chart.marks) {
    const ink = colour(one.role);
    const [x, y] = [one.x || [], one.y || []];
    const drawn = y.map((_, i) => i).filter((i) => y[i] !== null && (one.kind === "level" || x[i] !== null));
    const label = (i) => describe(chart, one, i);
    const href = one.of ? (i) => `#row${one.of[i]}` : undefined;
    if (one.kind === "level") found.push(Plot.ruleY([y[0]], { stroke: ink, strokeDasharray: one.label ? null : "2 3" }));
    else if (one.kind === "line") {
      const width = one.bold ? 2.6 : one.of ? 0.8 : 1.5;
      found.push(Plot.line(drawn, { x: (i) => x[i], y: (i) => y[i], stroke: ink, strokeWidth: width,
        strokeOpacity: one.of ? 0.5 : 1, strokeDasharray: one.dashed ? "5 4" : null, clip: true }));
    } else if (one.kind === "band") {
      found.push(Plot.areaY(x.map((_, i) => i), { x: (i) => x[i], y1: (i) => one.low[i], y2: (i) => one.high[i], fill: ink, clip: true }));
    } else if (one.kind === "bar") {
      found.push(Plot.rect(drawn, { x1: (i) => x[i] - half, x2: (i) => x[i] + half, y1: (i) => one.low[i],
        y2: (i) => one.high[i], fill: ink, stroke: "var(--paper)", ariaLabel: label, href }));
    } else {
      if (one.low) found.push(Plot.ruleX(drawn.filter((i) => one.low[i] !== null && one.high[i] !== null), { x: (i) => x[i],
        y1: (i) => one.low[i], y2: (i) => one.high[i], stroke: ink, strokeWidth: 1.3 }));
      found.push(Plot.dot(drawn, { x: (i) => x[i], y: (i) => y[i], r: chart.marks.length > 9 ? 3 : 4.2,
        symbol: SYMBOLS[one.marker || "o"], fill: one.hollow ? "var(--paper)" : ink, stroke: ink, strokeWidth: 1.3,
        ariaLabel: label, href }));
    }
  }
  return found;
}

function axis(chart, name, size) {
  const ticks = name === "x" ? chart.x_ticks || [] : [];
  const options = { label: null, type: chart[`${name}_log`] ? "log" : "linear", grid: true, ticks: Math.max(3, Math.floor(size / (name === "x" ? 75 : 50))) };
  if (options.type === "log") { options.base = 10; options.tickFormat = (v) => (v >= 1e-3 && v < 1e4 ? `${+v.toPrecision(3)}` : v.toExponential(0)); }
  if (chart[`${name}_range`]) options.domain = chart[`${name}_range`]; else options.nice = options.type === "linear";
  if (ticks.length) {
    const names = new Map(ticks.map(([place, text]) => [place, shorten(text, 24)]));
    Object.assign(options, { ticks: ticks.map(([place]) => place), tickFormat: (place) => names.get(place), grid: false });
    const longest = Math.max(...[...names.values()].map((text) => text.length));
    if (longest * 7 * ticks.length > size) options.tickRotate = -90;
  }
  return options;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function legend(charts) {
  const entries = new Map();
  for (const one of charts.flatMap((chart) => chart.marks || [])) if (one.label) entries.set(one.label, one);
  const list = element("ul", { class: "legend" });
  for (const [label, one] of entries) {
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    swatch.setAttribute("viewBox", "-8 -8 16 16");
    swatch.setAttribute("aria-hidden", "true");
    const ink = colour(one.role);
    const shapes = {
      o: "<circle r='5'/>", s: "<rect x='-4.5' y='-4.5' width='9' height='9'/>", "^": "<path d='M-6 5L0 -6L6 5Z'/>",
      D: "<path d='M0 -7L5 0L0 7L-5 0Z'/>", X: "<path d='M-5 -5L5 5M-5 5L5 -5'/>", P: "<path d='M-6 0H6M0 -6V6'/>",
      v: "<path d='M-5 -4L0 0L5 -4M0 0V6'/>", _: "<path d='M-6 0H6M-3 -5L3 5M-3 5L3 -5'/>",
    };
    const dash = one.dashed ? " stroke-dasharray='4 3'" : "";
    const shape = one.kind === "dot" ? shapes[one.marker || "o"] : one.kind === "line" || one.kind === "level"
      ? `<path d='M-8 0H8'${dash}/>` : "<rect x='-6' y='-6' width='12' height='12'/>";
    swatch.innerHTML = `<g fill='${one.hollow ? "var(--paper)" : ink}' stroke='${ink}' stroke-width='2'>${shape}</g>`;
    list.append(element("li", {}, swatch, label));
  }
  return entries.size > 0 ? list : "";
}

function drawChart(chart, width) {
  const box = element("div", { class: "plot" });
  if (chart.title) box.append(element("h4", {}, chart.title));
  if (chart.empty) { box.append(element("p", { class: "note" }, chart.empty)); return box; }
  const names = (chart.x_ticks || []).map(([, text]) => text.length);
  const left = 52;
  const x = axis(chart, "x", width - left);
  const foot = x.tickRotate ? 12 + 7 * Math.min(24, Math.max(...names)) : 26;
  const height = Math.round(Math.min(330, Math.max(200, width * 0.62)));
  const options = { x, y: axis(chart, "y", height - 30), width, height: height + foot - 26, marginLeft: left, marginBottom: foot,
    marginTop: 10, marginRight: 14, style: { background: "transparent", color: "var(--ink)", fontSize: "12px", fontFamily: "inherit" },
    ariaLabel: chart.title || chart.y_label, marks: marksOf(chart) };
  let svg;
  try { svg = Plot.plot(options); } catch (error) {
    box.append(element("p", { class: "note" }, `This figure cannot be drawn: ${error.message}`));
    return box;
  }
  makeReachable(svg, chart);
  box.append(element("div", { class: "axis" }, `↑ ${chart.y_label}`), svg);
  if (chart.x_label) box.append(element("div", { class: "axis right" }, `${chart.x_label} →`));
  if (chart.remark) box.append(element("p", { class: "sub" }, chart.remark.replace("\n", "; ")));
  return box;
}

// One stop of the Tab key per chart; the arrow keys move between its points, Enter follows a point to its row.
function makeReachable(svg, chart) {
  svg.setAttribute("role", "group");
  for (const group of svg.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");
  for (const group of svg.querySelectorAll("g[aria-description]")) group.removeAttribute("aria-description");
  for (const link of svg.querySelectorAll("a")) {
    const inner = link.querySelector("[aria-label]");
    if (!inner) continue;
    link.setAttribute("aria-label", inner.getAttribute("aria-label"));
    inner.removeAttribute("aria-label");
  }
  const points = [...svg.querySelectorAll("[aria-label]")];
  points.forEach((point, index) => {
    point.setAttribute("tabindex", index ? "-1" : "0");
    point.classList.add("point");
    if (point.tagName !== "a") point.setAttribute("role", "img");
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const here = points.indexOf(document.activeElement);
    if (!step || here < 0) return;
    event.preventDefault();
    const next = points[(here + step + points.length) % points.length];
    points[here].setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
}

const tip = element("div", { id: "tip", role: "status" });
tip.hidden = true;
document.body.append(tip);
function point(event) {
  const found = event.target.closest ? event.target.closest(".point") : null;
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.getAttribute("aria-label") + (found.tagName === "a" ? " (Enter or click: its row)" : "");
  const box = found.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(8, Math.min(box.left + 12, room - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.top > 70 ? box.top - tip.offsetHeight - 8 : box.bottom + 8}px`;
}
for (const type of ["pointerover", "pointerdown", "focusin"]) document.addEventListener(type, point);
document.addEventListener("focusout", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

function chartsFor(host) {
  if (host.dataset.figure) return DATA.figures[host.dataset.figure];
  if (host.dataset.track) return [DATA.tracks[host.dataset.track].charts[+host.dataset.moment || 0]];
  const all = DATA.layers[host.dataset.layer] || [];
  return host.dataset.part === "further" ? all.slice(2) : all.slice(0, 2);
}
function render(host) {
  const width = host.clientWidth;
  if (!width) return;
  host.dataset.width = width;
  const charts = chartsFor(host);
  const abreast = Math.min(charts.length, Math.max(1, Math.floor(width / 260)));
  const each = Math.floor((width - 16 * (abreast - 1)) / abreast);
  host.style.gridTemplateColumns = `repeat(${Math.max(1, abreast)}, minmax(0, 1fr))`;
  host.replaceChildren(legend(charts), ...charts.map((chart) => drawChart(chart, each)));
}
const hosts = [...document.querySelectorAll(".chart")];
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.width) render(entry.target);
}, { rootMargin: "600px" });
hosts.forEach((host) => near.observe(host));
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => details.querySelectorAll(".chart").forEach(render));
}
let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => hosts.filter((h) => h.dataset.width && +h.dataset.width !== h.clientWidth).forEach(render), 150);
});
addEventListener("beforeprint", () => hosts.filter((host) => !host.dataset.width).forEach(render));

// The table: sort by a heading, filter by words.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => (row.cells[index] ? row.cells[index].dataset.v : undefined);
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const [gone, lost] = [x, y].map((v) => v === undefined || v === "" || v === "nan");
        if (gone || lost) return gone - lost;
        const text = (v) => !v.endsWith("inf") && Number.isNaN(Number(v));
        const number = (v) => Number(v.replace("inf", "Infinity"));
        const order = text(x) || text(y) ? x.localeCompare(y) : number(x) - number(y);
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}
const filter = document.getElementById("filter");
if (filter) {
  const doubted = document.getElementById("doubted");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    const keep = (item) => words.every((word) => item.dataset.text.includes(word)) && (!doubted.checked || item.dataset.doubt === "1");
    for (const item of document.querySelectorAll("[data-text]")) {
      item.hidden = !keep(item);
      if (!item.hidden && item.tagName === "TR") shown += 1;
    }
    document.getElementById("found").textContent = `${shown} of ${document.querySelectorAll("tr[data-text]").length} layers`;
  };
  filter.addEventListener("input", apply);
  doubted.addEventListener("change", apply);
}

for (const slider of document.querySelectorAll("input[type=range][data-track]")) {
  const host = document.querySelector(`.chart[data-track="${slider.dataset.track}"]`);
  const said = document.getElementById(`moment${slider.dataset.track}`);
  slider.addEventListener("input", () => {
    host.dataset.moment = slider.value;
    said.textContent = DATA.tracks[slider.dataset.track].moments[slider.value];
    render(host);
  });
}

// Downloads.
function download(name, text, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function standalone(host) {
  if (!host.dataset.width) render(host);
  const style = getComputedStyle(document.documentElement);
  const outer = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  let across = 0, high = 0;
  for (const svg of host.querySelectorAll(".plot > svg")) {
    const copy = svg.cloneNode(true);
    copy.setAttribute("x", across);
    across += +svg.getAttribute("width");
    high = Math.max(high, +svg.getAttribute("height"));
    outer.append(copy);
  }
  for (const [key, value] of Object.entries({ width: across, height: high, viewBox: `0 0 ${across} ${high}`, "font-family": "sans-serif" })) outer.setAttribute(key, value);
  return new XMLSerializer().serializeToString(outer).replace(/var\(--(\w+)\)/g, (_, role) => style.getPropertyValue(`--${role}`).trim());
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-save]");
  if (!button) return;
  if (button.dataset.save === "csv") download("landscape.csv", DATA.csv, "text/csv");
  else download(`${button.dataset.save}.svg`, standalone(document.getElementById(button.dataset.of)), "image/svg+xml");
});
