"""The page's style sheet and script: plain CSS and JavaScript, no library."""

from __future__ import annotations

import base64
import hashlib

from gemmascope_jax.report.plotting import DARK

_FIGURE_COLOURS = "".join(
  f"--c{light[1:]}:{dark};" for light, dark in DARK.items()
)

_LOOK = """
:root{color-scheme:light dark;--paper:#fff;--card:#f7f8fa;--ink:#1a1c20;
--muted:#5f6672;--line:#dfe2e7;--link:#0060a0;--fire:240 140 30;
--bar:#0072b2;--warn:#fff4dc}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,.top,footer{max-width:68rem;margin:0 auto;padding:0 1.25rem}
h1{font-size:1.6rem;line-height:1.2;margin:1.75rem 0 .25rem}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem}
h3,h4{margin:0}
p{margin:.4rem 0}
a{color:var(--link)}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.lead{color:var(--muted);margin:0 0 .8rem}
.headline{font-size:1.06rem;max-width:52rem}
.warn{background:var(--warn);border-radius:4px;padding:.4rem .7rem}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0}
dl.about{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;
margin:.8rem 0}
dl.about dt{color:var(--muted)}dl.about dd{margin:0;overflow-wrap:anywhere}
.reading{max-width:52rem}
figure{margin:.5rem 0}
figcaption{color:var(--muted);font-size:.875rem}
.wide{overflow-x:auto}
.plot>svg{display:block;width:100%;min-width:40rem;height:auto}
.plot.small>svg{max-width:44rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .9rem .25rem 0;text-align:right;white-space:nowrap;
font-weight:400}
th:first-child{text-align:left}
thead th{font-weight:600;vertical-align:bottom}
thead small{display:block;font-weight:400;color:var(--muted)}
tbody{border-top:1px solid var(--line)}
tbody:last-child{border-bottom:1px solid var(--line)}
.tools{position:sticky;top:0;z-index:1;background:var(--paper);
border-bottom:1px solid var(--line);padding:.5rem 0;display:flex;
flex-wrap:wrap;gap:.4rem 1rem;align-items:center}
.tools[hidden]{display:none}
.tools input,.tools select{font:inherit;color:inherit;background:var(--card);
border:1px solid var(--muted);border-radius:4px;padding:.15rem .4rem}
.legend{font-size:.875rem;color:var(--muted)}
.scale{display:inline-block;width:6rem;height:.85em;border-radius:3px;
vertical-align:-.1em;
background:linear-gradient(90deg,rgb(var(--fire)/0),rgb(var(--fire)/1))}
.card{background:var(--card);border-radius:6px;margin:.9rem 0;
padding:.7rem 1rem;display:grid;grid-template-columns:15rem minmax(0,1fr);
gap:.4rem 1.5rem}
.card[hidden]{display:none}
.card:target{box-shadow:0 0 0 2px var(--link)}
.card header{grid-column:1/-1;display:flex;flex-wrap:wrap;gap:.1rem 1.4rem;
align-items:baseline}
.card header p{margin:0;color:var(--muted);font-size:.9rem}
.card header b{color:var(--ink)}
.card h3{font-size:1.05rem}
.card h3 a{color:inherit;text-decoration:none}
.card h3 a:hover{text-decoration:underline}
.card h4{font-size:.8rem;font-weight:400;color:var(--muted)}
.histogram{display:block;width:100%;max-width:15rem;height:auto}
.histogram rect{fill:var(--bar)}
.histogram path{stroke:var(--muted);fill:none}
.histogram text{fill:var(--muted);font-size:10px}
.logits{margin-top:.4rem}
.logits ul{display:flex;flex-wrap:wrap;gap:.15rem .3rem;list-style:none;
margin:0;padding:0}
.logits li{max-width:100%}
code{font:.8125rem/1.4 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
.logits code{display:block;background:var(--paper);
border:1px solid var(--line);border-radius:3px;padding:0 .25rem;
overflow:hidden;text-overflow:ellipsis;white-space:pre}
.contexts{list-style:none;margin:0;padding:0;font-size:.9375rem}
.contexts li{display:grid;grid-template-columns:3.2rem minmax(0,1fr);
gap:.6rem;border-top:1px solid var(--line);padding:.25rem 0}
.contexts li:first-child{border-top:0}
.peak-value{color:var(--muted);text-align:right;font-size:.8125rem;
padding-top:.12rem;font-variant-numeric:tabular-nums}
.context{margin:0;overflow-wrap:anywhere;unicode-bidi:isolate}
.on{background:rgb(var(--fire)/var(--a));border-radius:2px}
.peak{font-weight:700;text-decoration:underline;text-decoration-thickness:2px;
text-underline-offset:2px}
.contexts span:hover{outline:1px solid var(--muted)}
.contexts .peak-value:hover{outline:0}
footer{border-top:1px solid var(--line);margin-top:3rem;padding-bottom:3rem;
color:var(--muted);font-size:.875rem}
pre{overflow-x:auto;background:var(--card);padding:.7rem;color:var(--ink);
font:.8125rem/1.4 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
@media(max-width:44rem){.card{grid-template-columns:minmax(0,1fr)}
dl.about{grid-template-columns:1fr}dl.about dt{margin-top:.3rem}}
"""
_DARK_LOOK = """
@media screen and (prefers-color-scheme:dark){:root{--paper:#16181d;
--card:#1e2127;--ink:#e9eaee;--muted:#a2a9b5;--line:#343943;--link:#7cc0f5;
--fire:184 84 0;--bar:#4fa6e6;--warn:#3a2f14;%s}}
"""
_PRINT_LOOK = """
@media print{*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:10pt}.tools,nav,.skip{display:none}.card{break-inside:avoid}
.card,pre{border:1px solid var(--line)}h2{break-after:avoid}
figure,table{break-inside:avoid}.plot>svg{min-width:0}a{color:inherit}}
"""

CSS = _LOOK + _DARK_LOOK % _FIGURE_COLOURS + _PRINT_LOOK

# Shows the tools, filters by words and sorts; "/" goes to the filter box.
JS = """
(() => {
  const tools = document.getElementById("tools");
  if (!tools) return;
  const box = document.getElementById("filter");
  const order = document.getElementById("sort");
  const shown = document.getElementById("shown");
  const home = document.getElementById("cards");
  const cards = [...home.children];
  const texts = cards.map(card => card.textContent.toLowerCase());
  const filter = () => {
    const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let count = 0;
    cards.forEach((card, i) => {
      card.hidden = !words.every(word => texts[i].includes(word));
      count += !card.hidden;
    });
    shown.textContent = `${count} of ${cards.length} shown`;
  };
  const sort = () => {
    const [key, way] = order.value.split(" ");
    const value = card => Number(card.dataset[key]) * (way === "down" ? -1 : 1);
    const sorted = [...cards];
    if (key) sorted.sort((a, b) => value(a) - value(b));
    home.append(...sorted);
  };
  box.addEventListener("input", filter);
  order.addEventListener("change", sort);
  document.addEventListener("keydown", event => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      box.focus();
    } else if (event.key === "Escape" && event.target === box) {
      box.value = "";
      filter();
    }
  });
  tools.hidden = false;
  filter();
  sort();
})();
"""


def content_policy() -> str:
  """A policy under which the page loads nothing and runs only `JS`."""
  digest = base64.b64encode(hashlib.sha256(JS.encode()).digest()).decode()
  return (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
  )
