"""The look of every figure, and turning a figure into bytes.

matplotlib is imported when a figure is made, not before: tables need none.
The same figure gives the same bytes: no dates, no random ids, no settings of
the user's own matplotlibrc.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

INK = "#1a1c20"
MUTED = "#5f6672"
GRID = "#dfe2e7"
PAPER = "#ffffff"

# Okabe and Ito's colour-blind-safe colours, and a marker with each.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "v", "P", "h")

# Ordered colours for a sweep (viridis without its palest end), few to many.
_SWEEP = (
  "#440154",
  "#472d7b",
  "#3b528b",
  "#2c728e",
  "#21918c",
  "#28ae80",
  "#5ec962",
  "#a5b91b",
)
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))

# What each colour becomes on a dark page; see `svg`.
DARK = {
  INK: "#e9eaee",
  MUTED: "#a2a9b5",
  GRID: "#343943",
  PAPER: "#16181d",
  "#0072b2": "#4fa6e6",
  "#d55e00": "#f4864a",
  "#009e73": "#33c79c",
  "#cc79a7": "#e09cc2",
  "#e69f00": "#f2b640",
  "#56b4e9": "#90d2f8",
  "#440154": "#8f7bd8",
  "#472d7b": "#7d8fe0",
  "#3b528b": "#5ba4e3",
  "#2c728e": "#3fb5d6",
  "#21918c": "#35c4b4",
  "#28ae80": "#52d28f",
  "#5ec962": "#95de62",
  "#a5b91b": "#e6e14a",
}

_STYLE = {
  "axes.axisbelow": True,
  "axes.edgecolor": MUTED,
  "axes.facecolor": PAPER,
  "axes.grid": True,
  "axes.labelcolor": INK,
  "axes.labelsize": 11,
  "axes.linewidth": 0.8,
  "axes.prop_cycle": "cycler('color', ['#0072b2'])",
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 11,
  "figure.dpi": 100,
  "figure.facecolor": PAPER,
  "font.family": ["DejaVu Sans"],  # comes with matplotlib
  "font.size": 10,
  "grid.color": GRID,
  "grid.linewidth": 0.7,
  "legend.fontsize": 9.5,
  "legend.frameon": False,
  "lines.linewidth": 1.8,
  "lines.markersize": 6,
  "savefig.dpi": 200,
  "savefig.facecolor": PAPER,
  "svg.fonttype": "path",
  "svg.hashsalt": "gemmascope_jax",
  "text.color": INK,
  "text.parse_math": False,  # names are data: a $ in one is a $
  "xtick.color": MUTED,
  "xtick.labelcolor": INK,
  "xtick.labelsize": 10,
  "ytick.color": MUTED,
  "ytick.labelcolor": INK,
  "ytick.labelsize": 10,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
  """The report's settings, whatever the user's own; restored on exit.

  Raises:
    ImportError: matplotlib is not installed; names the extra.
  """
  try:
    import matplotlib
    import matplotlib.style
  except ImportError as error:
    raise ImportError(
      "the report's figures need matplotlib, which is not installed: pip"
      " install 'gemmascope_jax[plots]' (in a clone: pip install -e '.[plots]')"
    ) from error
  with matplotlib.style.context(["default", _STYLE]):
    yield


def blank(width: float, height: float) -> Any:
  """An empty figure of this size in inches; call inside `style`."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.02)
  return figure


def frame(
  figure: Any,
  title: str = "",
  facts: str = "",
  notes: str = "",
  legend: tuple[Sequence[Any], Sequence[str]] | None = None,
) -> None:
  """Puts words around a figure's panels, each part only if it is given.

  Args:
    figure: with the constrained layout of `blank`.
    title: one line at the top.
    facts: a paragraph below it, wrapped to the figure.
    notes: a paragraph below the panels, wrapped too.
    legend: (handles, labels) for rows of three above the panels.
  """
  width, height = figure.get_size_inches()
  line, down = 0.2, 0.12
  x = down / width
  texts = []
  if title:
    texts.append((down, title, {"size": 14, "weight": "bold"}))
    down += 0.31
  for text in textwrap.wrap(facts, int(width * 12.6)):
    texts.append((down, text, {"color": MUTED}))
    down += line
  if legend:
    down += 0.05 if title else 0
    figure.legend(
      *legend,
      loc="upper left",
      bbox_to_anchor=(x, 1 - down / height),
      borderaxespad=0,
      borderpad=0,
      ncols=3,
    )
    down += line * math.ceil(len(legend[1]) / 3) + 0.04
  bottom = 0.0
  wrapped = textwrap.wrap(notes, int(width * 13.8))
  if wrapped:
    bottom = 0.14 + line * len(wrapped)
  for i, text in enumerate(wrapped):
    looks = {"size": 9, "color": MUTED}
    texts.append((height - bottom + 0.06 + line * i, text, looks))
  for y, text, looks in texts:
    figure.text(x, 1 - y / height, text, va="top", **looks)
  top = down if texts or legend else 0.0
  figure.get_layout_engine().set(
    rect=(0, bottom / height, 1, 1 - (top + bottom) / height)
  )


def log_axis(
  axis: Any, values: Sequence[float], margins: tuple[float, float]
) -> bool:
  """Makes an axis logarithmic if all its values are positive.

  Tick labels are plain numbers (0.01, 0.1, 50), as a reader says them; the
  fewer decades there are, the more of their ticks are labelled.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    values: everything shown along it; none: the axis stays as it is.
    margins: room before the least and after the greatest value, as fractions
      of the span between them.

  Returns:
    Whether it is logarithmic now.
  """
  from matplotlib import ticker

  if not len(values):
    return False
  name = axis.axis_name
  low, high = min(values), max(values)
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
  if low <= 0:
    span = (high - low) or 1.0
    limits = (low - margins[0] * span, high + margins[1] * span)
    axis.axes.set(**{f"{name}lim": limits})
    return False
  span = max(high / low, 1.2)
  limits = (low * span ** -margins[0], high * span ** margins[1])
  axis.axes.set(**{f"{name}scale": "log", f"{name}lim": limits})
  subs = (1, 2, 3, 5, 7) if span < 12 else (1, 2, 5) if span < 300 else (1,)
  if span < 3:
    subs = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
  axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=30))
  axis.set_minor_locator(ticker.LogLocator(subs=range(1, 10), numticks=99))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
  axis.set_minor_formatter(ticker.NullFormatter())
  return True


def short_numbers(axis: Any) -> None:
  """Ticks such as 0, 250k, 500k, 1M, 1.5B; at most six."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: _short(x)))


def _short(value: float) -> str:
  for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= unit:
      return f"{value / unit:g}{name}"
  return f"{value:g}"


def sweep_styles(count: int) -> list[tuple[str, Any]]:
  """(colour, line style) for each of `count` ordered members of a sweep."""
  last = len(_SWEEP) - 1
  if count <= 1:
    return [(_SWEEP[2], "-")] * count
  return [
    (
      _SWEEP[round(i * last / (count - 1))],
      _DASHES[i % len(_DASHES)] if count > 3 else "-",
    )
    for i in range(count)
  ]


def png(figure: Any) -> bytes:
  """A figure as PNG, 200 dots an inch; call inside `style`."""
  file = io.BytesIO()
  figure.savefig(file, format="png", metadata={"Software": None})
  return file.getvalue()


def svg(figure: Any, name: str) -> str:
  """A figure as an `<svg>` element to put into a page; call inside `style`.

  Colours become CSS variables, `var(--c0072b2,#0072b2)`, so that a page can
  give each its `DARK` twin. Text is outlines, so it looks the same anywhere;
  the element carries no title: label it where it is put.

  Args:
    figure: any figure of this report.
    name: what its ids begin with, so that several live in one page.
  """
  file = io.StringIO()
  nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
  figure.savefig(file, format="svg", metadata=nothing)
  text = file.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  # The style sheet's one rule would reach the whole page: inherit it instead.
  text = re.sub(
    r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL
  )
  text = text.replace(
    "<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1
  )
  text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
  text = text.replace("xlink:href=", "href=")
  text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
  for colour in DARK:
    text = text.replace(colour, f"var(--c{colour[1:]},{colour})")
  return re.sub(r"\n\s*\n+", "\n", text).strip()
