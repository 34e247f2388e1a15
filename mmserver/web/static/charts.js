"use strict";
// Draws each long chart again on a canvas, from its own table: to be read off by pointing and zoomed by dragging. The SVG
// that is there without a script is hidden meanwhile, and is what prints.

const SHAPES = { control: [6, 4], "control middle": [2, 3], "treatment middle": [2, 3], total: [1, 3] };
const HEIGHT = 260;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colourOf(kind) {
  if (kind.startsWith("control")) return colour("--ic-up");
  if (kind.startsWith("treatment")) return colour("--ic-down");
  return kind === "goal" ? colour("--good") : kind === "limit" ? colour("--bad") : kind === "effect" ? colour("--accent") : colour("--ink-soft");
}

function readTable(table) {
  const heads = [...table.querySelectorAll("thead th[data-series]")];
  const rows = [...table.tBodies[0].rows];
  const times = rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000);
  const columns = heads.map((_, place) => rows.map((row) => {
    const text = row.cells[place + 1].title;
    return text === "" ? null : Number(text);
  }));
  return { heads: heads.map((head) => ({ name: head.textContent, kind: head.dataset.series })), data: [times, ...columns] };
}

function seriesOf(head, unit) {
  const [role, ...rest] = head.kind.split(" ");
  const kind = rest.join(" ");
  const value = (_, number) => (number === null || number === undefined ? "–" : `${number.toPrecision(4)} ${unit}`);
  if (role !== "line") return { label: head.name, stroke: "transparent", width: 0, points: { show: false }, value };
  return { label: head.name, stroke: colourOf(kind), width: kind.endsWith("middle") ? 1 : 2, dash: SHAPES[kind], points: { show: false }, value };
}

function bandsOf(heads) {
  const bands = [];
  heads.forEach((head, place) => {
    if (!head.kind.startsWith("upper ")) return;
    bands.push({ series: [place + 1, place], fill: `${colourOf(head.kind.slice(6))}33` });
  });
  return bands;
}

function drawOver(plot, levels, early, looks) {
  const { ctx, bbox } = plot;
  const ratio = window.devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const { kind, value } of levels) {
    const y = plot.valToPos(value, "y", true);
    ctx.strokeStyle = colourOf(kind);
    ctx.setLineDash(kind === "zero" ? [] : [8 * ratio, 3 * ratio]);
    ctx.lineWidth = ratio;
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
  }
  ctx.setLineDash([]);
  if (looks) {
    ctx.strokeStyle = colour("--ink-soft");
    ctx.beginPath();
    for (const time of plot.data[0]) {
      const x = plot.valToPos(time, "x", true);
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x, bbox.top + bbox.height - 5 * ratio);
    }
    ctx.stroke();
  }
  if (early > 0) {
    const times = plot.data[0];
    const until = early < times.length ? (times[early - 1] + times[early]) / 2 : times[times.length - 1];
    ctx.fillStyle = `${colour("--surface")}b8`;
    ctx.fillRect(bbox.left, bbox.top, plot.valToPos(until, "x", true) - bbox.left, bbox.height);
  }
  ctx.restore();
}

function rangeOf(data, heads, levels, early) {
  const known = levels.map((level) => level.value);
  heads.forEach((head, place) => {
    if (!head.kind.startsWith("line ")) return;
    const values = data[place + 1];
    const counted = values.slice(early < values.length ? early : 0);
    known.push(...counted.filter((value) => value !== null));
  });
  heads.forEach((head, place) => {
    if (!head.kind.startsWith("lower ")) return;
    const lower = data[place + 1];
    const upper = data[place + 2];
    const widths = lower.map((value, at) => (value === null ? null : upper[at] - value));
    const last = widths.filter((width) => width !== null).pop();
    widths.forEach((width, at) => {
      if (width !== null && width <= 3 * last) known.push(lower[at], upper[at]);
    });
  });
  const low = Math.min(...known);
  const high = Math.max(...known);
  const margin = 0.05 * (high - low || Math.abs(high) || 1);
  return [low === 0 ? 0 : low - margin, high + margin];
}

function timeTexts(_, times, __, ___, step) {
  return times.map((time) => {
    const text = new Date(time * 1000).toISOString();
    return step < 86400 ? (text.slice(11, 16) === "00:00" ? text.slice(5, 10) : text.slice(11, 16)) : text.slice(5, 10);
  });
}

function plotted(figure) {
  const { heads, data } = readTable(figure.querySelector("table"));
  const unit = figure.dataset.plot;
  const early = Number(figure.dataset.early);
  const levels = [{ kind: "zero", value: 0 }];
  for (const item of figure.querySelectorAll("[data-level]")) {
    levels.push({ kind: item.dataset.level, value: Number(item.dataset.value) });
  }
  const looks = figure.querySelector("path.looks") !== null;
  const range = rangeOf(data, heads, levels, early);
  const place = document.createElement("div");
  place.className = "canvas";
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", figure.querySelector("desc").textContent);
  figure.querySelector("figcaption").after(place);
  figure.classList.add("plotted");
  const axis = { stroke: colour("--ink-soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const options = {
    width: place.clientWidth,
    height: HEIGHT,
    tzDate: (time) => uPlot.tzDate(new Date(time * 1000), "UTC"),
    scales: { y: { range: () => range } },
    axes: [{ ...axis, values: timeTexts }, { ...axis, size: 60 }],
    series: [{ label: "UTC", value: (_, time) => (time === null || time === undefined ? "–" : new Date(time * 1000).toISOString().slice(0, 16).replace("T", " ")) },
      ...heads.map((head) => seriesOf(head, unit))],
    bands: bandsOf(heads),
    hooks: { draw: [(plot) => drawOver(plot, levels, early, looks)] },
  };
  const plot = new uPlot(options, data, place);
  const watcher = new ResizeObserver(() => {
    if (place.clientWidth > 0 && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
  });
  watcher.observe(place);
  return () => {
    watcher.disconnect();
    plot.destroy();
    place.remove();
  };
}

function plotAll() {
  const removes = [...document.querySelectorAll("figure[data-plot]")].map(plotted);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    removes.forEach((remove) => remove());
    plotAll();
  }, { once: true });
}

plotAll();
