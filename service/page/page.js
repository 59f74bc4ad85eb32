// The whole page. It speaks to the service that served it and to nothing else, and puts what it is
// told into the document as text, never as markup.

const FRAMES = 36; // of a walk: a grid of six by six
const MARGIN = 2; // pixels between the images of a grid, as the service draws it
const SHOWN_ROWS = 10;
const SHOWN_COLUMNS = 6; // whose marginals are not folded away
const RETRY_SECONDS = 5;

const $ = (id) => document.getElementById(id);
let key = "";
let model = null;
let root = "v1"; // below which the model's endpoints are
let record = "v1/model"; // where its record is

// ---- speaking to the service -------------------------------------------------------------------

class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "the service does not answer");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: response.statusText }));
  const where = (problem.errors ?? []).map((e) => `${e.path}: ${e.message}`);
  if (response.status === 401) askForKey();
  throw new Problem(response.status, [problem.detail, ...where].join("; "));
}

const post = (path, body, signal) =>
  call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

// Runs a section's work: what it says goes into the section's status, and so does what fails. Newer
// work of the same section ends older work.
const running = new Map();
async function work(status, starting, act) {
  running.get(status)?.abort();
  const control = new AbortController();
  running.set(status, control);
  say(status, starting);
  try {
    const said = await act(control.signal);
    if (running.get(status) === control) say(status, said);
  } catch (error) {
    if (error.name === "AbortError") return;
    say(status, error.message, true);
    if (!(error instanceof Problem)) throw error;
  }
}

function say(status, text, failed = false) {
  status.textContent = text;
  status.classList.toggle("failed", failed);
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

// ---- building the document ---------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function table(caption, head, rows) {
  const line = (cells, tag) =>
    make("tr", {}, ...cells.map((cell, i) => make(i || tag === "th" ? tag : "th", scope(tag, i), cell)));
  const scope = (tag, i) => (tag === "th" ? { scope: "col" } : i ? {} : { scope: "row" });
  const body = rows.map((row) => line(row, "td"));
  // It may scroll sideways, so the keyboard must reach it.
  return make(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", {}, caption),
      make("thead", {}, line(head, "th")),
      make("tbody", {}, ...body),
    ),
  );
}

function list(entries) {
  return make(
    "dl",
    {},
    ...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, text(value))]),
  );
}

const note = (words) => make("p", { class: "note" }, words);

function text(value, missing = "none") {
  if (value === null || value === undefined) return missing;
  if (typeof value === "number") return number(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const number = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));
const bound = (value) => {
  const unit = 10 ** (Math.floor(Math.log10(value || 1)) - 3);
  return number(Math.ceil(value / unit) * unit); // up, so that it stays a bound
};
const words = (name) => name.replaceAll("_", " ");

// ---- charts: drawn anew whenever their width changes, so that their text keeps its size -----------

const drawings = new Map();
const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => redraw(target)));

function redraw(target) {
  const drawing = drawings.get(target);
  if (!drawing || !target.clientWidth || drawing.width === target.clientWidth) return;
  drawing.width = target.clientWidth;
  target.replaceChildren(drawing.draw(drawing.width));
}

function show(target, draw) {
  drawings.set(target, { draw });
  redraw(target);
  widths.observe(target);
}

function showStill(target, ...children) {
  drawings.delete(target);
  target.replaceChildren(...children);
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const room = (high - low || Math.abs(low) || 1) * 0.05;
  return [low - room, high + room];
}

function ticks([low, high], most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

const ROOM = { left: 48, right: 10, top: 8, bottom: 40 }; // pixels around a frame, for its axes

// A frame with axes: `x` and `y` turn values into places in it.
function plot(width, height, label, xs, ys, names = ["", ""], isNamed = false) {
  const left = ys ? ROOM.left : 8;
  const [right, top, bottom] = [width - ROOM.right, ROOM.top, height - (names[0] ? ROOM.bottom : 24)];
  const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0])) * (right - left);
  const y = (v) => bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (bottom - top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const v of isNamed ? [] : ticks(xs, Math.max(2, Math.floor(width / 80)))) {
    root.append(
      svg("line", { class: "tick", x1: x(v), x2: x(v), y1: top, y2: bottom }),
      svg("text", { x: x(v), y: bottom + 16, "text-anchor": "middle" }, number(v)),
    );
  }
  for (const v of ys ? ticks(ys, Math.max(2, Math.floor(height / 60))) : []) {
    root.append(
      svg("line", { class: "tick", x1: left, x2: right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, number(v)),
    );
  }
  root.append(svg("rect", { class: "frame", x: left, y: top, width: right - left, height: bottom - top }));
  if (names[0].trim()) {
    const middle = (left + right) / 2;
    root.append(svg("text", { class: "title", x: middle, y: height - 6, "text-anchor": "middle" }, names[0]));
  }
  if (names[1]) root.append(svg("text", { class: "title", x: left + 6, y: top + 16 }, names[1]));
  return { root, x, y, left, right, top, bottom };
}

function bars(chart, edges, shares) {
  for (let i = 0; i < shares.length; i++) {
    const [x, y] = [chart.x(edges[i]), chart.y(shares[i])];
    const width = Math.max(0, chart.x(edges[i + 1]) - x - 1);
    chart.root.append(svg("rect", { class: "bar", x, y, width, height: Math.max(0, chart.bottom - y) }));
  }
}

const pathOf = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;

// ---- samples that are numbers --------------------------------------------------------------------

// What draws samples of the model's kind: given the samples, and of a walk also the place on it, it
// returns what makes the picture for a width. All places of a walk share one scale.
function numbersDrawing(samples, label, place = null) {
  if (isTable()) return null;
  if (model.data.kind === "sequence") return (width) => sequences(width, samples, label, place);
  if (model.shape[0] === 1 && place === null) return (width) => valuesHistogram(width, samples, label);
  if (model.shape[0] === 2) return (width) => scatter(width, samples, label, place);
  return null;
}

const isTable = () => Boolean(model.data.table); // its samples are records, by column name
const columns = () =>
  isTable() ? model.data.table.columns.map((column) => column.name) :
  model.data.columns?.length ? model.data.columns : Array.from({ length: model.shape.at(-1) }, (_, i) => `x${i + 1}`);

function scatter(width, samples, label, place) {
  const height = Math.min(width, 420);
  let [xs, ys] = [0, 1].map((i) => extent(samples.map((s) => s[i])));
  if (!model.data.columns?.length) {
    // Points of a plane: one scale for both axes.
    const [across, up] = [width - ROOM.left - ROOM.right, height - ROOM.top - ROOM.bottom];
    const unit = Math.max((xs[1] - xs[0]) / across, (ys[1] - ys[0]) / up);
    const widen = ([a, b], length) => [(a + b - unit * length) / 2, (a + b + unit * length) / 2];
    [xs, ys] = [widen(xs, across), widen(ys, up)];
  }
  const chart = plot(width, height, label, xs, ys, columns());
  const at = (s) => [chart.x(s[0]), chart.y(s[1])];
  if (place !== null) chart.root.append(svg("path", { class: "path", d: pathOf(samples.map(at)) }));
  for (const s of samples) {
    const [cx, cy] = at(s);
    chart.root.append(svg("circle", { class: "dot", cx, cy, r: place === null && samples.length > 128 ? 2 : 3 }));
  }
  if (place !== null) {
    const [cx, cy] = at(samples[place]);
    chart.root.append(svg("circle", { class: "mark", cx, cy, r: 6 }));
  }
  return chart.root;
}

function sequences(width, samples, label, place) {
  const panels = columns().slice(0, 4);
  const box = make("div");
  panels.forEach((name, i) => {
    const ys = extent(samples.flatMap((s) => s.map((step) => step[i])));
    const last = i === panels.length - 1;
    const chart = plot(width, 150, `${label}: ${name}`, [0, model.shape[0] - 1 || 1], ys, [last ? "step" : "", name]);
    const line = (s) => pathOf(s.map((step, t) => [chart.x(t), chart.y(step[i])]));
    const shown = place === null ? samples.slice(0, 16) : samples;
    for (const s of shown) chart.root.append(svg("path", { class: "path", d: line(s) }));
    if (place !== null) chart.root.append(svg("path", { class: "mark path", d: line(samples[place]) }));
    box.append(chart.root);
  });
  if (columns().length > panels.length) box.append(note(`The first ${panels.length} of ${columns().length} features.`));
  return box;
}

function valuesHistogram(width, samples, label) {
  const values = samples.map((s) => s[0]);
  const xs = extent(values);
  const count = Math.min(40, Math.max(5, Math.round(Math.sqrt(values.length))));
  const edges = Array.from({ length: count + 1 }, (_, i) => xs[0] + ((xs[1] - xs[0]) * i) / count);
  const shares = edges.slice(1).map((edge, i) => values.filter((v) => v >= edges[i] && v < edge).length);
  const chart = plot(width, 220, label, xs, [0, Math.max(...shares) * 1.1], [columns()[0], "samples"]);
  bars(chart, edges, shares);
  return chart.root;
}

const samplesTable = (samples, label) =>
  table(
    samples.length > SHOWN_ROWS ? `${label}: the first ${SHOWN_ROWS}` : label,
    ["sample", ...columns()],
    samples.slice(0, SHOWN_ROWS).map((s, i) => [i + 1, ...valuesOf(s).map((value) => text(value, ""))]),
  );

const valuesOf = (sample) => (isTable() ? columns().map((name) => sample[name]) : sample);

// ---- conditions on a table's rows, one field or two for each column of the schema ----------------

const OF_CHOICES = ["category", "boolean"];

function prepareConditions() {
  const asked = isTable() && model.config.table?.conditions !== 0;
  $("conditions").hidden = !asked;
  $("where").replaceChildren();
  if (!asked) return;
  for (const column of model.data.table.columns) {
    if (OF_CHOICES.includes(column.kind)) $("where").append(choiceField(column));
    if (["number", "time"].includes(column.kind)) $("where").append(make("div", { class: "range" }, ...rangeFields(column)));
  }
}

function choiceField({ name, categories, others, missing }) {
  const select = make("select", { "data-column": name, "data-key": "one_of" });
  const known = [...categories, ...(others ?? [])].map((c) => [JSON.stringify([c]), c]);
  options(select, [["", "any"], ...known, ...(missing ? [["null", "no value"]] : [])]);
  return make("label", {}, `${name} `, select);
}

function rangeFields({ name, kind, low, high, missing }) {
  const type = kind === "number" ? "number" : "text";
  const ends = [["at_least", "from", low], ["at_most", "to", high]].map(([key, word, end]) => {
    const about = kind === "number" ? number(end) : "2024-05-31";
    const input = make("input", { type, placeholder: about, "data-column": name, "data-key": key });
    if (type === "number") input.step = "any";
    return make("label", {}, `${name} ${word} `, input);
  });
  if (!missing) return ends;
  const select = make("select", { "data-column": name, "data-key": "missing" });
  options(select, [["", "any"], ["false", "a value"], ["true", "no value"]]);
  return [...ends, make("label", {}, `${name} has `, select)];
}

function conditions() {
  const where = {};
  for (const field of $("where").querySelectorAll("[data-column]")) {
    const { column, key } = field.dataset;
    if (field.value === "") continue;
    if (key === "one_of") where[column] = JSON.parse(field.value);
    else if (key === "missing") where[column] = { ...where[column], missing: field.value === "true" };
    else where[column] = { ...where[column], [key]: field.type === "number" ? Number(field.value) : field.value };
  }
  return where;
}

// ---- generate ------------------------------------------------------------------------------------

const isImage = () => model.data.kind === "image";
const isConditional = () => model.config.conditional;

function generateBody() {
  const body = { count: Number($("count").value), seed: Number($("seed").value) };
  if (isConditional() && $("class").value) body.class = $("class").value;
  const where = conditions();
  if (Object.keys(where).length) body.where = where;
  return body;
}

async function generate(signal) {
  const body = generateBody();
  const format = isImage() ? "png" : "json";
  const shown = `${body.count} ${body.count === 1 ? "sample" : "samples"} of seed ${body.seed}`;
  const label = body.class === undefined ? shown : `${shown}, class ${body.class}`;
  showCurl({ ...body, format: isTable() ? "csv" : format });
  const response = await post(`${root}/samples`, { ...body, format }, signal);
  if (isImage()) {
    const picture = await picturesOf(response);
    picture.alt = `Grid of ${label}`;
    showStill($("samples"), picture);
  } else {
    const { samples } = await response.json();
    const draw = numbersDrawing(samples, label);
    if (draw) show($("samples"), draw);
    else showStill($("samples"), samplesTable(samples, label));
  }
  return `${label}, made by ${response.headers.get("X-Model-Version")}`;
}

async function picturesOf(response) {
  const image = new Image();
  image.src = URL.createObjectURL(await response.blob());
  await image.decode();
  URL.revokeObjectURL(image.src);
  return image;
}

function showCurl(body) {
  const authorization = key ? " -H 'Authorization: Bearer KEY'" : "";
  const data = JSON.stringify(body).replaceAll("'", "'\\''");
  $("curl").textContent =
    `curl --fail ${new URL(`${root}/samples`, document.baseURI)}${authorization} \\\n` +
    `    -H 'Content-Type: application/json' \\\n    -d '${data}' -o samples.${body.format}`;
}

// ---- walk ------------------------------------------------------------------------------------------

let walkTo = null; // shows the frame of a place

async function walk(signal) {
  const [from, to] = [Number($("from").value), Number($("to").value)];
  const body = { count: FRAMES, seed: from, interpolation: { to } };
  if (isConditional()) body.class = $("walk-class").value;
  const response = await post(`${root}/samples`, { ...body, format: isImage() ? "png" : "json" }, signal);
  const label = `On the way from seed ${from} to seed ${to}`;
  walkTo = isImage() ? framesOf(await picturesOf(response), label) : numberFrames((await response.json()).samples, label);
  $("place").disabled = false;
  moveTo();
  return `From seed ${from} to seed ${to} in ${FRAMES} steps; move the slider`;
}

// Cuts the frames out of the grid that the service draws.
function framesOf(sheet, label) {
  const columns = Math.ceil(Math.sqrt(FRAMES));
  const width = (sheet.width - MARGIN) / columns - MARGIN;
  const height = (sheet.height - MARGIN) / Math.ceil(FRAMES / columns) - MARGIN;
  const canvas = make("canvas", { width, height, role: "img", "aria-label": label });
  const pen = canvas.getContext("2d");
  showStill($("walk"), canvas);
  return (place) => {
    const left = MARGIN + (place % columns) * (width + MARGIN);
    const top = MARGIN + Math.floor(place / columns) * (height + MARGIN);
    pen.clearRect(0, 0, width, height);
    pen.drawImage(sheet, left, top, width, height, 0, 0, width, height);
  };
}

function numberFrames(samples, label) {
  return (place) => {
    const draw = numbersDrawing(samples, label, place);
    if (draw) show($("walk"), draw);
    else showStill($("walk"), list(columns().map((name, i) => [name, valuesOf(samples[place])[i]])));
  };
}

function moveTo() {
  const place = Number($("place").value);
  const share = Math.round((100 * place) / (FRAMES - 1));
  $("place").setAttribute("aria-valuetext", `${share}% of the way from seed ${$("from").value} to seed ${$("to").value}`);
  walkTo?.(place);
}

// ---- score -----------------------------------------------------------------------------------------

// Shares of the real scores between evenly spaced edges, from their percentiles 0 to 100.
function realShares(edges) {
  const quantiles = model.score_percentiles;
  const below = (v) => {
    const i = quantiles.findLastIndex((q) => q <= v);
    if (i < 0) return 0;
    if (i === quantiles.length - 1) return 1;
    return (i + (v - quantiles[i]) / (quantiles[i + 1] - quantiles[i])) / (quantiles.length - 1);
  };
  return edges.slice(1).map((edge, i) => below(edge) - below(edges[i]));
}

function scoresHistogram(width, scores) {
  const quantiles = model.score_percentiles;
  const [low, high] = [quantiles[0], quantiles.at(-1)];
  const room = high - low || 1;
  // A score far away would press the histogram flat: it is drawn at the edge, with an arrow.
  const held = (s) => Math.min(Math.max(s, low - room), high + room);
  const xs = extent([low, high, ...scores.map(held)]);
  const count = Math.round(((xs[1] - xs[0]) / room) * 24);
  const edges = Array.from({ length: count + 1 }, (_, i) => xs[0] + ((xs[1] - xs[0]) * i) / count);
  const shares = realShares(edges).map((share) => 100 * share);
  const label =
    `Histogram of the scores of real held-out items, from ${number(low)} to ${number(high)}, ` +
    `median ${number(quantiles[50])}` + (scores.length ? `; marked: ${scores.map(number).join(", ")}` : "");
  const ys = [0, Math.max(...shares) * 1.35];
  const chart = plot(width, 240, label, xs, ys, ["score", "% of real items"]);
  bars(chart, edges, shares);
  let taken = -Infinity;
  const ordered = scores.map((score, i) => [score, i + 1]).sort((a, b) => a[0] - b[0]);
  for (const [score, name] of ordered) {
    const x = chart.x(held(score));
    const look = scores.length > SHOWN_ROWS ? "mark faint" : "mark";
    chart.root.append(svg("line", { class: look, x1: x, x2: x, y1: chart.top + 38, y2: chart.bottom }));
    if (x - taken < 22) continue; // its label would lie on the last one; the list has it too
    taken = x;
    const arrow = score < held(score) ? "← " : score > held(score) ? "→ " : "";
    chart.root.append(svg("text", { class: "label", x, y: chart.top + 34, "text-anchor": "middle" }, arrow + name));
  }
  return chart.root;
}

function showScores(answer, pictures, names) {
  const real = model.score_percentiles;
  show($("histogram"), (width) => scoresHistogram(width, answer.scores));
  const rows = answer.scores.slice(0, SHOWN_ROWS).map((score, i) => {
    const row = make("span");
    if (pictures[i]) row.append(pictures[i]);
    row.append(
      make("span", {}, names[i] ?? ""),
      make("strong", {}, number(score)),
      make("span", {}, `percentile ${Math.round(answer.percentiles[i])} of real items`),
    );
    if (answer.out_of_range[i]) {
      row.append(make("span", { class: "flag" }, `${score < real[0] ? "lower" : "higher"} than all of them`));
    }
    return make("li", {}, row);
  });
  $("scored").replaceChildren(...rows);
  const count = answer.scores.length;
  if (count === 1) return `Score ${number(answer.scores[0])}, percentile ${Math.round(answer.percentiles[0])} of real items`;
  return `${count} items scored${count > SHOWN_ROWS ? `; the first ${SHOWN_ROWS} are listed` : ""}`;
}

async function scoreFiles(files, signal) {
  const form = new FormData();
  for (const file of files) {
    form.append("files", file);
    if (isConditional()) form.append("classes", $("files-class").value);
  }
  // Whatever is dropped is brought to the model's size, as training does.
  if (isImage()) form.append("resize", "true");
  const response = await call(`${root}/scores`, { method: "POST", body: form, signal });
  const answer = await response.json();
  if (answer.scores.length !== files.length) return showScores(answer, [], []);
  const pictures = files.map((file) => {
    if (!isImage() || !file.type.startsWith("image/")) return null;
    const image = make("img", { alt: "", src: URL.createObjectURL(file) });
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    return image;
  });
  return showScores(answer, pictures, files.map((file) => file.name));
}

async function scoreRow(signal) {
  const values = $("row").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  const size = model.shape.reduce((a, b) => a * b, 1);
  if (values.length !== size || !values.every(Number.isFinite)) {
    throw new Problem(422, `${size} numbers are needed, and nothing else`);
  }
  const width = model.shape.at(-1);
  const steps = Array.from({ length: size / width }, (_, i) => values.slice(i * width, (i + 1) * width));
  const item = model.data.kind === "sequence" ? steps : values;
  return scoreItems([item], $("row-class").value, signal);
}

async function scoreShown(signal) {
  const body = generateBody();
  if (isConditional() && body.class === undefined) {
    throw new Problem(422, "choose a class above: this critic scores an item together with its class");
  }
  const { samples } = await (await post(`${root}/samples`, { ...body, format: "json" }, signal)).json();
  return scoreItems(samples, body.class, signal);
}

async function scoreItems(samples, label, signal) {
  const body = isTable() ? { rows: samples } : { samples };
  if (isConditional()) body.classes = samples.map(() => label);
  return showScores(await (await post(`${root}/scores`, body, signal)).json(), [], []);
}

// ---- what is known of the model ----------------------------------------------------------------

function showConstraint() {
  const { kind, hyperparameters, guarantee } = model.constraint;
  const box = $("constraint");
  box.replaceChildren(
    make("p", {}, make("strong", {}, words(kind)), ". ", guarantee),
    list(Object.entries(hyperparameters).map(([name, value]) => [words(name), value])),
  );
  if (model.privacy) {
    const { epsilon, delta, public: declared } = model.privacy;
    box.append(
      make("h3", {}, "Differential privacy"),
      list([
        ["epsilon, of one training row", bound(epsilon)],
        ["delta", delta],
        ["declared public", declared.join(", ") || "nothing"],
      ]),
    );
  }
  const { certified, reason, sampled, gradient_norm: norms } = model.lipschitz;
  box.append(make("h3", {}, "Lipschitz constant of the critic"));
  if (sampled === null) box.append(note("Not measured in this run."));
  else {
    const above = certified === null ? `no certified bound: ${reason}` : `${bound(certified)} (certified)`;
    box.append(list([["at least", `${number(sampled)} (found by ascent)`], ["at most", above]]));
  }
  box.append(make("h3", {}, "Gradient norm of the critic"));
  if (!Object.keys(norms).length) {
    box.append(note("Not measured in this run."));
    return;
  }
  const names = { real: "real items", between: "between them", fake: "generated" };
  const places = Object.keys(names).filter((place) => norms[place]);
  const figure = make("div", { class: "chart" });
  const levels = Object.keys(norms[places[0]].quantiles);
  const cells = (place) => [norms[place].mean, ...Object.values(norms[place].quantiles), norms[place].max];
  box.append(
    figure,
    table(
      "Score units per unit of the critic’s input",
      ["place", "mean", ...levels.map((level) => `${Number(level) * 100}%`), "max"],
      places.map((place) => [names[place], ...cells(place).map(number)]),
    ),
  );
  show(figure, (width) => normsChart(width, norms, places, names));
}

function normsChart(width, norms, places, names) {
  const most = Math.max(1, ...places.map((place) => norms[place].quantiles["0.95"]));
  const height = 44 * places.length + 48;
  const label = `Gradient norms: ${places.map((p) => `${names[p]}, median ${number(norms[p].quantiles["0.5"])}`).join("; ")}`;
  const chart = plot(width, height, label, [0, most * 1.1], null, ["gradient norm: 5 to 95%, middle half, median; dashed: 1"]);
  chart.root.append(
    svg("line", { class: "one", x1: chart.x(1), x2: chart.x(1), y1: chart.top, y2: chart.bottom }),
  );
  places.forEach((place, i) => {
    const q = norms[place].quantiles;
    const y = chart.top + 44 * i + 30;
    const x = (level) => chart.x(q[level]);
    chart.root.append(
      svg("text", { class: "title", x: chart.left + 6, y: y - 13 }, names[place]),
      svg("line", { class: "span", x1: x("0.05"), x2: x("0.95"), y1: y, y2: y }),
      svg("rect", { class: "bar", x: x("0.25"), y: y - 6, width: Math.max(1, x("0.75") - x("0.25")), height: 12 }),
      svg("line", { class: "middle", x1: x("0.5"), x2: x("0.5"), y1: y - 8, y2: y + 8 }),
    );
  });
  return chart.root;
}

function showQuality() {
  const { figures, extractor } = model.results;
  const rows = Object.entries(figures).map(([name, f]) => [
    make("span", {}, words(name), make("small", {}, `${f.better} is better`)),
    number(f.value),
    `${number(f.interval[0])} to ${number(f.interval[1])}`,
    f.floor === null ? "none" : number(f.floor),
    f.n,
  ]);
  const over = extractor ? `over the features of ${extractor.name}` : "over the items as they are";
  $("quality").replaceChildren(
    rows.length
      ? table(
          `On held-out data, ${over}; “real” is what training items get in the generator’s place`,
          ["figure", "value", "95% interval", "real", "n"],
          rows,
        )
      : note("Not judged."),
    make("h3", {}, "Samples as they were judged"),
  );
  const box = make("div", { class: "picture" });
  $("quality").append(box);
  call(`${record}/samples.png`)
    .then(picturesOf)
    .then((picture) => {
      picture.alt = "Samples of this version, drawn when it was trained";
      box.replaceChildren(picture);
    })
    .catch((error) => box.replaceChildren(note(error.message)));
}

// ---- a table's columns: generated rows beside held-out ones, the least alike first ---------------

const BAR = 15; // pixels of each bar of a category
const LEGEND_BELOW = " "; // in place of a name below the axis: only its room is kept
const percent = (share) => `${number(Math.round(1000 * share) / 10)}%`;

function showMarginals() {
  const box = $("marginals");
  const found = model.marginals ?? []; // versions of before have none
  $("marginals-part").hidden = !found.length;
  box.replaceChildren(...found.slice(0, SHOWN_COLUMNS).map(marginalFigure));
  if (found.length <= SHOWN_COLUMNS) return;
  const rest = found.slice(SHOWN_COLUMNS);
  box.append(
    make("details", {}, make("summary", {}, `${rest.length} columns that are more alike`), ...rest.map(marginalFigure)),
  );
}

function marginalFigure(marginal) {
  const { name, kind, score, names, real, generated, real_missing, generated_missing } = marginal;
  const chart = make("div", { class: "chart" });
  const draw = kind === "category" ? namedBars : binnedBars;
  const rows = names.map((label, i) => [label, percent(real[i]), percent(generated[i])]);
  if (real_missing || generated_missing) rows.push(["no value", percent(real_missing), percent(generated_missing)]);
  const figure = make(
    "figure",
    { class: "marginal" },
    make("figcaption", {}, make("strong", {}, name), ` likeness ${score.toFixed(2)}` + missingText(marginal)),
    chart,
    make("details", {}, make("summary", {}, "In numbers"), table(name, ["", "real", "generated"], rows)),
  );
  show(chart, (width) => draw(width, marginal, marginalLabel(marginal)));
  return figure;
}

const missingText = ({ real_missing, generated_missing }) =>
  real_missing || generated_missing
    ? `; without a value: ${percent(real_missing)} of real rows, ${percent(generated_missing)} of generated ones`
    : "";

// What the picture shows, in words: its likeness, and the bars that differ most.
function marginalLabel({ name, score, names, real, generated }) {
  const order = names.map((_, i) => i).sort((a, b) => Math.abs(real[b] - generated[b]) - Math.abs(real[a] - generated[a]));
  const worst = order.slice(0, 3).map((i) => `${names[i]}: real ${percent(real[i])}, generated ${percent(generated[i])}`);
  return `${name}: shares of real and of generated rows, likeness ${score.toFixed(2)}; most different are ${worst.join("; ")}`;
}

// A line for each category: a bar of real rows above one of generated rows.
function namedBars(width, { names, real, generated }, label) {
  const left = Math.min(160, width * 0.35);
  const height = names.length * (2 * BAR + 10) + 28;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const most = Math.max(...real, ...generated) || 1;
  const x = (share) => left + (share / most) * (width - left - 52);
  const letters = Math.floor(left / 8);
  names.forEach((name, i) => {
    const top = i * (2 * BAR + 10) + 4;
    const short = name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
    root.append(svg("text", { class: "title", x: left - 6, y: top + BAR + 4, "text-anchor": "end" }, short));
    [[real, "bar"], [generated, "made"]].forEach(([shares, look], side) => {
      const y = top + side * BAR;
      root.append(
        svg("rect", { class: look, x: left, y, width: x(shares[i]) - left, height: BAR - 1 }),
        svg("text", { x: x(shares[i]) + 4, y: y + BAR - 3 }, percent(shares[i])),
      );
    });
  });
  root.append(...legend(left, height - 8));
  return root;
}

// Filled bars of real rows, under the outline of generated ones.
function binnedBars(width, { names, edges, real, generated }, label) {
  const ends = edges.length ? edges : [...names.keys(), names.length];
  const ys = [0, 100 * Math.max(...real, ...generated) * 1.15 || 1];
  const chart = plot(width, 260, label, [ends[0], ends.at(-1)], ys, [LEGEND_BELOW, "% of values"], !edges.length);
  bars(chart, ends, real.map((share) => 100 * share));
  const points = generated.flatMap((share, i) => [[ends[i], share], [ends[i + 1], share]]);
  const outline = points.map(([v, share]) => [chart.x(v), chart.y(100 * share)]);
  chart.root.append(svg("path", { class: "outline", d: pathOf(outline) }));
  if (!edges.length) {
    const room = Math.max(...names.map((name) => name.length)) * 7 + 14;
    const each = Math.ceil((room * names.length) / (chart.right - chart.left));
    for (let i = 0; i < names.length; i += each) {
      const x = (chart.x(i) + chart.x(i + 1)) / 2;
      chart.root.append(svg("text", { x, y: chart.bottom + 16, "text-anchor": "middle" }, names[i]));
    }
  }
  chart.root.append(...legend(chart.left, 254));
  return chart.root;
}

const legend = (x, y) => [
  svg("rect", { class: "bar", x, y: y - 9, width: 14, height: 9 }),
  svg("text", { x: x + 19, y }, "real, held out"),
  svg("rect", { class: "made", x: x + 116, y: y - 9, width: 14, height: 9 }),
  svg("text", { x: x + 135, y }, "generated"),
];

// Those that are present come first, with what to do; the others are told in one line each.
function showFindings() {
  const present = model.findings.filter((finding) => finding.present);
  const others = model.findings.filter((finding) => !finding.present);
  const said = ({ value, threshold, evidence }) => `${evidence} (${number(value)}; threshold ${number(threshold)})`;
  const items = present.map((finding) =>
    make(
      "li",
      { class: finding.severity },
      make("strong", {}, words(finding.name)),
      ` (${finding.severity}): ${said(finding)}`,
      make("p", { class: "note" }, finding.remedy),
    ),
  );
  const box = $("findings");
  box.replaceChildren();
  if (!model.findings.length) box.append(note("None are recorded for this version."));
  else if (!present.length) box.append(note("Nothing that was looked for is present."));
  else box.append(make("ul", { class: "findings" }, ...items));
  if (others.length) {
    box.append(
      make(
        "details",
        {},
        make("summary", {}, `${others.length} looked for and not present`),
        list(others.map((finding) => [words(finding.name), said(finding)])),
      ),
    );
  }
}

function showRecord() {
  const { data, engine, provenance } = model;
  const entries = [
    ["version", model.version],
    ["data", data.name],
    ["licence", data.licence ?? "unknown"],
    ["one item", isTable() ? shapeText() : `${data.kind}, ${shapeText()}`],
    ["items", `${data.training_count} to train on, ${data.heldout_count} held out`],
  ];
  if (data.classes.length) entries.push(["classes", data.classes.join(", ")]);
  if (data.columns.length) entries.push(["columns", data.columns.join(", ")]);
  entries.push(["created", model.created], ["engine", Object.entries(engine).map((e) => e.join(": ")).join(", ")]);
  entries.push(["data SHA-256", data.sha256], ["artifact digest", model.digest]);
  $("record").replaceChildren(
    list(entries),
    make(
      "details",
      {},
      make("summary", {}, "Provenance"),
      list(Object.entries(provenance).map(([name, value]) => [words(name), value])),
    ),
  );
}

function shapeText() {
  const shape = model.shape;
  if (isTable()) return `a row of ${columns().length} columns`;
  if (!isImage()) return shape.join(" × ");
  return `${shape[2]} × ${shape[1]}, ${shape[0] === 1 ? "grey" : `${shape[0]} channels`}`;
}

// ---- the start ---------------------------------------------------------------------------------

function options(select, entries) {
  const chosen = select.value;
  select.replaceChildren(...entries.map(([value, name]) => make("option", { value }, name)));
  if (entries.some(([value]) => value === chosen)) select.value = chosen;
}

function prepare() {
  document.title = `${model.config.name}: wgan-foundry`;
  $("title").textContent = model.config.name;
  $("subtitle").textContent = `${model.version}, trained on ${model.data.name} under ${words(model.constraint.kind)}`;
  const classes = model.data.classes.map((name) => [name, name]);
  for (const label of document.querySelectorAll(".by-class")) label.hidden = !isConditional();
  options($("class"), [["", "any"], ...classes]);
  for (const id of ["walk-class", "files-class", "row-class"]) options($(id), classes);
  const counts = isImage() ? [1, 16, 64] : [1, 16, 64, 512];
  options($("count"), counts.map((count) => [count, count]));
  $("count").value = isImage() ? 64 : 512;
  const size = model.shape.reduce((a, b) => a * b, 1);
  $("row-form").hidden = isImage() || isTable() || size > 64;
  prepareConditions();
  $("row-label").textContent = `${size} numbers${size === 1 ? "" : ": " + columns().join(", ")}`;
  if (!isImage()) {
    const kinds = isTable() ? ".csv, .parquet or .arrow files of rows" : ".npy or .npz files of items";
    $("drop").querySelector("span").textContent = `Drop ${kinds} here, or choose them`;
    $("files").accept = isTable() ? ".csv,.parquet,.arrow,.feather" : ".npy,.npz";
  }
  $("content").hidden = false;
  show($("histogram"), (width) => scoresHistogram(width, []));
  showConstraint();
  showQuality();
  showMarginals();
  showFindings();
  showRecord();
}

// Of several models, the one that the page's own address names, or else the first.
function chooseModel(names) {
  const chosen = new URLSearchParams(location.search).get("model") ?? names[0];
  root = record = `v1/models/${encodeURIComponent(chosen)}`;
  $("record-link").href = record;
  const here = (name) => (name === chosen ? { "aria-current": "page" } : {});
  const address = (name) => `?${new URLSearchParams({ model: name })}`;
  $("models").replaceChildren(...names.map((name) => make("a", { href: address(name), ...here(name) }, name)));
  $("models").hidden = false;
}

async function load() {
  try {
    const { names } = await (await call("v1/models")).json();
    if (names.length > 1) chooseModel(names);
    model = await (await call(record)).json();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    const again = [0, 429, 503].includes(error.status);
    $("notice").textContent = again ? `${error.message}; trying again every ${RETRY_SECONDS} seconds` : error.message;
    $("notice").hidden = false;
    if (again) setTimeout(load, RETRY_SECONDS * 1000);
    return;
  }
  $("notice").hidden = true;
  $("key-form").hidden = true;
  prepare();
  startGenerating();
  startWalking();
}

function onSubmit(form, act) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

const startGenerating = () => work($("generate-status"), "Generating…", generate);
const startWalking = () => work($("walk-status"), "Generating…", walk);
const startScoring = (act) => work($("score-status"), "Scoring…", act);
const startScoringFiles = (files) => files.length && startScoring((signal) => scoreFiles([...files], signal));

onSubmit($("key-form"), () => {
  key = $("key").value;
  load();
});
onSubmit($("generate-form"), startGenerating);
$("another").addEventListener("click", () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  startGenerating();
});
onSubmit($("walk-form"), startWalking);
$("place").addEventListener("input", moveTo);
onSubmit($("row-form"), () => startScoring(scoreRow));
$("score-shown").addEventListener("click", () => startScoring(scoreShown));
$("files").addEventListener("change", () => startScoringFiles($("files").files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") startScoringFiles(event.dataTransfer.files);
  });
}
load();
