// The picture of the progress: a bar for each task, in four parts.

import { word } from "./words.js";

const PARTS = ["stripped", "settled", "second", "open"];
const NAMES = { stripped: "stripped", settled: "settled", second: "waiting", open: "open" };
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, ROW] = [240, 14, 40];

export function percent(share) {
  return `${Math.round(share * 100)} %`;
}

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function total(counts) {
  return PARTS.reduce((sum, part) => sum + counts[part], 0);
}

function bar(svg, name, counts, top) {
  const all = total(counts);
  svg.append(shape("text", { x: 0, y: top + 12 }, name.length > 22 ? `${name.slice(0, 21)}…` : name));
  const rate = shape("text", { x: WIDTH, y: top + 12, "text-anchor": "end" }, percent(counts.stripped / all));
  svg.append(rate);
  let left = 0;
  for (const part of PARTS) {
    const width = (counts[part] / all) * WIDTH;
    if (width > 0) {
      svg.append(shape("rect", { x: left, y: top + 18, width, height: HEIGHT, class: part }));
    }
    left += width;
  }
}

// Draws the picture and its legend.
export function draw(picture, legend, tasks) {
  const names = Object.keys(tasks).filter((name) => total(tasks[name]) > 0);
  const sum = Object.fromEntries(
    PARTS.map((part) => [part, names.reduce((count, name) => count + tasks[name][part], 0)]),
  );
  picture.replaceChildren();
  legend.replaceChildren();
  if (!total(sum)) {
    picture.textContent = word("no_texts");
    return;
  }
  const share = document.createElement("p");
  const figure = document.createElement("strong");
  figure.textContent = percent(sum.stripped / total(sum));
  share.append(figure, ` ${word("rate")}`);
  const rows = names.length > 1 ? [[word("all"), sum], ...names.map((name) => [name, tasks[name]])] : [[names[0], sum]];
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${rows.length * ROW}`, role: "img" });
  const told = rows.map(
    ([name, counts]) => `${name}: ${PARTS.map((part) => `${counts[part]} ${word(NAMES[part])}`).join(", ")}`,
  );
  svg.setAttribute("aria-label", told.join("; "));
  rows.forEach(([name, counts], index) => bar(svg, name, counts, index * ROW));
  picture.append(share, svg);
  for (const part of PARTS) {
    const item = document.createElement("li");
    const swatch = shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
    swatch.append(shape("rect", { width: 10, height: 10, class: part }));
    item.append(swatch, ` ${sum[part]} ${word(NAMES[part])}`);
    legend.append(item);
  }
}
