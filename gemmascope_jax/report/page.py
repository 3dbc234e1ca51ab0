"""One HTML page with everything: open it from disk, print it, send it.

Nothing is loaded from anywhere, it reads without JavaScript, and every string
that comes from data is escaped: a token that looks like HTML is only text.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping

from gemmascope_jax.report import (
  figures,
  latent_cards,
  page_assets,
  table,
  wording,
)
from gemmascope_jax.report.latent_results import Latents
from gemmascope_jax.report.results import Fidelity
from gemmascope_jax.report.token_text import escape

_READING = """<p class="reading"><b>L0</b> is how many latents are active on a
token, on average: fewer means a sparser code. <b>Delta loss</b> is how much
worse the language model predicts the next token when the SAE's reconstruction
replaces the site's activation; <b>FVU</b> is the share of the activations'
variance that the reconstruction misses. Lower and further left is better; an
SAE is worth something where it lies well below the baselines at its
L0.</p>"""

_LEGEND = """<p class="legend">Shade: activation, from 0
<span class="scale"></span> to the latent's maximum; hover over a token for its
value. <span class="peak">Bold and underlined</span>: the strongest token of its
context. ↵ is a newline, ␣ a space.</p>"""


def page(
  result: Fidelity, plots: Mapping[str, str], latents: Latents | None = None
) -> str:
  """The page as one string of HTML.

  Args:
    result: the sparsity-fidelity result.
    plots: `<svg>` elements as `plotting.svg` makes them: "curve", and
      "training" and "spectrum" if there are any.
    latents: what the latents of one SAE fire on, or None.
  """
  sections = [("curve", "Sparsity and fidelity", _curve(result, plots))]
  sections.append(("table", "Table", _table(result)))
  if "training" in plots:
    caption = "One line an SAE of the sweep."
    body = _plot(plots["training"], "Training curves", caption)
    sections.append(("training", "Training", body))
  if "spectrum" in plots:
    sections.append(("spectrum", "PCA spectrum", _spectrum(plots)))
  if latents is not None:
    sections.append(("latents", "Latents", _latents(latents)))
  links = "".join(
    f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections
  )
  bodies = "\n".join(
    f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>'
    for name, title, body in sections
  )
  title = f"Sparse autoencoders at {result.site} of {result.model}"
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="{page_assets.content_policy()}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{page_assets.CSS}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<div class="top">
<h1>{escape(title)}</h1>
{_about(result)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</div>
<main id="main">
{bodies}
</main>
{_provenance(result)}
<script>{page_assets.JS}</script>
</body>
</html>
"""


def _about(result: Fidelity) -> str:
  facts = [
    ("Model", result.model),
    ("Site", f"{result.site}, {wording.site(result.site)}"),
    ("SAEs", _trained(result)),
    ("Evaluated on", wording.tokens(result.tokens)),
    ("Clean loss", f"{wording.plus_minus(result.clean_loss)} nats/token"),
    ("Code", result.code),
  ]
  items = "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in facts)
  headline = wording.headline(result)
  small = wording.small_sample_note(result)
  return "\n".join(
    [
      f'<p class="headline">{escape(headline)}</p>' if headline else "",
      f'<dl class="about">{items}</dl>',
      f'<p class="warn">{escape(small)}</p>' if small else "",
    ]
  )


def _trained(result: Fidelity) -> str:
  text = wording.dictionary(result)
  trained = {row.train_tokens for row in result.saes}
  if len(trained) == 1 and None not in trained:
    text += f", each trained on {wording.count(trained.pop(), 'activation')}"
  return text


def _curve(result: Fidelity, plots: Mapping[str, str]) -> str:
  return _READING + _plot(
    plots["curve"],
    "Delta loss and FVU against L0; the numbers are in the table below",
    figures.fidelity_notes(result),
  )


def _spectrum(plots: Mapping[str, str]) -> str:
  return _plot(
    plots["spectrum"],
    "FVU of PCA against its number of components, with the SAEs at their L0",
    "What the same number of dense directions explains. PCA uses the same"
    " components for every token; an SAE chooses its latents for each.",
    "plot small",
  )


def _plot(svg: str, label: str, caption: str, kind: str = "plot") -> str:
  return (
    f'<figure><div class="wide" tabindex="0" role="img"'
    f' aria-label="{escape(label)}"><div class="{kind}">{svg}</div></div>'
    f"<figcaption>{escape(caption)}</figcaption></figure>"
  )


def _table(result: Fidelity) -> str:
  shown = table.table(result)
  head = "".join(
    f'<th scope="col">{escape(name) or "&nbsp;"}<small>{escape(unit)}</small>'
    "</th>"
    for name, unit in zip(shown.names, shown.units, strict=True)
  )
  bodies = "".join(
    "<tbody>"
    + "".join(
      f'<tr><th scope="row">{escape(name)}</th>'
      + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
      + "</tr>\n"
      for name, *cells in group
    )
    + "</tbody>"
    for group in shown.groups
  )
  return (
    f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
    f"{bodies}</table></div>\n"
    f"<p><small>{escape(wording.errors_note(result))}.</small></p>"
  )


def _latents(latents: Latents) -> str:
  facts = [f"{wording.count(len(latents.latents), 'latent')} of"]
  facts.append(f"“{latents.sae}”")
  if latents.width is not None:
    facts.append(f"({wording.count(latents.width, 'latent')} in all)")
  if latents.l0 is not None:
    facts.append(f"with L0 {latents.l0:.1f}")
  seen = wording.tokens(latents.tokens)
  if seen:
    facts.append(f"and their strongest contexts in {seen}")
  alive = latents.tokens.get("alive")
  if alive is not None:
    facts.append(f"on which {alive:,} latents fire")
  return f"""<p>{escape(" ".join(facts))}.</p>
{_LEGEND}
<div class="tools" id="tools" role="search" hidden>
<label>Filter <input id="filter" type="search" placeholder="token or index"
 aria-keyshortcuts="/"></label>
<label>Sort by <select id="sort"><option value="">order of the study</option>
<option value="frequency down">frequency, highest first</option>
<option value="frequency up">frequency, lowest first</option>
<option value="max down">maximum, highest first</option>
<option value="index up">index</option></select></label>
<span id="shown" role="status"></span>
</div>
{latent_cards.cards(latents)}"""


def _provenance(result: Fidelity) -> str:
  text = json.dumps(result.provenance, indent=2, sort_keys=True)
  return f"""<footer>
<p>Made by gemmascope_jax {escape(result.code)} from result files alone.</p>
<details><summary>Provenance: configuration, hashes, token policy</summary>
<pre>{html.escape(text)}</pre></details>
</footer>"""
