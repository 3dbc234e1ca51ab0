"""The latents of one SAE as HTML cards: what each fires on and promotes.

Letters: T tokens in a context.
"""

from __future__ import annotations

import math

from gemmascope_jax.report import token_text, wording
from gemmascope_jax.report.latent_results import Context, Latent, Latents
from gemmascope_jax.report.token_text import escape

_HISTOGRAM = (220, 56)  # width and height of the bars, in CSS pixels


def cards(result: Latents) -> str:
  """All latents as `<article>` cards, in the result's order, in one `<div>`.

  Each carries `data-index`, `data-frequency` and `data-max` for sorting. A
  token's shade is its activation relative to the latent's maximum; hovering
  shows the value; the strongest token is bold and underlined as well.
  """
  return (
    '<div id="cards">\n'
    + "\n".join(card(latent) for latent in result.latents)
    + "\n</div>"
  )


def card(latent: Latent) -> str:
  """One latent's card."""
  data = (
    f'data-index="{latent.index}" data-frequency="{latent.frequency!r}"'
    f' data-max="{latent.maximum!r}"'
  )
  contexts = "\n".join(
    _context(context, latent.maximum) for context in latent.contexts
  )
  return f"""<article class="card" id="latent-{latent.index}" {data}>
<header><h3><a href="#latent-{latent.index}">Latent {latent.index}</a></h3>
<p>fires on <b>{_frequency(latent.frequency)}</b> of tokens</p>
<p>maximum <b>{wording.number(latent.maximum)}</b></p></header>
<div class="facts">{histogram(latent)}
{_logits("promotes", latent.top_logits)}
{_logits("suppresses", latent.bottom_logits)}</div>
<ol class="contexts">
{contexts}
</ol>
</article>"""


def histogram(latent: Latent) -> str:
  """The activation histogram as inline SVG; bar heights are logarithmic."""
  width, height = _HISTOGRAM
  low, high = latent.edges[0], latent.edges[-1]
  span = (high - low) or 1.0
  tallest = max((math.log1p(count) for count in latent.counts), default=0) or 1
  bars = []
  for i, count in enumerate(latent.counts):
    if count <= 0:
      continue
    x = (latent.edges[i] - low) / span * width
    right = (latent.edges[i + 1] - low) / span * width
    tall = max(1.0, math.log1p(count) / tallest * height)
    bars.append(
      f'<rect x="{x:.1f}" y="{height - tall:.1f}"'
      f' width="{max(0.5, right - x - 1):.1f}" height="{tall:.1f}"/>'
    )
  total = f"{sum(latent.counts):,.0f}"
  label = (
    f"Histogram of {total} activations from {wording.number(low)} to"
    f" {wording.number(high)}; log counts"
  )
  return (
    f'<figure><svg class="histogram" viewBox="0 0 {width} {height + 14}"'
    f' role="img" aria-label="{label}">{"".join(bars)}'
    f'<path d="M0 {height}.5H{width}"/>'
    f'<text x="0" y="{height + 12}">{wording.number(low)}</text>'
    f'<text x="{width}" y="{height + 12}" text-anchor="end">'
    f"{wording.number(high)}</text></svg>"
    f"<figcaption>activations when firing ({total}; log counts)</figcaption>"
    "</figure>"
  )


def _context(context: Context, maximum: float) -> str:
  tokens = [
    _token(piece, value, maximum, i == context.peak)
    for i, (piece, value) in enumerate(
      zip(context.pieces, context.values, strict=True)
    )
  ]
  peak = wording.number(context.values[context.peak])
  return (
    f'<li><span class="peak-value" title="strongest activation in this'
    f' context">{peak}</span><p class="context" dir="auto">'
    f"{''.join(tokens)}</p></li>"
  )


def _token(piece: str, value: float, maximum: float, is_peak: bool) -> str:
  text = token_text.in_context(piece)
  shade = min(1.0, max(0.0, value / maximum)) if maximum > 0 else 0.0
  title = f'title="{wording.number(value)}"'
  if shade <= 0 and not is_peak:
    return f"<span {title}>{text}</span>"
  kind = "on peak" if is_peak else "on"
  return f'<span class="{kind}" style="--a:{shade:.2f}" {title}>{text}</span>'


def _logits(title: str, pairs: tuple[tuple[str, float], ...]) -> str:
  items = "".join(
    f'<li title="{value:+.3f}"><code>{token_text.in_list(text)}</code></li>'
    for text, value in pairs
  )
  return (
    f'<div class="logits"><h4>{escape(title)}</h4><ul>{items}</ul></div>'
    if pairs
    else ""
  )


def _frequency(fraction: float) -> str:
  percent = fraction * 100
  if percent == 0:
    return "0%"
  places = max(0, 1 - math.floor(math.log10(percent)))
  return f"{percent:.{places}f}%"
