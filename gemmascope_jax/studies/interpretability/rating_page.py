"""The page on which people rate latents: one file, nothing loaded, from disk.

What is rated stands in the page as JSON; the script puts every string into it
as text, never as HTML, so a token that looks like HTML is only text. Ratings
are kept in the browser (under the sheet's name) and downloaded as CSV or JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gemmascope_jax.report.token_text import visible

CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1c20;--muted:#5f6672;
--line:#dfe2e7;--link:#0060a0;--fire:240 140 30}
@media(prefers-color-scheme:dark){:root{--paper:#16181d;--ink:#e9eaee;
--muted:#a2a9b5;--line:#343943;--link:#7cc0f5;--fire:184 84 0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:54rem;padding:1rem 1.25rem;background:var(--paper);
color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.3rem;margin:.3rem 0}
p{margin:.4rem 0}
.muted{color:var(--muted);font-size:.9rem}
.bar{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:center;
border-bottom:1px solid var(--line);padding:.5rem 0;position:sticky;top:0;
background:var(--paper)}
progress{flex:1;min-width:8rem}
button,input{font:inherit;color:inherit;background:var(--paper);
border:1px solid var(--muted);border-radius:5px;padding:.3rem .8rem}
button{cursor:pointer}
button[aria-pressed=true]{background:var(--link);color:var(--paper);
border-color:var(--link)}
button:disabled{opacity:.45;cursor:default}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.labels{display:flex;gap:.6rem;margin:.8rem 0}
.labels button{flex:1;padding:.7rem;font-weight:600}
ol{padding-left:1.6rem}
li{border-top:1px solid var(--line);padding:.4rem 0;overflow-wrap:anywhere;
unicode-bidi:isolate}
mark{color:inherit;border-radius:2px;background:rgb(var(--fire)/var(--a))}
mark.peak{font-weight:700;text-decoration:underline}
kbd{border:1px solid var(--line);border-radius:3px;padding:0 .3rem;
font-size:.85em}
"""

JS = """
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = id => document.getElementById(id);
  const store = "rating sheet " + data.sheet;
  const labels = ["YES", "MAYBE", "NO"];
  let kept = {rater: "", labels: {}};
  try {
    kept = Object.assign(kept, JSON.parse(localStorage.getItem(store)) || {});
  } catch (error) {
    at("problem").hidden = false;
  }
  let here = data.items.findIndex(item => !kept.labels[item.id]);
  if (here < 0) here = 0;
  const save = () => {
    try {
      localStorage.setItem(store, JSON.stringify(kept));
    } catch (error) {
      at("problem").hidden = false;
    }
  };
  const show = () => {
    const item = data.items[here];
    const done = data.items.filter(each => kept.labels[each.id]).length;
    at("place").textContent = `${here + 1} of ${data.items.length}`;
    at("done").textContent = `${done} rated`;
    at("progress").max = data.items.length;
    at("progress").value = done;
    at("explanation").hidden = !item.explanation;
    at("phrase").textContent = item.explanation || "";
    const list = at("contexts");
    list.textContent = "";
    for (const context of item.contexts) {
      const entry = document.createElement("li");
      entry.dir = "auto";
      const most = Math.max(...context.map(token => token[1]));
      for (const [text, level] of context) {
        if (!level) {
          entry.append(text);
          continue;
        }
        const mark = document.createElement("mark");
        mark.style.setProperty("--a", level / 10);
        mark.title = `${level} of 10`;
        if (level === most) mark.className = "peak";
        mark.textContent = text;
        entry.append(mark);
      }
      list.append(entry);
    }
    for (const label of labels) {
      at(label).setAttribute("aria-pressed", kept.labels[item.id] === label);
    }
    at("back").disabled = here === 0;
    at("next").disabled = here === data.items.length - 1;
    at("ready").hidden = done < data.items.length;
  };
  const go = step => {
    here = Math.min(Math.max(here + step, 0), data.items.length - 1);
    show();
  };
  const rate = label => {
    kept.labels[data.items[here].id] = label;
    save();
    go(1);
  };
  const rows = () => data.items.filter(item => kept.labels[item.id]).map(
    item => ({sheet: data.sheet, item: item.id, rater: kept.rater.trim(),
              label: kept.labels[item.id]}));
  const quoted = text => '"' + String(text).replaceAll('"', '""') + '"';
  const csv = () => [["sheet", "item", "rater", "label"].join(",")].concat(
    rows().map(row => [row.sheet, row.item, row.rater, row.label]
      .map(quoted).join(","))).join("\\n") + "\\n";
  const download = (kind, text) => {
    if (!kept.rater.trim()) {
      at("rater").focus();
      at("name").hidden = false;
      return;
    }
    at("name").hidden = true;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text]));
    const who = kept.rater.trim().replace(/[^A-Za-z0-9_-]+/g, "_");
    link.download = `ratings_${data.sheet}_${who}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  at("rater").value = kept.rater;
  at("rater").addEventListener("input", event => {
    kept.rater = event.target.value;
    save();
  });
  for (const label of labels) {
    at(label).addEventListener("click", () => rate(label));
  }
  at("back").addEventListener("click", () => go(-1));
  at("next").addEventListener("click", () => go(1));
  at("csv").addEventListener("click", () => download("csv", csv()));
  at("json").addEventListener("click",
    () => download("json", JSON.stringify(rows(), null, 1)));
  document.addEventListener("keydown", event => {
    const typing = event.target.tagName === "INPUT";
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const place = {y: 0, 1: 0, m: 1, 2: 1, n: 2, 3: 2}[key];
    if (place !== undefined && !event.repeat) rate(labels[place]);
    if (key === "arrowleft") go(-1);
    if (key === "arrowright") go(1);
  });
  show();
})();
"""

_BODY = """
<h1>Is there one meaning to where this feature fires?</h1>
<p class="muted">Each feature is shown with the texts in which it fires most
strongly; the darker a token, the more strongly it fires there. <b>YES</b>: there
is a clear pattern, and you could say in a phrase what it is. <b>MAYBE</b>: there
seems to be one, with exceptions. <b>NO</b>: you see none. Keys: <kbd>y</kbd>
<kbd>m</kbd> <kbd>n</kbd>, and <kbd>←</kbd> <kbd>→</kbd> to go back and on. Your
ratings stay in this browser until you download them.</p>
<p id="problem" role="alert" hidden><b>This browser keeps nothing for pages from
disk: download your ratings before you close the page.</b></p>
<div class="bar"><label>Your name <input id="rater" autocomplete="off"></label>
<span id="place"></span><progress id="progress" aria-label="rated"></progress>
<span id="done" role="status"></span>
<button id="csv">Download CSV</button><button id="json">JSON</button></div>
<p id="name" role="alert" hidden>Please fill in your name first.</p>
<p id="ready" role="status" hidden><b>All are rated. Please download your
ratings and send in the file.</b></p>
<main>
<p id="explanation">Suggested meaning: <b id="phrase" dir="auto"></b></p>
<div class="labels"><button id="YES">YES <kbd>y</kbd></button>
<button id="MAYBE">MAYBE <kbd>m</kbd></button>
<button id="NO">NO <kbd>n</kbd></button></div>
<ol id="contexts"></ol>
<p><button id="back">← back</button> <button id="next">on →</button></p>
</main>
<noscript><p>This page needs JavaScript; or fill in the CSV file that came with
it.</p></noscript>
"""


def page(sheet: str, items: Sequence[dict[str, Any]]) -> str:
  """The page as one string of HTML.

  Args:
    sheet: its name, which is stored with each rating.
    items: {"id", "explanation": text or None, "contexts": [[[text, level
      0..10], ...], ...]}, in the order in which they are shown.
  """
  data = {
    "sheet": sheet,
    "items": [
      {
        "id": item["id"],
        "explanation": item["explanation"],
        "contexts": [
          [[visible(text, leading=False), level] for text, level in context]
          for context in item["contexts"]
        ],
      }
      for item in items
    ],
  }
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<title>Rating sheet {sheet}</title>
<link rel="icon" href="data:,">
<style>{CSS}</style>
</head>
<body>{_BODY}
<script type="application/json" id="data">{_inert_json(data)}</script>
<script>{JS}</script>
</body>
</html>
"""


def _inert_json(value: Any) -> str:
  """JSON that can't end or comment out the script element it stands in."""
  text = json.dumps(value)  # ASCII: no line separators either
  for char in "<>&":
    text = text.replace(char, f"\\u{ord(char):04x}")
  return text


def _policy() -> str:
  """Under this policy the page loads nothing and runs only `JS`."""
  digest = base64.b64encode(hashlib.sha256(JS.encode()).digest()).decode()
  return (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
  )
