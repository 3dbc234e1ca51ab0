// Draws the list, a latent, and the SAE's card from the files in data/.
// Text from models and data sets only ever becomes text nodes.
"use strict";

const ROWS = 100; // of the list, drawn at a time
const state = { index: null, order: [], shown: ROWS, at: 0, query: "",
  sort: "peak", chunks: new Map(), waiting: new Map() };

// Data files call these; a page opened from a disk may not fetch them.
const dashboard = {
  index(found) {
    state.index = found;
    state.place = new Map(found.latents.map((latent, i) => [latent.index, i]));
    start();
  },
  chunk(number, latents) {
    state.chunks.set(number, latents);
    for (const go of state.waiting.get(number) || []) go(latents);
    state.waiting.delete(number);
  },
};

const main = document.getElementById("main");
const tip = document.getElementById("tip");

// make("td", {class: "number"}, "text", child, ...)
function make(name, attributes, ...children) {
  const node = ["svg", "rect", "path", "text"].includes(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(typeof child === "object" ? child : String(child));
  }
  return node;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 1e-4) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

function percent(fraction) {
  return number(fraction * 100, 2) + " %";
}

function measured(value) {
  if (!value || value.mean === null || value.mean === undefined) return "–";
  const error = value.stderr ? " ± " + number(value.stderr, 2) : "";
  return number(value.mean, 4) + error;
}

// A space that a reader can see, where a token stands alone.
function visible(piece) {
  return piece.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +| +$/g,
    (run) => "␣".repeat(run.length));
}

function inText(piece) {
  return piece.replace(/\n/g, "↵\u200b").replace(/\t/g, "⇥");
}

function chip(piece, title) {
  return make("span", { class: "chip", ...(title ? { title } : {}) },
    visible(piece));
}

// ---- the list -------------------------------------------------------------

const SORTS = {
  peak: ["clearest words", (a, b) => b.focus - a.focus],
  index: ["number", (a, b) => a.index - b.index],
  often: ["most frequent", (a, b) => b.frequency - a.frequency],
  rare: ["least frequent", (a, b) => a.frequency - b.frequency],
  max: ["largest activation", (a, b) => b.max - a.max],
  score: ["best explained",
    (a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity)],
};

function words(latent) {
  return [latent.index, latent.explanation || "", ...latent.top_tokens,
    ...latent.promotes].join("\n").toLowerCase();
}

function choose() {
  const query = state.query.trim().toLowerCase();
  const exact = /^#?\d+$/.test(query) ? Number(query.replace("#", "")) : null;
  const found = state.index.latents.filter((latent) => {
    if (!query) return true;
    if (exact !== null && latent.index === exact) return true;
    latent.words = latent.words || words(latent);
    return query.split(/\s+/).every((word) => latent.words.includes(word));
  });
  const by = SORTS[state.sort][1];
  found.sort((a, b) => by(a, b) || a.index - b.index);
  if (exact !== null) {
    found.sort((a, b) => (b.index === exact) - (a.index === exact));
  }
  state.order = found.map((latent) => latent.index);
  state.shown = ROWS;
  state.at = Math.min(state.at, Math.max(found.length - 1, 0));
}

function drawList() {
  document.title = state.index.sae.name + ": latents";
  const search = make("input", { type: "search", id: "search",
    placeholder: "a word, an explanation, or a number",
    "aria-label": "search latents", value: state.query,
    oninput: (event) => {
      state.query = event.target.value;
      state.at = 0;
      choose();
      drawRows();
    } });
  const sort = make("select", { id: "sort", "aria-label": "sort",
    onchange: (event) => {
      state.sort = event.target.value;
      state.at = 0;
      choose();
      drawRows();
    } });
  for (const [key, [label]] of Object.entries(SORTS)) {
    if (key === "score" && !state.index.explained) continue;
    sort.append(make("option", { value: key,
      ...(key === state.sort ? { selected: "" } : {}) }, label));
  }
  main.replaceChildren(
    make("div", { class: "tools" }, search,
      make("label", null, "sort by ", sort),
      make("span", { class: "muted small", id: "count" })),
    make("table", { class: "list" },
      make("thead", null, make("tr", null,
        make("th", { class: "number" }, "latent"),
        make("th", { title: "share of tokens on which it fires" }, "fires on"),
        make("th", { class: "number", title: "largest activation" }, "max"),
        make("th", null, "strongest on"),
        make("th", null, "makes likelier"),
        state.index.explained ? make("th", null, "explanation") : null)),
      make("tbody", { id: "rows" })),
    make("p", { class: "more" }, make("button", { id: "more", type: "button",
      onclick: () => { state.shown += ROWS; drawRows(); } }, "more")));
  choose();
  drawRows();
}

function drawRows() {
  const body = document.getElementById("rows");
  if (!body) return;
  const total = state.index.latents.length;
  document.getElementById("count").textContent =
    state.order.length === total
      ? total.toLocaleString("en") + " latents"
      : state.order.length.toLocaleString("en") + " of " +
        total.toLocaleString("en");
  const rows = state.order.slice(0, state.shown).map((index, i) => {
    const latent = state.index.latents[state.place.get(index)];
    const width = latent.frequency
      ? Math.max(2, 12 * (5 + Math.log10(latent.frequency)))
      : 0;
    return make("tr", { class: i === state.at ? "on" : "",
      onclick: () => { state.at = i; location.hash = "#" + index; } },
      make("td", { class: "number" },
        make("a", { href: "#" + index }, index)),
      make("td", null,
        make("span", { class: "bar", style: `width:${width}px` }),
        percent(latent.frequency)),
      make("td", { class: "number" }, number(latent.max)),
      make("td", null, latent.top_tokens.map((piece) => chip(piece))),
      make("td", null, latent.promotes.map((piece) => chip(piece))),
      state.index.explained
        ? make("td", null, latent.explanation,
          latent.score === null || latent.score === undefined ? null
            : make("span", { class: "muted small" },
              " (" + number(latent.score, 2) + ")"))
        : null);
  });
  if (!rows.length) {
    rows.push(make("tr", null, make("td", { colspan: "6", class: "muted" },
      "No latent has “" + state.query + "”. Search looks at the words a " +
      "latent is strongest on, those it makes likelier, its explanation " +
      "and its number.")));
  }
  body.replaceChildren(...rows);
  document.getElementById("more").hidden =
    state.shown >= state.order.length;
}

function move(step) {
  const rows = document.querySelectorAll("#rows tr");
  if (!rows.length) return;
  rows[state.at]?.classList.remove("on");
  state.at = Math.max(0, Math.min(state.at + step, state.order.length - 1));
  if (state.at >= state.shown) { state.shown += ROWS; drawRows(); }
  const row = document.querySelectorAll("#rows tr")[state.at];
  row.classList.add("on");
  row.scrollIntoView({ block: "nearest" });
}

// ---- a latent -------------------------------------------------------------

function load(index) {
  const place = state.place.get(index);
  const chunk = Math.floor(place / state.index.per_chunk);
  const within = place % state.index.per_chunk;
  const has = state.chunks.get(chunk);
  if (has) return Promise.resolve(has[within]);
  return new Promise((resolve, reject) => {
    const waiting = state.waiting.get(chunk);
    const go = (latents) => resolve(latents[within]);
    if (waiting) { waiting.push(go); return; }
    state.waiting.set(chunk, [go]);
    const name = "data/" + String(chunk).padStart(5, "0") + ".js";
    document.body.append(make("script", { src: name,
      onerror: () => {
        state.waiting.delete(chunk);
        reject(new Error(name + " could not be read: copy the whole folder, " +
          "data included"));
      } }));
  });
}

async function drawLatent(index) {
  if (!state.place.has(index)) {
    main.replaceChildren(make("p", { class: "warn" },
      "Latent " + index + " is not among the " +
      state.index.latents.length.toLocaleString("en") +
      " that these pages show."), make("p", null,
      make("a", { href: "#" }, "To the list")));
    return;
  }
  document.title = "Latent " + index + ", " + state.index.sae.name;
  let latent;
  try {
    latent = await load(index);
  } catch (error) {
    main.replaceChildren(make("p", { class: "warn" }, error.message));
    return;
  }
  if (location.hash !== "#" + index) return; // the reader went on
  const brief = state.index.latents[state.place.get(index)];
  const where = state.order.indexOf(index);
  const step = (by, sign) => {
    const other = state.order[where + by];
    return where < 0 || other === undefined ? null
      : make("a", { href: "#" + other }, sign);
  };
  const viewer = state.index.viewer
    ? make("a", { href: state.index.viewer.replace("{}", index),
      rel: "noopener noreferrer" }, "in the public viewer") : null;
  const error = latent.frequency_stderr
    ? " ± " + number(latent.frequency_stderr * 100, 1) : "";
  const side = make("div", null,
    make("h3", null, "Activations when it fires"), histogram(latent),
    pieces("Strongest on, mean activation", latent.top_tokens),
    pieces("Makes likelier", latent.top_logits),
    pieces("Makes less likely", latent.bottom_logits),
    nearest("Nearest by decoder direction", latent.by_direction, "cosine"),
    nearest("Fires together with", latent.by_firing, "Jaccard index"));
  const texts = make("div", null,
    make("p", { class: "muted small" }, "0 ",
      make("span", { class: "scale" }), " " + number(latent.max) +
      ", the largest activation; hover a token for its own. The strongest " +
      "token is underlined."));
  if (latent.contexts.length) {
    texts.append(make("h3", null, "Where it fires most"),
      ...latent.contexts.map((one) => context(latent, one)));
  } else {
    texts.append(make("p", null, "It fired nowhere in these texts."));
  }
  const levels = [...latent.quantile_contexts]
    .sort((a, b) => b.quantile - a.quantile);
  if (levels.length) {
    texts.append(make("h3", null, "Where it fires less: drawn from all of it"),
      ...levels.map((one) => context(latent, one,
        number(one.quantile * 100) + " % of its activations are below this ")));
  }
  main.replaceChildren(make("article", { class: "latent",
    "data-latent": index },
    make("header", null, make("h2", null, "Latent " + index),
      make("span", { class: "muted" }, "fires on ",
        make("b", null, percent(latent.frequency) + error), " of tokens"),
      make("span", { class: "muted" }, "mean when it fires ",
        make("b", null, number(latent.mean))),
      make("span", { class: "muted" }, "largest ",
        make("b", null, number(latent.max))),
      viewer, step(-1, "← previous"), step(1, "next →")),
    brief.explanation
      ? make("p", { class: "said" }, "“" + brief.explanation + "” ",
        make("span", { class: "muted small" }, brief.score === null ||
          brief.score === undefined ? "not scored"
          : "score " + number(brief.score, 2) + ", the correlation of " +
            "activations that are simulated from it with the true ones"))
      : null,
    side, texts));
  window.scrollTo(0, 0);
}

function context(latent, one, label) {
  const shade = (value) => latent.max > 0 ? Math.max(0, value / latent.max) : 0;
  return make("p", { class: "context" },
    make("span", { class: "value" }, (label || "") +
      number(one.values[one.peak])),
    one.pieces.map((piece, i) => make("span", {
      class: i === one.peak ? "token peak" : "token",
      "data-tip": visible(piece) + "   " + number(one.values[i]),
      style: one.values[i] > 0
        ? `background:rgb(var(--fire) / ${shade(one.values[i]).toFixed(3)})`
        : "" }, inText(piece))));
}

function pieces(title, pairs) {
  if (!pairs || !pairs.length) return null;
  return [make("h3", null, title), make("div", null, pairs.map(
    ([piece, value]) => chip(piece, number(value))))];
}

function nearest(title, pairs, measure) {
  if (!pairs || !pairs.length) return null;
  return [make("h3", null, title),
    make("ul", { class: "plain small" }, pairs.map(
      ([index, score, words]) => make("li",
        { title: measure + " " + number(score) },
        state.place.has(index)
          ? make("a", { href: "#" + index }, index) : index,
        " ", make("span", { class: "muted" }, number(score, 2)), " ",
        words.map((piece) => chip(piece)))))];
}

function histogram(latent) {
  const { edges, counts } = latent.histogram;
  if (!counts.length) return make("p", { class: "muted" }, "none");
  const width = 260, height = 90, base = height - 14;
  const tallest = Math.log1p(Math.max(...counts));
  const svg = make("svg", { class: "histogram", role: "img",
    viewBox: `0 0 ${width} ${height}`,
    "aria-label": "histogram of activations, bars in logarithms" });
  const step = width / counts.length;
  counts.forEach((count, i) => {
    const tall = (base - 8) * Math.log1p(count) / tallest;
    svg.append(make("rect", { x: i * step + .5, width: Math.max(step - 1, .5),
      y: base - tall, height: tall,
      "data-tip": count.toLocaleString("en") + " tokens of " +
        number(edges[i]) + " to " + number(edges[i + 1]) }));
  });
  svg.append(make("path", { d: `M0 ${base}H${width}` }),
    make("text", { x: 0, y: height - 3 }, "0"),
    make("text", { x: width, y: height - 3, "text-anchor": "end" },
      number(edges[edges.length - 1])));
  return make("div", null, svg, make("p", { class: "muted small" },
    "tokens in a bin, on a logarithmic scale"));
}

// ---- the SAE --------------------------------------------------------------

function drawSae() {
  document.title = state.index.sae.name;
  const table = (rows) => make("table", { class: "about" },
    make("tbody", null, rows.filter(([, value]) => value !== null &&
      value !== undefined && value !== "").map(([name, value]) =>
      make("tr", null, make("td", { class: "muted" }, name),
        make("td", null, value)))));
  main.replaceChildren(make("h2", null, "About this SAE"),
    table(state.index.sae.about),
    make("h2", null, "What it costs the model"),
    state.index.sae.fidelity.length
      ? table(state.index.sae.fidelity.map(([name, value, says]) =>
        [name, [measured(value), make("span", { class: "muted small" },
          "  " + says)]]))
      : make("p", { class: "muted" }, "It was not measured."),
    make("p", { class: "muted small" }, state.index.sae.measured_on || ""),
    make("h2", null, "What these pages are made of"),
    table(state.index.sae.made_of));
}

// ---- a sentence (with a server) -------------------------------------------

function drawLive() {
  const text = make("textarea", { id: "sentence", "aria-label": "sentence" },
    "The capital of France is Paris.");
  const result = make("div", { id: "fired" });
  const go = make("button", { id: "go", type: "button", onclick: async () => {
    result.replaceChildren(make("p", { class: "muted" }, "…"));
    try {
      const answer = await fetch("live", { method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ text: text.value }) });
      const found = await answer.json();
      if (found.error) throw new Error(found.error);
      drawFired(result, found);
    } catch (error) {
      result.replaceChildren(make("p", { class: "warn" }, error.message));
    }
  } }, "Which latents fire?");
  main.replaceChildren(make("h2", null, "Try a sentence"), text,
    make("p", null, go), result);
}

function drawFired(result, found) {
  const of = found.fired > found.latents.length
    ? `The first ${found.latents.length} of ${found.fired} that fire, ` +
      "those nearest their largest activation first."
    : found.fired ? "Nearest their largest activation first."
      : "None of the latents that these pages show fires on it.";
  result.replaceChildren(make("p", { class: "muted small" }, of),
    ...found.latents.map((latent) => make("div", null,
    make("h3", null, make("a", { href: "#" + latent.index }, "Latent " +
      latent.index), make("span", { class: "muted" }, "  " +
      number(Math.max(...latent.values)) + ", " +
      number(100 * Math.max(...latent.values) / (latent.max || 1)) +
      " % of its largest")),
    context({ max: latent.max || Math.max(...latent.values) },
      { pieces: found.pieces, values: latent.values,
        peak: latent.values.indexOf(Math.max(...latent.values)) }))));
}

// ---- getting about --------------------------------------------------------

function route() {
  tip.hidden = true;
  const where = decodeURIComponent(location.hash.slice(1));
  if (/^\d+$/.test(where)) drawLatent(Number(where));
  else if (where === "sae") drawSae();
  else if (where === "live" && state.index.live) drawLive();
  else drawList();
}

function start() {
  const { sae } = state.index;
  document.getElementById("title").textContent = sae.name;
  document.getElementById("facts").textContent = sae.facts;
  document.getElementById("live-link").hidden = !state.index.live;
  if (state.index.explained) state.sort = "score";
  choose();
  route();
}

window.addEventListener("hashchange", route);
document.getElementById("keys").addEventListener("click",
  () => document.getElementById("help").showModal());

document.addEventListener("mouseover", (event) => {
  const said = event.target.dataset && event.target.dataset.tip;
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said;
  const box = event.target.getBoundingClientRect();
  tip.style.left = Math.min(box.left, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = (box.top > 40 ? box.top - tip.offsetHeight - 4
    : box.bottom + 4) + "px";
});

document.addEventListener("keydown", (event) => {
  const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (writing) event.target.blur();
    else if (location.hash.length > 1) location.hash = "";
    return;
  }
  if (writing && event.key === "Enter" && event.target.id === "search") {
    event.target.blur();
    if (state.order.length) location.hash = "#" + state.order[0];
    return;
  }
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  const list = document.getElementById("rows");
  const latent = main.querySelector("[data-latent]");
  if (event.key === "?") document.getElementById("help").showModal();
  else if (event.key === "/") {
    event.preventDefault();
    if (!list) location.hash = "";
    setTimeout(() => document.getElementById("search")?.focus(), 0);
  } else if (list && (event.key === "j" || event.key === "ArrowDown")) {
    event.preventDefault();
    move(1);
  } else if (list && (event.key === "k" || event.key === "ArrowUp")) {
    event.preventDefault();
    move(-1);
  } else if (list && event.key === "Enter" && state.order.length &&
    event.target.tagName !== "A" && event.target.tagName !== "BUTTON") {
    location.hash = "#" + state.order[state.at];
  } else if (latent && /^Arrow(Left|Right)$/.test(event.key)) {
    const at = state.order.indexOf(Number(latent.dataset.latent)) +
      (event.key === "ArrowRight" ? 1 : -1);
    if (state.order[at] !== undefined) {
      state.at = at;
      location.hash = "#" + state.order[at];
    }
  }
});
